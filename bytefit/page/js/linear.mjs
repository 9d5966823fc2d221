// Maps and norms on single positions. Sums are doubles, results fp32.

/** y = W x; the weight (rows, columns) row by row. Four rows at a time, so that each entry of x is read once for four products. */
export function multiply(weight, x, y = new Float32Array(weight.length / x.length)) {
  const rows = y.length, columns = x.length;
  let r = 0;
  for (; r + 3 < rows; r += 4) {
    const first = r * columns, second = first + columns, third = second + columns, fourth = third + columns;
    let a = 0, b = 0, c = 0, d = 0;
    for (let k = 0; k < columns; k++) {
      const value = x[k];
      a += weight[first + k] * value;
      b += weight[second + k] * value;
      c += weight[third + k] * value;
      d += weight[fourth + k] * value;
    }
    y[r] = a;
    y[r + 1] = b;
    y[r + 2] = c;
    y[r + 3] = d;
  }
  for (; r < rows; r++) {
    let a = 0;
    for (let k = 0; k < columns; k++) a += weight[r * columns + k] * x[k];
    y[r] = a;
  }
  return y;
}

const EPSILON = 2 ** -23; // PyTorch's for fp32

/** Root-mean-square norm times `scale`. */
export function rmsNorm(x, scale = 1) {
  let squares = 0;
  for (const value of x) squares += value * value;
  const factor = scale / Math.sqrt(squares / x.length + EPSILON);
  return x.map((value) => value * factor);
}

export function sigmoid(value) {
  return 1 / (1 + Math.exp(-value));
}
