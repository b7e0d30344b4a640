"""Two small components for text that charts cannot draw: a strip of tokens to click, and text with marked spans.

Both put strangers' text into the page with `textContent`, never as HTML or Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from apps.parts.text import visible

_STRIP_CSS = """
.strip { max-height: 13.5rem; overflow-y: auto; line-height: 1.9; padding: 2px;
         font-family: var(--st-code-font); font-size: 0.86rem; }
.strip button { font: inherit; color: var(--st-text-color); white-space: pre; border: 1px solid transparent;
                border-radius: 4px; padding: 1px 2px; margin: 1px; background: var(--st-secondary-background-color);
                cursor: pointer; unicode-bidi: isolate; }
.strip button.start { opacity: 0.75; font-style: italic; }
.strip button.new { border-bottom: 2px solid var(--st-primary-color); }
.strip button:hover { border-color: var(--st-text-color); }
.strip button[aria-pressed="true"] { border: 2px solid var(--st-text-color); }
.strip button:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 1px; }
"""

_STRIP_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
  const strip = parentElement.querySelector(".strip");
  const hadFocus = strip.contains(parentElement.activeElement ?? document.activeElement);
  strip.replaceChildren();
  const buttons = data.texts.map((text, pos) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.pos = pos;
    button.className = pos === 0 ? "start" : pos < data.prompt_tokens ? "prompt" : "new";
    button.textContent = text.replaceAll("\\n", "\\u21b5").replaceAll("\\t", "\\u21e5");
    const weight = data.weights[pos];
    const share = Math.round(80 * Math.sqrt(weight));
    button.style.background =
      `color-mix(in srgb, var(--st-primary-color) ${share}%, var(--st-secondary-background-color))`;
    button.title = `token ${pos}, read with weight ${weight.toFixed(4)}`;
    button.setAttribute("aria-pressed", String(pos === data.query));
    button.setAttribute("aria-label", `token ${pos}: ${text}, weight ${weight.toFixed(2)}`);
    button.tabIndex = pos === data.query ? 0 : -1;
    button.onclick = () => setTriggerValue("query", pos);
    strip.append(button);
    if (text.includes("\\n")) strip.append(document.createElement("br"));
    return button;
  });
  strip.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -buttons.length, End: buttons.length }[event.key];
    const at = buttons.indexOf(event.target);
    if (step === undefined || at < 0) return;
    event.preventDefault();
    buttons[Math.min(Math.max(at + step, 0), buttons.length - 1)].focus();
  };
  if (hadFocus && buttons[data.query]) buttons[data.query].focus();
}
"""

_MARKED_CSS = """
.marked { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; unicode-bidi: plaintext;
          font-family: var(--st-code-font); font-size: 0.9rem; color: var(--st-text-color); }
.marked .prompt { opacity: 0.65; }
.marked mark { color: inherit; border-radius: 3px; padding: 1px 0;
               background: color-mix(in srgb, #e07b00 32%, transparent); border-bottom: 2px solid #e07b00; }
"""

_MARKED_JS = """
export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".marked");
  root.replaceChildren(
    ...data.pieces.map(([kind, text]) => {
      const piece = document.createElement(kind === "mark" ? "mark" : "span");
      piece.className = kind;
      piece.textContent = text;
      return piece;
    })
  );
}
"""

_strip = st.components.v2.component(
    "token_strip", html='<div class="strip" role="toolbar" aria-label="Tokens"></div>', css=_STRIP_CSS, js=_STRIP_JS
)
_marked = st.components.v2.component("marked_text", html='<div class="marked"></div>', css=_MARKED_CSS, js=_MARKED_JS)


def token_strip(texts: Sequence[str], prompt_tokens: int, weights: Sequence[float], query: int) -> None:
    """Draw the tokens, tinted by `weights`, with `query` framed. A click makes another token the `query` choice.

    Tokens from `prompt_tokens` on are the continuation, and are underlined.
    """
    data = {
        "texts": [visible(text) for text in texts],
        "prompt_tokens": prompt_tokens,
        "weights": [round(float(weight), 4) for weight in weights],
        "query": query,
    }
    _strip(key="token_strip", data=data, on_query_change=_choose_query)


def _choose_query() -> None:
    if (clicked := st.session_state["token_strip"].query) is not None:
        st.session_state.query = int(clicked)


def marked_text(prompt: str, output: str, span: tuple[int, int] | None, key: str) -> None:
    """Draw a prompt and its output; characters span[0] … span[1] - 1 of the output are marked."""
    start, end = span or (0, 0)
    pieces = [("prompt", prompt), ("output", output[:start]), ("mark", output[start:end]), ("output", output[end:])]
    _marked(key=key, data={"pieces": [(kind, visible(text)) for kind, text in pieces if text]})
