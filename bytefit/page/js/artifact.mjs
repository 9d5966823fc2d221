// An artifact opened: config, tokenizer, model (artifact/load.py).

import { readSections } from "./container.mjs";
import { LanguageModel } from "./language_model.mjs";
import { layout } from "./layout.mjs";
import { readTokenizer } from "./tokenizer.mjs";
import { readWeights } from "./weights.mjs";

/** `pause`: awaited now and then with the share of the weights that is decoded. */
export async function loadArtifact(bytes, pause = async () => {}) {
  const sections = await readSections(bytes);
  const { model: config, codec, notes } = JSON.parse(new TextDecoder().decode(sections.get("config")));
  const weights = await readWeights(sections, layout(config), codec, pause);
  return { config, notes, tokenizer: readTokenizer(sections.get("tokenizer")), model: new LanguageModel(config, weights) };
}
