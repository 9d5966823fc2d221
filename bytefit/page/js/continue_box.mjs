// The box in which the model continues what is typed.

import { generate } from "./generate.mjs";
import { workThrough } from "./slices.mjs";

const TYPING_PAUSE = 600; // milliseconds without a key before the model takes over

export function setUpContinuing(artifact) {
  const find = (name) => document.getElementById(name);
  const prompt = find("prompt"), said = find("said"), speed = find("speed"), go = find("go"), keep = find("keep");
  let attempt = 0; // the one that may write; any other has been overtaken
  let timer = 0;

  const options = () => ({
    numTokens: Number(find("num_tokens").value),
    temperature: Number(find("temperature").value),
    topP: Number(find("top_p").value),
    seed: Number(find("seed").value),
  });

  async function start() {
    clearTimeout(timer);
    const own = ++attempt;
    const ids = [];
    const began = performance.now();
    find("asked").textContent = prompt.value;
    go.textContent = "Stop";
    document.body.dataset.continuing = "yes";
    const show = () => {
      said.textContent = new TextDecoder().decode(artifact.tokenizer.decode(ids));
      const perSecond = (1000 * ids.length) / (performance.now() - began);
      speed.textContent = `${ids.length} tokens, ${perSecond.toFixed(0)} tokens/s`;
      speed.dataset.tokensPerSecond = perSecond;
    };
    const steps = generate(artifact, new TextEncoder().encode(prompt.value), options());
    const collected = (function* () {
      for (const id of steps) yield ids.push(id);
    })();
    await workThrough(collected, show, () => own === attempt);
    if (own === attempt) stop();
  }

  function stop() {
    clearTimeout(timer);
    attempt++;
    go.textContent = "Continue";
    keep.disabled = !said.textContent;
    delete document.body.dataset.continuing;
  }

  function startSoon() {
    stop();
    said.textContent = "";
    find("asked").textContent = prompt.value;
    keep.disabled = true;
    timer = setTimeout(start, TYPING_PAUSE);
  }

  prompt.addEventListener("input", startSoon);
  go.addEventListener("click", () => (document.body.dataset.continuing ? stop() : start()));
  find("again").addEventListener("click", () => {
    find("seed").value = Number(find("seed").value) + 1;
    start();
  });
  keep.addEventListener("click", () => {
    prompt.value += said.textContent;
    start();
  });
  for (const name of ["temperature", "top_p"]) {
    const shown = find(`${name}_shown`), slider = find(name);
    slider.addEventListener("input", () => (shown.textContent = Number(slider.value).toFixed(2)));
  }
  for (const button of [go, find("again")]) button.disabled = false;
  start();
}
