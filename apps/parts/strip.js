// Tokens as buttons, tinted and underlined by two numbers. Strangers' text is set as text, never as markup.

export default function ({ data, parentElement, setTriggerValue }) {
  const strip = parentElement.querySelector(".strip");
  strip.send = setTriggerValue;
  // Tokens stay where they are when only their numbers change.
  const drawn = JSON.stringify([data.first, data.n_tokens, data.prompt_tokens, data.texts]);
  if (drawn !== strip.drawn) lay(strip, data);
  strip.drawn = drawn;
  const buttons = strip.buttons;
  buttons.forEach((button, index) => {
    const [tint, bar] = [data.tint[index], data.bar[index] ?? 0];
    const share = Math.round(80 * Math.sqrt(tint));
    put(button.style, "background",
      `color-mix(in srgb, var(--st-primary-color) ${share}%, var(--st-secondary-background-color))`);
    put(button.style, "boxShadow", bar > 0.004 ? `inset 0 -${(6 * Math.sqrt(bar)).toFixed(1)}px #f28e2b` : "");
    const pos = data.first + index;
    const title = [`token ${pos}`, data.says[0] && `${data.says[0]} ${tint.toFixed(4)}`,
      data.says[1] && `${data.says[1]} ${bar.toFixed(4)}`].filter(Boolean).join(", ");
    put(button, "title", title);
    put(button, "ariaLabel", `${data.texts[index]} ${title}`);
    put(button, "ariaPressed", String(pos === data.query));
    put(button, "tabIndex", pos === data.query ? 0 : -1);
  });
  parentElement.querySelector(".far").replaceChildren(...furtherOff(data, setTriggerValue));
  const chosen = buttons[data.query - data.first];
  const far = chosen.offsetTop - strip.offsetTop - strip.scrollTop;
  if (far < 0 || far > strip.clientHeight - 30) strip.scrollTop += far - strip.clientHeight / 2;
  strip.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -buttons.length, End: buttons.length }[event.key];
    const at = buttons.indexOf(event.target);
    if (step === undefined || at < 0) return;
    event.preventDefault();
    buttons[Math.min(Math.max(at + step, 0), buttons.length - 1)].focus();
  };
}

// A button for each token; one that has been there before keeps the focus.
function lay(strip, data) {
  const before = new Map((strip.buttons ?? []).map((button) => [button.dataset.pos, button]));
  const focused = strip.getRootNode().activeElement;
  strip.buttons = data.texts.map((text, index) => {
    const pos = data.first + index;
    const button = before.get(String(pos)) ?? document.createElement("button");
    button.type = "button";
    button.dataset.pos = pos;
    button.className = pos === 0 ? "start" : pos < data.prompt_tokens ? "prompt" : "new";
    button.textContent = signs(text);
    button.onclick = () => strip.send("query", pos);
    return button;
  });
  const more = (count, where) => {
    const note = document.createElement("span");
    note.className = "more";
    note.textContent = `${count} more tokens ${where}`;
    return count ? [note] : [];
  };
  strip.replaceChildren(
    ...more(data.first, "before"),
    ...strip.buttons.flatMap((b, index) => (data.texts[index].includes("\n") ? [b, document.createElement("br")] : [b])),
    ...more(data.n_tokens - data.first - strip.buttons.length, "after")
  );
  if (strip.buttons.includes(focused)) focused.focus();
}

// Assigning what is there already would have the page laid out again.
function put(target, name, value) {
  const held = (target.held ??= {});
  if (held[name] !== value) target[name] = held[name] = value;
}

const signs = (text) => text.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5");

// The most tinted of the tokens that are not drawn.
function furtherOff(data, setTriggerValue) {
  const nodes = data.far.map(({ pos, text, tint }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.far = pos;
    button.textContent = `${pos} ${signs(text)} ${tint.toFixed(3)}`;
    button.title = `token ${pos}, ${data.says[0]} ${tint.toFixed(4)}`;
    button.onclick = () => setTriggerValue("query", pos);
    return button;
  });
  return nodes.length ? ["Further off: ", ...nodes] : [];
}
