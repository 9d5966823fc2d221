// Long work in slices, between which the page stays alive.

const SLICE = 25; // milliseconds

export function pause() {
  return new Promise((resume) => setTimeout(resume));
}

/**
 * Works through `steps` (an iterator). `show` is called with the last step's value after every slice and at the end.
 * Returns whether it came to the end: it stops early once `isWanted` says no.
 */
export async function workThrough(steps, show, isWanted) {
  let since = performance.now();
  let value;
  for (value of steps) {
    if (performance.now() - since < SLICE) continue;
    show(value);
    await pause();
    if (!isWanted()) return false;
    since = performance.now();
  }
  show(value);
  return true;
}
