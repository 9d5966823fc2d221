// What SentencePiece does to a text before it looks for pieces: its character map, and its rules for spaces.

const SPACE_MARK = "\u2581"; // what stands for a space inside a piece

/** The fields of a protobuf message: by number a list of integers (varints) or byte arrays. */
export function readMessage(bytes) {
  const fields = new Map();
  let position = 0;
  const varint = () => {
    let value = 0;
    for (let unit = 1; ; unit *= 128) {
      const byte = bytes[position++];
      value += (byte & 127) * unit;
      if (byte < 128) return value;
    }
  };
  while (position < bytes.length) {
    const key = varint();
    const number = Math.floor(key / 8), kind = key & 7;
    let value;
    if (kind === 0) {
      value = varint();
    } else {
      const length = kind === 2 ? varint() : kind === 1 ? 8 : 4;
      value = bytes.subarray(position, position + length);
      position += length;
    }
    fields.set(number, [...(fields.get(number) ?? []), value]);
  }
  return fields;
}

/** The function from a text to what is cut into pieces. `spec`: the model's NormalizerSpec message (sentencepiece_model.proto). */
export function normaliser(spec) {
  const flag = (number) => (spec.get(number)?.[0] ?? 1) === 1; // all of these are on where nothing is said
  const dummyPrefix = flag(3), removesSpaces = flag(4), marksSpaces = flag(5);
  const map = spec.get(2)?.[0] ?? new Uint8Array();
  const mapped = map.length ? characterMap(map) : (text) => text;
  return (text) => {
    let normal = mapped(text);
    if (removesSpaces) normal = normal.replace(/ +/g, " ").replace(/^ | $/g, "");
    if (dummyPrefix && normal) normal = ` ${normal}`;
    return marksSpaces ? normal.replaceAll(" ", SPACE_MARK) : normal;
  };
}

/** Replaces the longest match at each position. The map is a double-array trie of UTF-8 strings and the texts that replace them. */
function characterMap(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const trieSize = view.getUint32(0, true);
  const unit = (index) => view.getUint32(4 + 4 * index, true);
  const offset = (value) => (value >>> 10) << ((value & 512) >>> 6);
  const replacements = bytes.subarray(4 + trieSize);
  const numUnits = trieSize / 4;
  return (text) => {
    const source = new TextEncoder().encode(text), out = [];
    for (let start = 0; start < source.length; ) {
      let node = offset(unit(0)), length = 0, found = 0;
      for (let k = start; k < source.length; k++) {
        node ^= source[k];
        const value = node < numUnits ? unit(node) : 0;
        if ((value & 0x800000ff) !== source[k]) break;
        node ^= offset(value);
        if (value & 256) {
          length = k + 1 - start;
          found = unit(node) & 0x7fffffff;
        }
      }
      if (length) {
        while (replacements[found]) out.push(replacements[found++]);
        start += length;
      } else {
        do out.push(source[start++]);
        while ((source[start] & 0xc0) === 0x80); // the rest of a character
      }
    }
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(out));
  };
}
