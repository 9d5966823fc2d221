// Tokens and numbers as a reader sees them.

import { BOS_ID } from "./language_model.mjs";

const whole = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The text of some bytes, or null where they begin or end within a character. */
export function textOf(bytes) {
  try {
    return whole.decode(bytes);
  } catch {
    return null;
  }
}

/** A token by itself, with its spaces and line ends made visible. */
export function tokenLabel(tokenizer, id) {
  if (id === BOS_ID) return "end of text";
  const bytes = tokenizer.tokenBytes[id];
  if (!bytes.length) return "(nothing)";
  const text = textOf(bytes);
  if (text === null) return Array.from(bytes, (byte) => `0x${byte.toString(16).padStart(2, "0")}`).join(" ");
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

export function integer(number) {
  return Math.round(number).toLocaleString("en");
}

/** A probability, given its bits. */
export function probabilityLabel(bits) {
  const probability = 2 ** -bits;
  return probability >= 0.001 ? `${(100 * probability).toPrecision(3)} %` : `1 in ${integer(2 ** bits)}`;
}

/** An element with a class and a text. */
export function element(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}
