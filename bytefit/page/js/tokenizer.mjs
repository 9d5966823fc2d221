// Text to ids and ids to bytes (data/tokenizer.py, artifact/tokenizer_part.py).

import { viewOf } from "./container.mjs";
import { mergePieces } from "./merge.mjs";
import { normaliser, readMessage } from "./normaliser.mjs";

const BYTES_MARK = "bytefit bytes tokenizer\n";
const NORMAL = 1, UNKNOWN = 2, CONTROL = 3, BYTE = 6; // types of pieces in SentencePiece
const STANDARD = [
  ["<pad>", CONTROL], ["<s>", CONTROL], ["</s>", CONTROL], ["<unk>", UNKNOWN],
  ...Array.from({ length: 256 }, (_, value) => [`<0x${value.toString(16).toUpperCase().padStart(2, "0")}>`, BYTE]),
];
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Texts are UTF-8 bytes throughout. */
class Tokenizer {
  /**
   * tokenBytes: what each id stands for, nothing for control ids; isControl: ids that stand for no text;
   * encodeText: ids of a string, which may lose what the vocabulary cannot say.
   */
  constructor(tokenBytes, isControl, encodeText) {
    this.tokenBytes = tokenBytes;
    this.isControl = isControl;
    this.encodeText = encodeText;
    this.byteIds = Array.from({ length: 256 }, (_, value) => tokenBytes.findIndex((bytes) => bytes.length === 1 && bytes[0] === value));
  }

  decode(ids) {
    const parts = Array.from(ids, (id) => this.tokenBytes[id]);
    const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((position, part) => (bytes.set(part, position), position + part.length), 0);
    return bytes;
  }

  /** Ids whose bytes are exactly `bytes`: what the vocabulary cannot say is found by bisection and written with byte pieces. */
  encode(bytes) {
    const text = decodeStrictly(bytes);
    if (text !== null) {
      const ids = this.encodeText(text);
      if (equal(this.decode(ids), bytes)) return ids;
    }
    if (bytes.length <= 4) return Array.from(bytes, (byte) => this.byteIds[byte]);
    let middle = bytes.length >> 1;
    for (let i = 0; i < 3; i++) // keep a character in one half; more such bytes in a row are not text
      if (middle < bytes.length - 1 && (bytes[middle] & 0xc0) === 0x80) middle++;
    return [...this.encode(bytes.subarray(0, middle)), ...this.encode(bytes.subarray(middle))];
  }
}

function decodeStrictly(bytes) {
  try {
    return strict.decode(bytes);
  } catch {
    return null;
  }
}

function equal(a, b) {
  return a.length === b.length && a.every((byte, k) => byte === b[k]);
}

/** A tokenizer from the artifact's tokenizer section. */
export function readTokenizer(raw) {
  if (new TextDecoder().decode(raw.subarray(0, BYTES_MARK.length)) === BYTES_MARK) return bytesTokenizer();
  const size = viewOf(raw).getUint32(0, true);
  const record = JSON.parse(strict.decode(raw.subarray(4, 4 + size)));
  const pieces = piecesOf(record);
  const spec = readMessage(raw.subarray(4 + size)).get(3)?.[0] ?? new Uint8Array();
  const normalise = normaliser(readMessage(spec));
  const scores = new Map(pieces.flatMap(([name, score, type], id) => (type === NORMAL ? [[name, { id, score }]] : [])));
  const tokenBytes = pieces.map(bytesOf);
  const byteIds = new Map(pieces.flatMap(([, , type], id) => (type === BYTE ? [[tokenBytes[id][0], id]] : [])));
  const encodeText = (text) =>
    mergePieces(normalise(text), scores).flatMap((piece) => {
      const known = scores.get(piece);
      return known ? [known.id] : Array.from(new TextEncoder().encode(piece), (byte) => byteIds.get(byte));
    });
  return new Tokenizer(tokenBytes, pieces.map(([, , type]) => type === CONTROL || type === UNKNOWN), encodeText);
}

function bytesTokenizer() {
  const tokenBytes = Array.from({ length: 260 }, (_, id) => (id < 4 ? new Uint8Array() : Uint8Array.of(id - 4)));
  const encodeText = (text) => Array.from(new TextEncoder().encode(text), (byte) => byte + 4);
  return new Tokenizer(tokenBytes, tokenBytes.map((_, id) => id < 4), encodeText);
}

/** [name, score, type] of every piece: the standard ones, then the artifact's own, whose scores count down from 0. */
function piecesOf({ pieces, count, unusual }) {
  const own = pieces ? pieces.split("\0") : [];
  const head = count === STANDARD.length + own.length ? STANDARD.map(([name, type]) => [name, 0, type]) : [];
  const found = [...head, ...own.map((name, i) => [name, -i, NORMAL])];
  for (const [i, score, type] of unusual) found[i] = [found[i][0], score, type];
  return found;
}

function bytesOf([name, , type]) {
  if (type === CONTROL || type === UNKNOWN) return new Uint8Array();
  if (type === BYTE) return Uint8Array.of(parseInt(name.slice(3, 5), 16));
  return new TextEncoder().encode(name.replaceAll("\u2581", " "));
}
