// Rotary positions, half-split convention, on the first `dims` channels of a head (model/rotary.py).

/** cos and sin (context, dims / 2), row by row. */
export function rotaryTable(config, headDim, context) {
  const dims = config.dims ?? headDim, half = dims / 2;
  const stretch = config.length === null ? 1 : config.length / config.reference_length;
  const base = stretch === 1 ? config.base : config.base * stretch ** (dims / (dims - 2));
  // In bf16 positions, frequencies, angles and what comes out are rounded, as the contest's scripts did.
  const round = config.table_dtype === "bfloat16" ? bfloat16 : (value) => value;
  const cos = new Float32Array(context * half), sin = new Float32Array(context * half);
  for (let position = 0; position < context; position++) {
    for (let k = 0; k < half; k++) {
      const angle = round(round(position) * round(base ** ((-2 * k) / dims)));
      cos[position * half + k] = round(Math.cos(angle));
      sin[position * half + k] = round(Math.sin(angle));
    }
  }
  return { cos, sin, half };
}

/** Rotate channel i with channel i + dims/2 of one head, in place; the channels after `dims` stay. */
export function rotate(head_K, { cos, sin, half }, position) {
  const start = position * half;
  for (let k = 0; k < half; k++) {
    const first = head_K[k], second = head_K[half + k];
    head_K[k] = first * cos[start + k] + second * sin[start + k];
    head_K[half + k] = second * cos[start + k] - first * sin[start + k];
  }
}

const word = new DataView(new ArrayBuffer(4));

/** The nearest bf16 number, ties to even. */
function bfloat16(value) {
  word.setFloat32(0, value);
  const bits = word.getUint32(0);
  word.setUint32(0, (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000);
  return word.getFloat32(0);
}
