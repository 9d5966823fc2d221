// Decoding integer matrices: range decoder, adaptive bits, and the model of a matrix. The mirror of artifact/code_kernel.py.
//
// Python computes in 64-bit integers. Here a number is a double, exact below 2^53: products are split off from shifts (a shift is a
// division and a floor), 32-bit operators serve where 31 bits are enough, and `exactly` stops the decoder where 2^53 would not do, which
// takes codes far beyond those of any trained model.

// --- Range decoder: a 32-bit range is narrowed by 16-bit probabilities.

const VALUE = 0, RANGE = 1; // the offset into the range; the range
const LEAST_RANGE = 2 ** 24; // between bits the range is at least this
const EVEN = 2 ** 15;

class RangeDecoder {
  constructor(bytes) {
    this.bytes = bytes;
    let start = 0;
    for (let k = 0; k < 4; k++) start = start * 256 + (bytes[k] ?? 0);
    this.state = Uint32Array.of(Math.min(start, 2 ** 32 - 2), 2 ** 32 - 1);
    this.position = 4;
  }

  /** The next bit, which is 1 with `probability` / 2^16. */
  next(probability) {
    let value = this.state[VALUE], width = this.state[RANGE];
    const bound = Math.floor((width * probability) / 65536);
    const bit = value < bound ? 1 : 0;
    if (bit) {
      width = bound;
    } else {
      width -= bound;
      value -= bound;
    }
    while (width < LEAST_RANGE) {
      width *= 256;
      value = value * 256 + (this.position < this.bytes.length ? this.bytes[this.position] : 0);
      this.position++;
    }
    this.state[VALUE] = value;
    this.state[RANGE] = width;
    return bit;
  }
}

// --- Adaptive bits: words of 31 bits, 21 of them P(bit is 1), 10 a count of what was seen.

const COUNT_BITS = 10;
const MOST_SEEN = 2 ** COUNT_BITS - 1;
const UNSEEN = 2 ** 30;
const CERTAIN = 2 ** 21 - 1;
const RATES = Float64Array.from({ length: MOST_SEEN + 1 }, (_, n) => Math.floor((10 * 65536) / (10 * n + 16)));
const LEAST = 16; // of 2^16: the lowest probability to code with

function learnt(word, bit) {
  let probability = word >> COUNT_BITS;
  const count = word & MOST_SEEN;
  if (bit) probability += Math.floor(((CERTAIN - probability) * RATES[count]) / 65536);
  else probability -= Math.floor((probability * RATES[count]) / 65536);
  return (probability << COUNT_BITS) | Math.min(count + 1, MOST_SEEN);
}

/** A bit under the mean of two adaptive probabilities, which both learn it. */
function decodeBit(coder, words, first, second) {
  const one = words[first], other = words[second];
  const probability = ((one >> COUNT_BITS) + (other >> COUNT_BITS)) >> 6;
  const bit = coder.next(Math.min(Math.max(probability, LEAST), 65536 - LEAST));
  words[first] = learnt(one, bit);
  words[second] = learnt(other, bit);
  return bit;
}

// --- Magnitudes: their number of bits in unary, three modelled bits below the leading one, the others about even.

const LARGEST_CODE = 2 ** 20;
const MOST_BITS = 22, TREE_SIZE = 8, TREE_DEPTH = 3, NUM_TREES = 12;
const NUM_NODES = MOST_BITS + TREE_SIZE * NUM_TREES;

function decodeMagnitude(coder, words, first, second) {
  let numBits = 0;
  while (numBits < MOST_BITS && decodeBit(coder, words, first + numBits, second + numBits)) numBits++;
  if (numBits < 2) return numBits;
  const tree = MOST_BITS + TREE_SIZE * Math.min(numBits - 2, NUM_TREES - 1);
  const numEven = Math.max(numBits - 1 - TREE_DEPTH, 0);
  let prefix = 1;
  for (let k = numBits - 2; k >= numEven; k--) {
    const node = tree + prefix;
    prefix = 2 * prefix + decodeBit(coder, words, first + node, second + node);
  }
  for (let k = numEven - 1; k >= 0; k--) prefix = 2 * prefix + coder.next(EVEN);
  return prefix;
}

// --- The magnitude to expect: column factor times row factor, in fixed point.

const UNIT = 256, ROW_UNIT = 4096; // one, in magnitudes and column factors, and in row factors
const START = 2 * UNIT;
const LARGEST = 2 ** 30, SMALLEST = 2;
const LARGEST_ROW = 2 ** 28, SMALLEST_ROW = 16;
const COLUMN_PRIOR = 2, ROW_PRIOR = 6;
const NUM_BUCKETS = 100, NUM_STATES = 8;
const NUM_CONTEXTS = NUM_BUCKETS * NUM_STATES;

/** The logarithm in eighths of an octave, linear within the octave and rounded down; `value` is at least 1 and below 2^31. */
function eighths(value) {
  const octaves = 31 - Math.clz32(value);
  const leading = octaves < 3 ? value << (3 - octaves) : value >> (octaves - 3); // the leading one and three bits below it
  return 8 * octaves + (leading & 7);
}

function exactly(number) {
  if (number >= Number.MAX_SAFE_INTEGER) throw new Error("the artifact's codes are too large for this page's numbers");
  return number;
}

function rowFactor(rowSum, rowExpected, mean, typical) {
  const prior = ROW_PRIOR * mean;
  const factor = Math.floor(exactly(rowSum * ROW_UNIT + prior * typical) / (rowExpected + prior));
  return Math.min(Math.max(factor, SMALLEST_ROW), LARGEST_ROW);
}

// --- Linear prediction from the codes to the left: normalised least mean squares, a filter for each column.

const TRIAL = 64, MOST_COLUMNS = 1024;
const LARGEST_WEIGHT = 2 ** 20, WEIGHT_UNIT = 65536, LARGEST_INPUT = 2 ** 14;
const GAIN_UNIT = 2 ** 27; // of weights, with the gain's further fraction bits, at a step of 1/8
const GUARD_UNIT = 2 ** 14;

function predict(weights, start, inputs, count) {
  let total = 0;
  for (let k = 0; k < count; k++) total += weights[start + k] * inputs[k];
  return Math.min(Math.max(Math.floor((total + WEIGHT_UNIT / 2) / WEIGHT_UNIT), -LARGEST_CODE), LARGEST_CODE);
}

function adapt(weights, start, inputs, count, error, energy) {
  const gain = Math.floor((Math.min(Math.max(error, -LARGEST_INPUT), LARGEST_INPUT) * GAIN_UNIT) / (energy + 1));
  for (let k = 0; k < count; k++) {
    const weight = weights[start + k] + Math.floor((gain * inputs[k]) / GUARD_UNIT);
    weights[start + k] = Math.min(Math.max(weight, -LARGEST_WEIGHT), LARGEST_WEIGHT);
  }
}

// --- Trellises: by states, the following state by parity, and which of two quantisers a state has (quant/trellis_tables.py).

export const TRELLIS = {
  0: { next: [0, 0], quantiser: [0] },
  4: { next: [0, 2, 2, 0, 1, 3, 3, 1], quantiser: [0, 0, 1, 1] },
  8: { next: [0, 2, 5, 7, 1, 3, 6, 4, 2, 0, 4, 6, 3, 1, 7, 5], quantiser: [0, 1, 0, 1, 0, 1, 0, 1] },
};

// --- A stream of matrices, which learns from each for the next.

export class CodeStream {
  constructor(bytes) {
    this.coder = new RangeDecoder(bytes);
    this.words = new Int32Array(2 * NUM_CONTEXTS * NUM_NODES).fill(UNSEEN);
    this.mean = START;
  }

  /** The next matrix, row by row (Int32Array). `trellis`: states of the columns' trellis, 0 where there is none. */
  matrix(numRows, numColumns, trellis) {
    const { coder, words } = this;
    const { next, quantiser } = TRELLIS[trellis];
    const codes = new Int32Array(numRows * numColumns);
    const states = new Int32Array(numColumns);
    const sums = new Float64Array(numColumns), expected = new Float64Array(numColumns), sizes = new Float64Array(numColumns);
    let mean = this.mean, typical = ROW_UNIT;
    let learning = numRows > TRIAL && numColumns <= MOST_COLUMNS;
    const filterSize = numColumns + 1;
    const weights = new Float64Array(learning ? numColumns * filterSize : 0), inputs = new Float64Array(filterSize);
    let plain = 0, left = 0, meanEnergy = 0; // decaying sums of |code| and of |code - prediction|; mean energy of a row
    for (let i = 0; i < numRows; i++) {
      for (let j = 0; j < numColumns; j++) {
        expected[j] = Math.max(Math.floor((sums[j] + COLUMN_PRIOR * mean) / (i + COLUMN_PRIOR)), SMALLEST);
      }
      let rowSum = 0, rowExpected = 0, rowPlain = 0, rowLeft = 0;
      const predicting = 64 * left < 63 * plain;
      inputs[0] = Math.min(Math.floor(mean / UNIT), LARGEST_INPUT);
      let energy = inputs[0] * inputs[0];
      for (let j = 0; j < numColumns; j++) {
        const state = states[j];
        // Above 2^25 all scales share the last bucket, so that the largest products need not be exact.
        const product = expected[j] * rowFactor(rowSum, rowExpected, mean, typical);
        const scale = eighths(Math.min(Math.floor(product / ROW_UNIT) + 3, LARGEST));
        const first = (Math.min(scale >> 1, NUM_BUCKETS - 1) * NUM_STATES + state) * NUM_NODES;
        const second = (Math.min((scale + 1) >> 1, NUM_BUCKETS - 1) * NUM_STATES + state + NUM_CONTEXTS) * NUM_NODES;
        const prediction = learning ? predict(weights, j * filterSize, inputs, j + 1) : 0;
        const offset = predicting ? prediction : 0;

        const size = decodeMagnitude(coder, words, first, second);
        const negative = size !== 0 && coder.next(EVEN) === 1;
        const code = Math.min(Math.max(negative ? offset - size : offset + size, -LARGEST_CODE), LARGEST_CODE);
        codes[i * numColumns + j] = code;

        if (learning) {
          adapt(weights, j * filterSize, inputs, j + 1, code - prediction, energy + Math.floor(meanEnergy / 64));
          inputs[j + 1] = Math.min(Math.max(code, -LARGEST_INPUT), LARGEST_INPUT);
          energy += inputs[j + 1] * inputs[j + 1];
          rowPlain += Math.abs(code);
          rowLeft += Math.abs(code - prediction);
        }
        sizes[j] = size * UNIT;
        if (trellis) {
          if (size) sizes[j] -= (quantiser[state] * UNIT) / 2; // the second quantiser's values lie half a step further in
          states[j] = next[2 * state + (code & 1)];
        }
        rowSum += sizes[j];
        rowExpected += expected[j];
      }

      const factor = rowFactor(rowSum, rowExpected, mean, typical);
      let total = 0;
      for (let j = 0; j < numColumns; j++) {
        sums[j] += Math.min(Math.floor((sizes[j] * ROW_UNIT) / factor), LARGEST);
        total += sums[j];
      }
      mean = Math.max(Math.floor(exactly(total) / (numColumns * (i + 1))), SMALLEST);
      typical += (factor - typical) >> 3;
      if (learning) {
        plain += rowPlain - Math.floor(plain / 32);
        left += rowLeft - Math.floor(left / 32);
        meanEnergy += Math.floor((energy - meanEnergy) / Math.min(i + 1, 16));
        if (i === TRIAL && 64 * left >= 63 * plain) learning = false;
      }
    }
    this.mean = Math.min(Math.max(Math.floor((mean * typical) / ROW_UNIT), SMALLEST), LARGEST);
    return codes;
  }

  /** Throws where the stream is not exactly as long as its matrices need: the decoder is three bytes ahead of its end. */
  end() {
    if (this.coder.position - 3 !== this.coder.bytes.length) throw new Error("the artifact's codes do not decode");
  }
}
