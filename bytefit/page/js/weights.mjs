// From sections to weights: codes become points, points times steps become fp32 numbers, bit for bit those that Python loads
// (artifact/weights_part.py, quant/codes.py). Every product is rounded to fp32 where Python rounds it.

import { viewOf } from "./container.mjs";
import { CodeStream, TRELLIS } from "./code_stream.mjs";

const CODED_ROLES = ["table", "attention", "attention_out", "mlp", "projection", "head"];
// How a matrix's steps are stored, in the low half of its byte; the states of its trellis stand in the high half.
const ONE_STEP = 0, HALF_ROWS = 1, SINGLE_ROWS = 2, EXPONENTS = 3, FINE_EXPONENTS = 4;
const COARSE = 4, FINE = 32; // parts of an octave

/** Every parameter as a Float32Array, by name, matrices row by row. `pause`: awaited after each matrix with the share that is done. */
export async function readWeights(sections, parameters, codec, pause) {
  const coded = parameters.filter(({ role }) => role !== "gain");
  const gains = parameters.filter(({ role }) => role === "gain");
  const weights = readGains(sections.get("gains"), gains);
  const steps = readSteps(sections, coded);
  const corrections = readCorrections(sections.get("low_rank"), coded);
  const total = coded.reduce((sum, parameter) => sum + sizeOf(parameter), 0);
  let done = 0;
  for (const role of CODED_ROLES) {
    const members = coded.filter((parameter) => parameter.role === role);
    if (!members.length) continue;
    const codes = codec === "context" ? new CodeStream(sections.get(role)) : new PlainCodes(sections.get(role), members);
    for (const { name, shape: [rows, columns] } of members) {
      const { scale, trellis } = steps.get(name);
      const points = pointsOf(codes.matrix(rows, columns, trellis), columns, trellis);
      const values = scaled(points, columns, scale);
      for (const [left, right] of corrections.get(name) ?? []) addOuter(values, left, right);
      weights.set(name, values);
      done += values.length;
      await pause(done / total);
    }
    codes.end();
  }
  return weights;
}

function sizeOf({ shape }) {
  return shape.reduce((product, length) => product * length, 1);
}

// --- Points and weights

/** Trellis codes to points in half steps, column by column; without a trellis a code is its own point. */
function pointsOf(codes, columns, trellis) {
  if (!trellis) return codes;
  const { next, quantiser } = TRELLIS[trellis];
  const states = new Uint8Array(columns);
  return codes.map((code, k) => {
    const state = states[k % columns];
    states[k % columns] = next[2 * state + (code & 1)];
    return 2 * code - quantiser[state] * Math.sign(code);
  });
}

/** `scale`: fp32 factors of the rows (or one for all) and, where there are any, of the columns. */
function scaled(points, columns, { ofRows, ofColumns }) {
  const values = new Float32Array(points.length);
  for (let k = 0; k < points.length; k++) {
    const row = ofRows.length === 1 ? 0 : Math.floor(k / columns);
    const value = Math.fround(points[k] * ofRows[row]);
    values[k] = ofColumns ? value * ofColumns[k % columns] : value;
  }
  return values;
}

function addOuter(values, left, right) {
  for (let k = 0; k < values.length; k++) {
    values[k] += Math.fround(left[Math.floor(k / right.length)] * right[k % right.length]);
  }
}

// --- Steps

/** By name of the matrix: {scale, trellis}. */
function readSteps(sections, coded) {
  const view = viewOf(sections.get("scales"));
  const exponents = sections.has("exponents") ? new CodeStream(sections.get("exponents")) : null;
  const found = new Map();
  let position = 0;
  for (const { name, shape: [rows, columns] } of coded) {
    const kind = view.getUint8(position) & 15, trellis = view.getUint8(position) >> 4;
    position++;
    let scale;
    if (kind === HALF_ROWS) {
      const unit = twoToThe(-view.getInt8(position));
      const start = position + 1;
      scale = { ofRows: Float32Array.from({ length: rows }, (_, i) => halfFloat(view.getUint16(start + 2 * i, true)) * unit) };
      position += 1 + 2 * rows;
    } else if (kind === ONE_STEP || kind === SINGLE_ROWS) {
      const count = kind === ONE_STEP ? 1 : rows;
      scale = { ofRows: floatsAt(view, position, count) };
      position += 4 * count;
    } else if (kind === EXPONENTS || kind === FINE_EXPONENTS) {
      const base = view.getFloat32(position, true), parts = kind === EXPONENTS ? COARSE : FINE;
      const ofRows = exponents.matrix(1, rows, 0), ofColumns = exponents.matrix(1, columns, 0);
      scale = { ofRows: powers(ofRows, parts).map((power) => base * power), ofColumns: powers(ofColumns, parts) };
      position += 4;
    } else {
      throw new Error(`the artifact gives ${name} steps of the unknown kind ${kind}`);
    }
    found.set(name, { scale, trellis });
  }
  if (position !== view.byteLength) throw new Error("the artifact's scales section does not fit its model");
  exponents?.end();
  return found;
}

function floatsAt(view, start, count) {
  return Float32Array.from({ length: count }, (_, i) => view.getFloat32(start + 4 * i, true));
}

function twoToThe(exponent) {
  let power = 1;
  for (let k = 0; k < Math.abs(exponent); k++) power *= exponent < 0 ? 0.5 : 2;
  return power;
}

function halfFloat(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const magnitude = exponent ? (1024 + fraction) * twoToThe(exponent - 25) : fraction * twoToThe(-24);
  return bits >> 15 ? -magnitude : magnitude;
}

/** 2^(k/32) for k in 0…31: products of correctly rounded square roots, as in quant/codes.py. */
const FRACTIONS = (() => {
  const values = new Float64Array(FINE).fill(1);
  let root = 2;
  for (const bit of [16, 8, 4, 2, 1]) {
    root = Math.sqrt(root);
    for (let k = 0; k < FINE; k++) if (k & bit) values[k] *= root;
  }
  return values;
})();

function powers(exponents, parts) {
  return Float32Array.from(exponents, (exponent) => {
    const fine = exponent * (FINE / parts);
    const octave = Math.floor(fine / FINE);
    return FRACTIONS[fine - octave * FINE] * twoToThe(octave);
  });
}

// --- Gains

function readGains(raw, gains) {
  const view = viewOf(raw), sizes = gains.map(sizeOf), found = new Map();
  if (raw[0] === 0) {
    let position = 1;
    gains.forEach(({ name }, i) => {
      found.set(name, floatsAt(view, position, sizes[i]));
      position += 4 * sizes[i];
    });
    if (position !== raw.length) throw new Error("the artifact's gains section does not fit its model");
    return found;
  }
  const step = view.getFloat32(1, true), length = view.getUint32(5, true);
  const middleStream = new CodeStream(raw.subarray(9, 9 + length)), rest = new CodeStream(raw.subarray(9 + length));
  const middles = middleStream.matrix(1, gains.length, 0);
  gains.forEach(({ name }, i) => {
    const codes = sizes[i] ? rest.matrix(1, sizes[i], 0) : [];
    found.set(name, Float32Array.from(codes, (code) => Math.fround(code + middles[i]) * step));
  });
  middleStream.end();
  rest.end();
  return found;
}

// --- Low-rank corrections

/** By name of the matrix: pairs of fp32 vectors whose outer products are added in order. */
function readCorrections(raw, coded) {
  const found = new Map();
  if (!raw) return found;
  const view = viewOf(raw);
  const heads = [];
  let position = 1;
  for (let k = 0; k < raw[0]; k++) {
    const parameter = coded[view.getUint16(position, true)], rank = raw[position + 2];
    const left = floatsAt(view, position + 3, rank), right = floatsAt(view, position + 3 + 4 * rank, rank);
    heads.push({ parameter, steps: [left, right] });
    position += 3 + 8 * rank;
  }
  const stream = new CodeStream(raw.subarray(position));
  for (const { parameter: { name, shape }, steps } of heads) {
    const [left, right] = steps.map((ofRows, side) => scaled(stream.matrix(ofRows.length, shape[side], 0), shape[side], { ofRows }));
    const factor = (values, side, k) => values.subarray(k * shape[side], (k + 1) * shape[side]);
    found.set(name, Array.from(steps[0], (_, k) => [factor(left, 0, k), factor(right, 1, k)]));
  }
  stream.end();
  return found;
}

// --- Codes of the other codecs: planes of signed bytes over all matrices of a role, the lowest first.

class PlainCodes {
  constructor(raw, members) {
    this.numPlanes = raw[0];
    this.size = members.reduce((sum, parameter) => sum + sizeOf(parameter), 0);
    this.planes = new Int8Array(raw.buffer, raw.byteOffset + 1, raw.length - 1);
    this.position = 0;
  }

  matrix(rows, columns) {
    const codes = new Int32Array(rows * columns);
    for (let plane = this.numPlanes - 1; plane >= 0; plane--) {
      const start = plane * this.size + this.position;
      for (let k = 0; k < codes.length; k++) codes[k] = codes[k] * 256 + this.planes[start + k];
    }
    this.position += codes.length;
    return codes;
  }

  end() {
    if (this.planes.length !== this.numPlanes * this.size) throw new Error("the artifact's codes do not fit its model");
  }
}
