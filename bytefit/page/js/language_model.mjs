// The forward pass, one position at a time: embed, run the plan, read the logits. The mirror of bytefit/model/.
//
// Legend: D model width, V vocabulary, H query heads, G key/value heads, K head width, S positions in the cache.

import { headDim, kvDim, takes } from "./layout.mjs";
import { multiply, rmsNorm, sigmoid } from "./linear.mjs";
import { rotaryTable, rotate } from "./rotary.mjs";

export const BOS_ID = 1;
const BIGRAM_FACTORS = [36313, 27191];
const TRIGRAM_FACTORS = [17911, 36313, 27191];

/** What the model has read: the ids, and keys and values of every plan step. Cutting `ids` short forgets the positions after. */
class Cache {
  constructor(config, capacity) {
    const size = capacity * kvDim(config);
    this.ids = [];
    this.layers = config.plan.map(() => ({ keys_SGK: new Float32Array(size), values_SGK: new Float32Array(size) }));
  }
}

export class LanguageModel {
  /** `weights`: Float32Array by parameter name. */
  constructor(config, weights) {
    this.config = config;
    this.weights = weights;
    this.rotary = rotaryTable(config.attention.rotary, headDim(config), config.context);
  }

  newCache(capacity = this.config.context) {
    return new Cache(this.config, capacity);
  }

  /** The logits (V) of what follows, once `id` is read after the cache's ids. */
  logits(cache, id) {
    const hidden_D = this.hidden(cache, id);
    const { head } = this.config;
    const logits_V = multiply(this.weights.get(head.tied ? "embedding.weight" : "head.matrix.weight"), hidden_D);
    if (head.softcap === null) return logits_V;
    const [positive, negative] = this.weights.get("head.caps") ?? [head.softcap, head.softcap];
    return logits_V.map((logit) => {
      const bound = logit > 0 ? positive : negative;
      return bound * Math.tanh(logit / bound);
    });
  }

  /** The normed last hidden state (D); `id` is appended to the cache. */
  hidden(cache, id) {
    const { config, weights } = this;
    const position = cache.ids.push(id) - 1;
    if (position >= config.context) throw new Error(`the model's context is ${config.context} tokens`);
    const x0_D = this.embed(cache.ids);
    const shared = { position, x0_D, extraValues: this.extraValues(id), firstValues: null };
    const skipScales = weights.get("skip_scales");
    let lanes = [x0_D];
    const skips = [];
    config.plan.forEach((step, i) => {
      if (Number.isInteger(step.position)) {
        const position_D = row(weights.get("loop_positions"), step.position, config.dim);
        lanes = lanes.map((x_D) => added(x_D, position_D));
      }
      if (step.pop !== null) {
        const skip_D = skips.pop(), start = step.pop * config.dim;
        lanes = lanes.map((x_D) => x_D.map((value, d) => value + skipScales[start + d] * skip_D[d]));
      }
      lanes = this.block(step.block, lanes, shared, cache.layers[i]);
      if (step.push) skips.push(mergeLanes(lanes));
    });
    return rmsNorm(mergeLanes(lanes));
  }

  // --- Embedding of the last of the ids: the table's row, what is added to it, the norm, the smear gate.

  embed(ids) {
    const { smear } = this.config;
    const position = ids.length - 1;
    const x_D = this.normedRow(ids, position);
    if (!smear || (smear.mask_documents && ids[position] === BOS_ID)) return x_D;
    const before_D = position ? this.normedRow(ids, position - 1) : new Float32Array(x_D.length);
    const gate_D = this.weights.get("smear.gate");
    return x_D.map((value, d) => value + sigmoid(gate_D[d]) * (before_D[d] - value));
  }

  normedRow(ids, position) {
    const { dim, bigram, trigram } = this.config;
    let x_D = row(this.weights.get("embedding.weight"), ids[position], dim);
    if (bigram) x_D = added(x_D, this.hashed("bigram", this.bigramRow(ids, position)));
    if (trigram) x_D = added(x_D, this.hashed("trigram", this.trigramRow(ids, position)));
    return rmsNorm(x_D);
  }

  /** What a hash table adds to a token's row (D). */
  hashed(part, index) {
    const row_E = row(this.weights.get(`${part}.table.weight`), index, this.config[part].dim);
    const [scale] = this.weights.get(`${part}.scale`);
    return multiply(this.weights.get(`${part}.projection.weight`), row_E).map((value) => scale * value);
  }

  bigramRow(ids, position) {
    const { buckets, mask_documents: masked } = this.config.bigram;
    if (position === 0 || (masked && ids[position] === BOS_ID)) return buckets - 1;
    const hashed = (BIGRAM_FACTORS[0] * ids[position]) ^ (BIGRAM_FACTORS[1] * ids[position - 1]);
    return (hashed >>> 0) % (buckets - 1);
  }

  trigramRow(ids, position) {
    const { buckets, mask_documents: masked } = this.config.trigram;
    const last = ids.slice(position - 2, position + 1);
    if (position < 2 || (masked && last.slice(1).includes(BOS_ID))) return buckets - 1;
    return last.reduce((sum, id, i) => sum + TRIGRAM_FACTORS[i] * id, 0) % (buckets - 1);
  }

  /** The shared value embedding (G*K) before the blocks' own scale, or null. */
  extraValues(id) {
    const valueEmbedding = this.config.value_embedding;
    if (!valueEmbedding) return null;
    const row_E = row(this.weights.get("value_embedding.table.weight"), id, valueEmbedding.dim);
    const [scale] = this.weights.get("value_embedding.scale");
    return multiply(this.weights.get("value_embedding.projection.weight"), row_E).map((value) => scale * value);
  }

  // --- A block: attention and MLP, each behind a norm, on one residual stream or on two lanes.

  block(block, lanes, shared, layer) {
    const of = (name) => this.weights.get(`blocks.${block}.${name}`);
    const stream_D = of("mix_stream"), embedding_D = of("mix_embedding");
    const attentionScale_D = of("attention_scale"), mlpScale_D = of("mlp_scale");
    const normScale = this.config.depth_scaled_norm ? (block + 1) ** -0.5 : 1;
    const mix = (x_D) => x_D.map((value, d) => stream_D[d] * value + embedding_D[d] * shared.x0_D[d]);
    const attention = (x_D) => scaledBy(attentionScale_D, this.attention(block, of, rmsNorm(x_D, normScale), shared, layer));
    const mlp = (x_D) => scaledBy(mlpScale_D, this.mlp(of, rmsNorm(x_D, normScale)));
    const laneWeights = of("lanes.weight");
    if (!laneWeights) {
      const mixed_D = mix(mergeLanes(lanes));
      const attended_D = added(mixed_D, attention(mixed_D));
      return [added(attended_D, mlp(attended_D))];
    }
    const [first_D, second_D] = (lanes.length === 2 ? lanes : [lanes[0], lanes[0]]).map(mix);
    const attended_D = attention(first_D), computed_D = mlp(second_D);
    return [first_D, second_D].map((x_D, j) =>
      x_D.map((value, d) => value + laneWeights[j] * attended_D[d] + laneWeights[2 + j] * computed_D[d]),
    );
  }

  mlp(of, x_D) {
    const { mlp } = this.config;
    const up_F = multiply(of("mlp.up.weight"), x_D);
    if (mlp.type === "SwigluConfig") {
      const gate_F = multiply(of("mlp.gate.weight"), x_D);
      return multiply(of("mlp.down.weight"), gate_F.map((value, f) => value * sigmoid(value) * up_F[f]));
    }
    return multiply(of("mlp.down.weight"), up_F.map((value) => Math.max(value, mlp.slope * value) ** 2));
  }

  attention(block, of, x_D, shared, layer) {
    const { attention: config } = this.config;
    const size = headDim(this.config), groupWidth = kvDim(this.config), { position } = shared;
    const q_HK = multiply(of("attention.query.weight"), x_D);
    const k_GK = multiply(of("attention.key.weight"), x_D);
    const gain_H = of("attention.q_gain");
    for (let h = 0; h < config.num_heads; h++) this.place(q_HK.subarray(h * size, (h + 1) * size), position, gain_H[h]);
    for (let g = 0; g < config.num_kv_heads; g++) this.place(k_GK.subarray(g * size, (g + 1) * size), position, 1);
    const v_GK = this.values(of, x_D, shared);
    layer.keys_SGK.set(k_GK, position * groupWidth);
    layer.values_SGK.set(v_GK, position * groupWidth);
    const y_HK = attend(q_HK, layer, position + 1, config.num_heads, config.num_kv_heads, size);
    if (config.exclusive && takes(config.exclusive.blocks, block)) {
      excludeOwnValue(y_HK, v_GK, config.num_heads / config.num_kv_heads, size);
    }
    const gate_HC = of("attention.output_gate.weight");
    if (gate_HC) {
      const opening_H = multiply(gate_HC, x_D.subarray(0, config.output_gate.channels));
      y_HK.forEach((value, i) => (y_HK[i] = value * 2 * sigmoid(opening_H[Math.floor(i / size)])));
    }
    return multiply(of("attention.out.weight"), y_HK);
  }

  /** Norm, rotary positions and gain on one head of q or k, in place. */
  place(head_K, position, gain) {
    head_K.set(rmsNorm(head_K, gain));
    rotate(head_K, this.rotary, position);
  }

  values(of, x_D, shared) {
    let v_GK = multiply(of("attention.value.weight"), x_D);
    const extraScale = of("attention.extra_value_scale");
    if (extraScale) v_GK = v_GK.map((value, i) => value + extraScale[0] * shared.extraValues[i]);
    shared.firstValues ??= v_GK;
    const mix = of("attention.value_residual.mix");
    return mix ? v_GK.map((value, i) => mix[0] * shared.firstValues[i] + mix[1] * value) : v_GK;
  }
}

function row(table, index, width) {
  return table.subarray(index * width, (index + 1) * width);
}

function scaledBy(scale_D, x_D) {
  return x_D.map((value, d) => scale_D[d] * value);
}

function added(x_D, y_D) {
  return x_D.map((value, d) => value + y_D[d]);
}

function mergeLanes(lanes) {
  return lanes.length === 1 ? lanes[0] : lanes[0].map((value, d) => (value + lanes[1][d]) / 2);
}

/** Softmax attention of one query position over the cache's `length` positions, with scale 1/sqrt(K). */
function attend(q_HK, { keys_SGK, values_SGK }, length, numHeads, numKvHeads, size) {
  const y_HK = new Float32Array(numHeads * size), weights_S = new Float64Array(length);
  const stride = numKvHeads * size;
  for (let h = 0; h < numHeads; h++) {
    const query = h * size, group = Math.floor((h * numKvHeads) / numHeads) * size;
    let largest = -Infinity, total = 0;
    for (let s = 0; s < length; s++) {
      let score = 0;
      for (let k = 0, key = s * stride + group; k < size; k++) score += q_HK[query + k] * keys_SGK[key + k];
      weights_S[s] = score / Math.sqrt(size);
      largest = Math.max(largest, weights_S[s]);
    }
    for (let s = 0; s < length; s++) total += weights_S[s] = Math.exp(weights_S[s] - largest);
    const y_K = new Float64Array(size);
    for (let s = 0; s < length; s++) {
      const weight = weights_S[s] / total;
      for (let k = 0, value = s * stride + group; k < size; k++) y_K[k] += weight * values_SGK[value + k];
    }
    y_HK.set(y_K, query);
  }
  return y_HK;
}

/** Each query head loses its component along the position's own value, of the key/value head that serves it. In place. */
function excludeOwnValue(y_HK, v_GK, headsInGroup, size) {
  for (let start = 0; start < y_HK.length; start += size) {
    const group = Math.floor(start / size / headsInGroup) * size;
    let squares = 0, along = 0;
    for (let k = 0; k < size; k++) {
      squares += v_GK[group + k] ** 2;
      along += v_GK[group + k] * y_HK[start + k];
    }
    along /= Math.max(squares, 1e-24); // PyTorch's smallest norm, 1e-12, squared
    for (let k = 0; k < size; k++) y_HK[start + k] -= along * v_GK[group + k];
  }
}
