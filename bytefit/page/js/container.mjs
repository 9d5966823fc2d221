// The container of an artifact: a magic number, a table of sections, their payloads (docs/format.md).

const MAGIC = "bytefit\n";
const VERSION = 2;
const HEAD_SIZE = 10; // magic, version, number of sections
const ENTRY_SIZE = 14; // kind, codec, stored bytes, raw bytes, CRC-32 of the stored bytes
const STORED = 0, ZLIB = 1; // the codecs that every browser can expand; a page holds no others
const KINDS = [
  null, "config", "tokenizer", "gains", "scales", "table", "attention", "mlp", "head", "projection", "attention_out", "exponents",
  "low_rank",
];

/** The expanded sections by kind (Map of Uint8Array). Throws where a checksum or a size is wrong. */
export async function readSections(data) {
  const view = viewOf(data);
  const magic = new TextDecoder().decode(data.subarray(0, 8));
  if (magic !== MAGIC || data[8] !== VERSION) throw new Error("this is no artifact that the page can read");
  const payloadStart = HEAD_SIZE + data[9] * ENTRY_SIZE;
  if (crc32(data.subarray(0, payloadStart)) !== view.getUint32(data.length - 4, true)) throw new Error("the artifact's header is damaged");
  const sections = new Map();
  let position = payloadStart;
  for (let entry = HEAD_SIZE; entry < payloadStart; entry += ENTRY_SIZE) {
    const kind = KINDS[data[entry]];
    const stored = view.getUint32(entry + 2, true), rawSize = view.getUint32(entry + 6, true);
    const payload = data.subarray(position, position + stored);
    position += stored;
    if (crc32(payload) !== view.getUint32(entry + 10, true)) throw new Error(`the artifact's ${kind} section is damaged`);
    const raw = await expand(payload, data[entry + 1]);
    if (raw.length !== rawSize) throw new Error(`the artifact's ${kind} section has ${raw.length} bytes, not ${rawSize}`);
    sections.set(kind, raw);
  }
  return sections;
}

export function viewOf(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

async function expand(payload, codec) {
  if (codec === STORED) return payload;
  if (codec !== ZLIB) throw new Error(`codec ${codec} cannot be expanded here`);
  const stream = new Blob([payload]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let k = 0; k < 8; k++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}
