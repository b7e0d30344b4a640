"""Two small components for text that charts cannot draw: a strip of tokens to click, and text with marked spans.

Both put untrusted text into the page with `textContent`, never as HTML or Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import streamlit as st

from shardscope.visible import visible

Span = tuple[int, int, str, str]  # characters from … to, colour, words

LONGEST_STRIP = 480  # tokens
WORTH_NAMING = 0.002  # of a query's attention: what a token far off must have to be named
_STRIP_CSS = """
.strip { max-height: 11rem; overflow-y: auto; line-height: 2.05; padding: 2px; color: var(--st-text-color);
         font-family: var(--st-code-font); font-size: 0.86rem; overflow-wrap: anywhere; }
button { font: inherit; color: inherit; white-space: pre-wrap; border: 1px solid transparent;
                border-radius: 4px; padding: 1px 2px; margin: 1px; background: var(--st-secondary-background-color);
                cursor: pointer; unicode-bidi: isolate; }
button.start { opacity: 0.75; font-style: italic; }
button.new { text-decoration: underline dotted; text-underline-offset: 3px; }
button:hover { border-color: var(--st-text-color); }
button[aria-pressed="true"] { border: 2px solid var(--st-text-color); }
button:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 1px; }
.more { opacity: 0.7; padding: 0 6px; }
.far { font-family: var(--st-code-font); font-size: 0.8rem; color: var(--st-text-color); line-height: 1.9; }
"""
_STRIP_HTML = '<div class="strip" role="toolbar" aria-label="Tokens"></div><div class="far"></div>'
_MARKED_CSS = """
.marked { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; unicode-bidi: plaintext;
          font-family: var(--st-code-font); font-size: 0.9rem; color: var(--st-text-color); }
.marked .prompt { opacity: 0.65; }
.marked mark { color: inherit; border-radius: 3px; padding: 1px 0; border-bottom: 2px solid var(--flag);
               background: color-mix(in srgb, var(--flag) 30%, transparent); }
"""

_MARKED_JS = """
export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".marked");
  root.replaceChildren(
    ...data.pieces.map(([kind, text, color, title]) => {
      const piece = document.createElement(kind === "mark" ? "mark" : "span");
      piece.className = kind;
      piece.textContent = text;
      if (kind === "mark") {
        piece.style.setProperty("--flag", color);
        piece.title = title;
      }
      return piece;
    })
  );
}
"""

_strip = st.components.v2.component(
    "token_strip", html=_STRIP_HTML, css=_STRIP_CSS, js=Path(__file__).with_name("strip.js").read_text(encoding="utf-8")
)
_marked = st.components.v2.component("marked_text", html='<div class="marked"></div>', css=_MARKED_CSS, js=_MARKED_JS)


def token_strip(
    texts: Sequence[str],
    prompt_tokens: int,
    query: int,
    tint: Sequence[float] | np.ndarray,
    bar: Sequence[float] | np.ndarray = (),
    says: tuple[str, str] = ("", ""),
    most_far: int = 0,
) -> None:
    """Draw the tokens, `query` framed, each tinted by `tint` and underlined by `bar`, both in [0, 1].

    A click makes another token the `query` choice. `says` names the two numbers. Tokens from `prompt_tokens` on are the
    continuation. Of a long text only the tokens around `query` are drawn, and the `most_far` most tinted of the others.
    """
    drawn = drawn_part(query, len(texts))
    part = slice(drawn.start, drawn.stop)
    data = {
        "texts": [visible(text) for text in texts[part]],
        "first": drawn.start,
        "n_tokens": len(texts),
        "prompt_tokens": prompt_tokens,
        "tint": [round(float(share), 4) for share in tint[part]],
        "bar": [round(float(share), 4) for share in bar[part]],
        "says": says,
        "query": query,
        "far": [
            {"pos": pos, "text": visible(texts[pos]), "tint": round(float(tint[pos]), 4)}
            for pos in furthest(tint, drawn, most_far)
        ],
    }
    _strip(key="token_strip", data=data, on_query_change=_choose_query)


def drawn_part(query: int, n_tokens: int) -> range:
    """The tokens that a strip around `query` shows."""
    first = max(0, min(query - LONGEST_STRIP // 2, n_tokens - LONGEST_STRIP))
    return range(first, min(first + LONGEST_STRIP, n_tokens))


def furthest(tint: Sequence[float] | np.ndarray, drawn: range, most: int) -> list[int]:
    """The most tinted tokens outside `drawn`, strongest first; those with next to nothing are left out."""
    outside = np.array(tint, dtype=np.float64)
    outside[drawn.start : drawn.stop] = 0
    best = np.argsort(-outside, kind="stable")[:most]
    return [int(pos) for pos in best if outside[pos] >= WORTH_NAMING]


def _choose_query() -> None:
    if (clicked := st.session_state["token_strip"].query) is not None:
        st.session_state.query = int(clicked)


def marked_text(prompt: str, output: str, spans: Sequence[Span], key: str) -> None:
    """Draw a prompt and its output, in which each span of characters has its colour and, under the pointer, its words.

    Where spans overlap, the first of them gives the colour and all give their words.
    """
    shown = [("prompt", prompt, "", ""), *pieces(output, spans)]
    _marked(key=key, data={"pieces": [(kind, visible(text), *flag) for kind, text, *flag in shown if text]})


def pieces(output: str, spans: Sequence[Span]) -> list[tuple[str, str, str, str]]:
    """The output cut where spans begin and end: kind, text, colour, words."""
    cuts = sorted({0, len(output), *(min(at, len(output)) for start, end, *_ in spans for at in (start, end))})
    cut = []
    for start, end in pairwise(cuts):
        over = [span for span in spans if span[0] <= start and end <= span[1]]
        color, words = (over[0][2], ", ".join(span[3] for span in over)) if over else ("", "")
        cut.append(("mark" if over else "output", output[start:end], color, words))
    return cut
