// The page works without this; with it, charts tell what is under the pointer, and tokens what was likelier.
"use strict";

function element(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

// --- Charts: a line at the pointer, and each curve's value there.

function setUpChart(svg) {
  const [left, right, xLow, xHigh, bottom, top, yLow, yHigh] = svg.dataset.frame.split(" ").map(Number);
  const curves = Array.from(svg.querySelectorAll("polyline:not(.faint)"), (line) => ({
    name: line.dataset.label,
    colour: Array.from(line.classList).find((name) => /^c\d$/.test(name)),
    points: line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)),
  }));
  const rule = svg.querySelector(".grid").cloneNode();
  rule.setAttribute("class", "rule");
  rule.setAttribute("y1", top);
  rule.setAttribute("y2", bottom);
  const said = element("p", "under-pointer");
  svg.after(said);

  function show(event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    if (x < left || x > right) return hide();
    rule.setAttribute("x1", x);
    rule.setAttribute("x2", x);
    svg.append(rule);
    said.replaceChildren(element("b", "", number(xLow + ((x - left) / (right - left)) * (xHigh - xLow))));
    for (const { name, colour, points } of curves) {
      const [near, y] = points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
      if (x > points.at(-1)[0] && x - near > 4) continue; // this run has ended before
      const value = element("span", colour, number(yLow + ((bottom - y) / (bottom - top)) * (yHigh - yLow)));
      value.title = name;
      said.append(value);
    }
  }

  function hide() {
    rule.remove();
    said.replaceChildren();
  }

  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

function number(value) {
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : value.toPrecision(4);
}

// --- The passage: the token under the pointer, and what was likelier there.

function setUpPassage(map) {
  const tokens = JSON.parse(document.getElementById("passage-tokens").textContent);
  const detail = document.getElementById("detail");
  const spans = Array.from(map.children);
  let picked = -1;

  function pick(index) {
    if (!tokens[index]) return;
    spans[picked]?.classList.remove("picked");
    spans[picked = index].classList.add("picked");
    const { label, probability, bits, likeliest } = tokens[index];
    const head = element("p", "");
    head.append(element("code", "", label), ` ${chance(probability)}, `, element("b", "", `${bits.toFixed(2)} bits`), "; likeliest here:");
    const list = element("div", "bars");
    for (const [other, share] of likeliest) {
      const bar = element("i", other === label && share === probability ? "ours" : "");
      bar.style.width = `${100 * share}%`;
      list.append(element("code", "", other), bar, element("em", "", chance(share)));
    }
    detail.replaceChildren(head, list);
    detail.classList.add("filled"); // from now on it stays in sight
  }

  const pickTarget = ({ target }) => target !== map && pick(spans.indexOf(target));
  map.addEventListener("pointerover", pickTarget);
  map.addEventListener("click", pickTarget);
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    pick(picked + step);
  });
}

function chance(probability) {
  return probability >= 0.001 ? `${(100 * probability).toPrecision(3)} %` : `1 in ${Math.round(1 / probability).toLocaleString("en")}`;
}

document.querySelectorAll("svg.chart").forEach(setUpChart);
const passage = document.getElementById("passage");
if (passage) setUpPassage(passage);
document.body.dataset.ready = "yes";
