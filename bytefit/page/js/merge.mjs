// Byte-pair merging as SentencePiece does it: the pair whose union has the best score is merged first, of equals the leftmost.

/** The pieces of a text; a character that no piece holds stands alone. `scores`: by piece {score}. */
export function mergePieces(text, scores) {
  const symbols = Array.from(text, (piece, i) => ({ piece, before: i - 1, after: i + 1 }));
  const waiting = new Heap();
  const propose = (left, right) => {
    if (left < 0 || right >= symbols.length) return;
    const piece = symbols[left].piece + symbols[right].piece;
    const known = scores.get(piece);
    if (known) waiting.push({ left, right, piece, score: known.score });
  };
  for (let i = 1; i < symbols.length; i++) propose(i - 1, i);
  while (waiting.size) {
    const { left, right, piece } = waiting.pop();
    const first = symbols[left], second = symbols[right];
    if (!first.piece || !second.piece || first.piece.length + second.piece.length !== piece.length) continue; // one of them has changed
    first.piece = piece;
    first.after = second.after;
    if (second.after < symbols.length) symbols[second.after].before = left;
    second.piece = "";
    propose(first.before, left);
    propose(left, first.after);
  }
  return symbols.map((symbol) => symbol.piece).filter((piece) => piece);
}

/** A binary heap of pairs, the best on top. */
class Heap {
  #pairs = [];

  get size() {
    return this.#pairs.length;
  }

  push(pair) {
    const pairs = this.#pairs;
    let place = pairs.push(pair) - 1;
    while (place) {
      const parent = (place - 1) >> 1;
      if (!isBetter(pair, pairs[parent])) break;
      pairs[place] = pairs[parent];
      place = parent;
    }
    pairs[place] = pair;
  }

  pop() {
    const pairs = this.#pairs;
    const best = pairs[0], last = pairs.pop();
    if (!pairs.length) return best;
    let place = 0;
    for (;;) {
      let child = 2 * place + 1;
      if (child >= pairs.length) break;
      if (child + 1 < pairs.length && isBetter(pairs[child + 1], pairs[child])) child++;
      if (!isBetter(pairs[child], last)) break;
      pairs[place] = pairs[child];
      place = child;
    }
    pairs[place] = last;
    return best;
  }
}

function isBetter(a, b) {
  return a.score > b.score || (a.score === b.score && a.left < b.left);
}
