// Bulk data that components share in the browser, one text for each slot. Streamlit sends an element again only when it
// has changed: a picture apart from what is marked on it is not sent again when only the mark moves.

const shelf = (globalThis.shardscopeShelf ??= { held: new Map(), waiting: [] });

function shelve(slot, digest, text) {
  shelf.held.set(slot, { digest, text });
  shelf.waiting = shelf.waiting.filter((wanted) => {
    const here = wanted.slot === slot && wanted.digest === digest;
    if (here) wanted.resolve(text);
    return !here;
  });
}

// The slot's text, as soon as it is the one with this digest.
function shelved(slot, digest) {
  const held = shelf.held.get(slot);
  if (held?.digest === digest) return Promise.resolve(held.text);
  return new Promise((resolve) => shelf.waiting.push({ slot, digest, resolve }));
}
