// What every token of a text costs, with the context that `bytefit compress` gives it (score/coder.py, score/windows.py).

import { BOS_ID } from "./language_model.mjs";

const NUM_LIKELIEST = 5;

/**
 * Those of the artifact's own protocol where they fit; else windows of the context, whose newer half is coded. `first` targets are in the
 * first window, `stride` in each later one. Nothing is learned here.
 */
export function windowsOf({ config: { context }, notes }) {
  const protocol = notes.protocol;
  if (protocol?.window <= context) {
    const { window, stride, chunk_tokens: chunk } = protocol;
    // Windows of documents with adapters end where their chunks end, so the first may hold fewer targets than it could.
    return stride ? { window, stride, first: window } : { window, stride: chunk, first: window - (window % chunk) };
  }
  return { window: context, stride: context - Math.floor(context / 2), first: context };
}

/** Reads texts that change as they are typed: what the last text began with is not read again. */
export class Reader {
  constructor({ model, tokenizer, config, notes }) {
    this.model = model;
    this.tokenizer = tokenizer;
    this.windows = windowsOf({ config, notes });
    this.cache = model.newCache(this.windows.window);
    this.start = 0; // position of the cache's first token
    this.inputs = [BOS_ID]; // BOS and the tokens read; position p predicts token p from the inputs up to it
    this.costs = []; // of each token: {id, bits, likeliest}
  }

  /** Reads a text (bytes); yields the costs after each token that is new. */
  *read(bytes) {
    const ids = this.tokenizer.encode(bytes);
    let same = 0;
    while (same < Math.min(ids.length, this.costs.length) && this.costs[same].id === ids[same]) same++;
    this.costs.length = same;
    this.inputs = [BOS_ID, ...ids];
    for (let position = same; position < ids.length; position++) {
      this.costs.push({ id: ids[position], ...this.cost(position, ids[position]) });
      yield this.costs;
    }
  }

  cost(position, id) {
    const logits_V = this.logitsAt(position);
    const largest = logits_V.reduce((a, b) => Math.max(a, b));
    const logTotal = largest + Math.log(logits_V.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
    const bitsOf = (token) => (logTotal - logits_V[token]) / Math.LN2;
    return { bits: bitsOf(id), likeliest: largestOf(logits_V, NUM_LIKELIEST).map((token) => ({ id: token, bits: bitsOf(token) })) };
  }

  /** Logits after the inputs up to `position`, from where its window starts. */
  logitsAt(position) {
    const { window, stride, first } = this.windows;
    const end = first + stride * Math.max(0, 1 + Math.floor((position - first) / stride));
    const start = Math.max(0, end - window);
    if (start !== this.start) {
      this.start = start;
      this.cache.ids.length = 0;
    }
    this.cache.ids.length = Math.min(this.cache.ids.length, position - start);
    for (let next = start + this.cache.ids.length; next < position; next++) this.model.hidden(this.cache, this.inputs[next]);
    return this.model.logits(this.cache, this.inputs[position]);
  }
}

/** The ids of the largest logits, the largest first. */
function largestOf(logits_V, count) {
  const found = [];
  logits_V.forEach((logit, id) => {
    if (found.length === count && logit <= logits_V[found[count - 1]]) return;
    if (found.length === count) found.pop();
    let place = found.length;
    while (place && logits_V[found[place - 1]] < logit) place--;
    found.splice(place, 0, id);
  });
  return found;
}
