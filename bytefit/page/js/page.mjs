// The page: decode the artifact that it holds, then hand it to the two boxes.

import { loadArtifact } from "./artifact.mjs";
import { setUpContinuing } from "./continue_box.mjs";
import { generate } from "./generate.mjs";
import { integer } from "./labels.mjs";
import { Reader } from "./reader.mjs";
import { pause } from "./slices.mjs";
import { setUpSurprise } from "./surprise_box.mjs";

const status = document.getElementById("status"), decoding = document.getElementById("decoding");
try {
  const began = performance.now();
  const held = document.getElementById("artifact");
  const bytes = Uint8Array.from(atob(held.textContent), (letter) => letter.charCodeAt(0));
  const artifact = await loadArtifact(bytes, (share) => {
    decoding.value = share;
    return pause();
  });
  const numWeights = Array.from(artifact.model.weights.values()).reduce((sum, values) => sum + values.length, 0);
  status.textContent = `${integer(numWeights)} weights decoded in ${((performance.now() - began) / 1000).toFixed(1)} s`;
  window.bytefit = { ...artifact, generate, Reader }; // for the browser's console
  document.getElementById("prompt").disabled = document.getElementById("own").disabled = false;
  setUpContinuing(artifact);
  setUpSurprise(artifact);
  document.body.dataset.ready = "yes";
} catch (error) {
  status.textContent = `This browser cannot run the model: ${error.message}`;
  throw error;
} finally {
  decoding.remove();
}
