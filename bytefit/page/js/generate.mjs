// Continuing a text, token by token (score/generate.py).

import { BOS_ID } from "./language_model.mjs";

/**
 * Yields the id of each new token; stops where the model ends the document.
 * `temperature`: 0 always takes the likeliest; `topP`: sample from the likeliest tokens that hold this much probability together.
 */
export function* generate({ model, tokenizer }, prompt, { numTokens, temperature, topP, seed }) {
  const { context } = model.config;
  const random = randomNumbers(seed);
  const ids = [BOS_ID, ...tokenizer.encode(prompt)];
  const cache = model.newCache();
  let unread = ids.slice(-(context - Math.floor(context / 4)));
  for (let k = 0; k < numTokens; k++) {
    if (cache.ids.length + unread.length > context) {
      cache.ids.length = 0; // forget the older half and read the newer half again
      unread = ids.slice(-Math.floor(context / 2));
    }
    for (const id of unread.slice(0, -1)) model.hidden(cache, id);
    const logits_V = model.logits(cache, unread.at(-1));
    tokenizer.isControl.forEach((silent, id) => {
      if (silent && id !== BOS_ID) logits_V[id] = -Infinity; // BOS ends the document; the other control ids say nothing
    });
    const token = sample(logits_V, temperature, topP, random);
    if (token === BOS_ID) return;
    ids.push(token);
    unread = [token];
    yield token;
  }
}

function sample(logits_V, temperature, topP, random) {
  const largest = logits_V.reduce((a, b) => Math.max(a, b));
  if (temperature === 0) return logits_V.indexOf(largest);
  const weights_V = Float64Array.from(logits_V, (logit) => Math.exp((logit - largest) / temperature));
  const total = weights_V.reduce((sum, weight) => sum + weight, 0);
  // Tokens up to this weight hold at most 1 - topP together: they are never drawn, and need not be sorted.
  const least = ((1 - topP) * total) / weights_V.length;
  const order = Array.from(weights_V.keys()).filter((id) => weights_V[id] > least).sort((a, b) => weights_V[b] - weights_V[a]);
  let kept = 0, mass = 0;
  while (kept < order.length && mass < topP * total) mass += weights_V[order[kept++]];
  let left = random() * mass;
  for (let k = 0; k < kept - 1; k++) {
    left -= weights_V[order[k]];
    if (left < 0) return order[k];
  }
  return order[kept - 1];
}

/** Numbers in [0, 1) that follow from the seed: a 32-bit xorshift generator (Marsaglia 2003), started from a mixed seed. */
function randomNumbers(seed) {
  let state = Math.imul(seed + 1, 0x9e3779b1) | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
