// Bulk data that components share in the browser, one text for each slot. Streamlit sends an element again only when it
// has changed: a picture apart from what is marked on it is not sent again when only the mark moves.

const downloads = (globalThis.shardscopeDownloads ??= { held: new Map(), waiting: [] });

function keep(slot, digest, text) {
  downloads.held.set(slot, { digest, text });
  downloads.waiting = downloads.waiting.filter((wanted) => {
    const here = wanted.slot === slot && wanted.digest === digest;
    if (here) wanted.resolve(text);
    return !here;
  });
}

// The slot's text, as soon as it is the one with this digest.
function received(slot, digest) {
  const held = downloads.held.get(slot);
  if (held?.digest === digest) return Promise.resolve(held.text);
  return new Promise((resolve) => downloads.waiting.push({ slot, digest, resolve }));
}
