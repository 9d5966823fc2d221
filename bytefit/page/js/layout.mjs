// Every parameter of a model, as its config implies: name, role and shape, in the order in which artifacts hold them.

/** The blocks that a part is in: null names all. */
export function takes(blocks, block) {
  return blocks === null || blocks.includes(block);
}

export function headDim(config) {
  return config.dim / config.attention.num_heads;
}

/** Width of keys and of values over all their heads. */
export function kvDim(config) {
  return config.attention.num_kv_heads * headDim(config);
}

/** A list of {name, role, shape}; a scalar's shape is []. */
export function layout(config) {
  const { dim, plan, smear, head } = config;
  const valueEmbedding = config.value_embedding;
  const skips = new Set(plan.map((step) => step.pop).filter((pop) => pop !== null));
  const numBlocks = 1 + Math.max(...plan.map((step) => step.block));
  const found = [];
  const add = (name, role, ...shape) => found.push({ name, role, shape });
  if (config.loop_positions) add("loop_positions", "gain", config.loop_positions.count, dim);
  add("skip_scales", "gain", skips.size, dim);
  add("embedding.weight", "table", config.vocab_size, dim);
  for (const part of ["bigram", "trigram"]) {
    const table = config[part];
    if (!table) continue;
    add(`${part}.scale`, "gain");
    add(`${part}.table.weight`, "table", table.buckets, table.dim);
    add(`${part}.projection.weight`, "projection", dim, table.dim);
  }
  if (smear) add("smear.gate", "gain", dim);
  if (valueEmbedding) {
    add("value_embedding.scale", "gain");
    add("value_embedding.table.weight", "table", config.vocab_size, valueEmbedding.dim);
    add("value_embedding.projection.weight", "projection", kvDim(config), valueEmbedding.dim);
  }
  for (let block = 0; block < numBlocks; block++) addBlock(add, config, block);
  if (head.softcap?.type === "LearnedCaps") add("head.caps", "gain", 2);
  if (!head.tied) add("head.matrix.weight", "head", config.vocab_size, dim);
  return found;
}

function addBlock(add, config, block) {
  const { dim, attention, mlp, lanes } = config;
  const own = `blocks.${block}.`;
  const isFirst = block === config.plan[0].block;
  for (const name of ["mix_stream", "mix_embedding", "attention_scale", "mlp_scale"]) add(own + name, "gain", dim);
  add(own + "attention.q_gain", "gain", attention.num_heads);
  if (config.value_embedding?.blocks.includes(block)) add(own + "attention.extra_value_scale", "gain");
  add(own + "attention.query.weight", "attention", dim, dim);
  add(own + "attention.key.weight", "attention", kvDim(config), dim);
  add(own + "attention.value.weight", "attention", kvDim(config), dim);
  add(own + "attention.out.weight", "attention_out", dim, dim);
  if (attention.value_residual && !isFirst) add(own + "attention.value_residual.mix", "gain", 2);
  const gate = attention.output_gate;
  if (gate && takes(gate.blocks, block)) add(own + "attention.output_gate.weight", "gain", attention.num_heads, gate.channels);
  const hidden = Math.max(1, Math.floor(mlp.width * dim));
  if (mlp.type === "SwigluConfig") add(own + "mlp.gate.weight", "mlp", hidden, dim);
  add(own + "mlp.up.weight", "mlp", hidden, dim);
  add(own + "mlp.down.weight", "mlp", dim, hidden);
  if (lanes && block >= lanes.start) add(own + "lanes.weight", "gain", 2, 2);
}
