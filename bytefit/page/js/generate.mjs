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
  const order = Array.from(logits_V.keys()).sort((a, b) => logits_V[b] - logits_V[a]);
  if (temperature === 0) return order[0];
  const weights = order.map((id) => Math.exp((logits_V[id] - logits_V[order[0]]) / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let kept = 0, before = 0;
  while (kept < weights.length && before < topP * total) before += weights[kept++];
  let left = random() * before;
  for (let k = 0; k < kept - 1; k++) {
    left -= weights[k];
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
