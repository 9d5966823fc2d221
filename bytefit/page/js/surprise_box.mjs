// The box that shows what each token of a text costs: a heat map, and the sums.

import { element, integer, probabilityLabel, textOf, tokenLabel } from "./labels.mjs";
import { Reader } from "./reader.mjs";
import { workThrough } from "./slices.mjs";

const HOTTEST = 14; // bits at and above which a token has the full colour

export function setUpSurprise(artifact) {
  const find = (name) => document.getElementById(name);
  const own = find("own"), map = find("map"), detail = find("detail");
  const reader = new Reader(artifact);
  let shown = []; // the groups on the map, one span each
  let picked = null;
  let attempt = 0;

  async function read() {
    const mine = ++attempt;
    const bytes = new TextEncoder().encode(own.value);
    document.body.dataset.reading = "yes";
    const ended = await workThrough(reader.read(bytes), () => show(bytes.length), () => mine === attempt);
    if (ended) delete document.body.dataset.reading;
  }

  /** The map follows the costs: groups of tokens that have not changed stay. */
  function show(numBytes) {
    let numTokens = 0, same = 0;
    while (same < shown.length && shown[same].costs.at(-1) === reader.costs[numTokens + shown[same].costs.length - 1]) {
      numTokens += shown[same++].costs.length;
    }
    while (map.childNodes.length > same) map.lastChild.remove();
    const added = groupsOf(reader.costs.slice(numTokens), artifact.tokenizer);
    map.append(...added.map(spanOf));
    shown = [...shown.slice(0, same), ...added];
    if (!map.contains(picked)) pick(null);
    const bits = reader.costs.reduce((sum, cost) => sum + cost.bits, 0);
    const read = reader.costs.reduce((sum, cost) => sum + artifact.tokenizer.tokenBytes[cost.id].length, 0);
    find("num_bytes").textContent = read === numBytes ? integer(read) : `${integer(read)} of ${integer(numBytes)}`;
    find("num_bits").textContent = integer(bits);
    find("compressed").textContent = integer(bits / 8);
    find("bits_per_byte").textContent = read ? (bits / read).toFixed(3) : "–";
    find("bits_per_byte").dataset.value = read ? bits / read : "";
  }

  function pick(span) {
    picked?.classList.remove("picked");
    picked = span;
    picked?.classList.add("picked");
    detail.replaceChildren(...(span ? detailOf(shown[indexOf(span)], artifact.tokenizer) : [element("p", "soft", detail.dataset.hint)]));
  }

  function indexOf(span) {
    return Array.prototype.indexOf.call(map.childNodes, span);
  }

  map.addEventListener("pointerover", ({ target }) => target !== map && pick(target));
  map.addEventListener("click", ({ target }) => target !== map && pick(target));
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = map.childNodes[picked ? indexOf(picked) + step : 0];
    if (next) pick(next);
  });
  own.addEventListener("input", read);
  pick(null);
  read();
}

/** Tokens joined until their bytes are whole characters: {text, bits, costs}. Those that are not yet whole are left out. */
function groupsOf(costs, tokenizer) {
  const groups = [];
  let open = [];
  for (const cost of costs) {
    open.push(cost);
    const text = textOf(tokenizer.decode(open.map(({ id }) => id)));
    if (text === null) continue;
    groups.push({ text, bits: open.reduce((sum, { bits }) => sum + bits, 0), costs: open });
    open = [];
  }
  return groups;
}

function spanOf({ text, bits }) {
  const span = element("span", "token", text.replaceAll("\n", "↵\n"));
  span.style.setProperty("--heat", Math.min(bits / HOTTEST, 1).toFixed(3));
  return span;
}

/** What is known of one group: its probability and bits, and what was likelier; of several tokens, each one's bits. */
function detailOf({ text, bits, costs }, tokenizer) {
  const head = element("p", "");
  head.append(element("code", "", costs.length === 1 ? tokenLabel(tokenizer, costs[0].id) : text));
  head.append(` ${probabilityLabel(bits)}, `, element("b", "", `${bits.toFixed(2)} bits`));
  const rows = costs.length === 1 ? costs[0].likeliest : costs;
  const list = element("div", "bars");
  for (const { id, bits: cost } of rows) {
    const bar = element("i", costs.length === 1 && id === costs[0].id ? "ours" : "");
    bar.style.width = `${(100 * 2 ** -cost).toFixed(1)}%`;
    list.append(element("code", "", tokenLabel(tokenizer, id)), bar, element("em", "", probabilityLabel(cost)));
  }
  return [head, element("p", "soft", costs.length === 1 ? "likeliest here" : "its tokens"), list];
}
