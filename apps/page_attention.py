"""Attention: a prompt and its continuation, what every head does with it, and one head in full."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
import torch

from apps.parts import address
from apps.parts.charts import KIND_COLOR, MEASURES, attention_chart, band_chart
from apps.parts.checkpoints import Opened, pick_checkpoint
from apps.parts.continuing import Continuation, continue_prompts, sampling_controls
from apps.parts.text import plain, visible
from apps.parts.tokens import token_strip
from shardscope.config import LayerKind
from shardscope.generate import SamplingConfig
from shardscope.lens.views import (
    HeadSummary,
    LayerAttention,
    ViewError,
    check_prompt,
    head_map,
    query_row,
    read_layer,
    summarize_heads,
)

MAP_HEIGHT = 640
SEES: dict[LayerKind, str] = {
    "sliding": "each token sees the last {window}, itself included",
    "global": "each token sees every token before it",
}


def page() -> None:
    opened = pick_checkpoint()
    if opened is None:
        return
    sampling = ask()
    tokenizer = opened.model.tokenizer
    assert tokenizer is not None
    if not st.session_state.prompt:
        st.info("The prompt is empty; write something for the model to continue.")
        address.publish()
        return
    ids = tokenizer.encode(st.session_state.prompt, bos=True)
    try:
        check_prompt(opened.model, torch.tensor(ids))
    except ViewError as error:
        st.error(plain(str(error)).capitalize() + ".")
        address.publish()
        return
    new = draw_continuation(opened, ids, sampling)
    look_inside(opened, (*ids, *new), len(ids))


def ask() -> SamplingConfig:
    """The prompt and how to continue it. Nothing runs while somebody types."""
    with st.form("ask", border=False):
        st.text_area("Prompt", key="prompt", height=96)
        with st.container(horizontal=True, vertical_alignment="bottom"):
            sampling = sampling_controls()
            st.form_submit_button("Continue the prompt", type="primary")
    return sampling


def draw_continuation(opened: Opened, ids: Sequence[int], sampling: SamplingConfig) -> tuple[int, ...]:
    """Stream the continuation into the page, as text and never as markup."""
    box = st.empty()
    new = Continuation()
    for (new,) in continue_prompts(opened, (tuple(ids),), sampling):
        box.code(visible(new.text) or " ", language=None, wrap_lines=True)
    if not new.ids:
        box.caption(
            "The prompt fills the whole context." if new.stop_reason == "context" else "The model ends the text here."
        )
    return new.ids


@st.fragment
def look_inside(opened: Opened, ids: tuple[int, ...], prompt_tokens: int) -> None:
    """Everything about attention; choosing a head redraws this part alone."""
    config, tokenizer = opened.model.config, opened.model.tokenizer
    assert tokenizer is not None
    layer = int(address.clamp("layer", 0, config.n_layers - 1))
    head = int(address.clamp("head", 0, config.n_heads - 1))
    query = st.session_state.query if 0 <= st.session_state.query < len(ids) else prompt_tokens - 1
    attention = layer_attention(opened.key, ids, layer, opened)
    texts = [tokenizer.token_text(id) for id in ids]

    token_strip(texts, prompt_tokens, query_row(attention, head, query), query)
    st.caption(
        f"{prompt_tokens} prompt tokens, then {len(ids) - prompt_tokens} new ones, underlined. The framed token, "
        f"number {query}, reads the tinted ones. Click another, or use the arrow keys and Enter."
    )
    left, right = st.columns([5, 9], gap="medium")
    summaries = head_summaries(opened.key, ids, opened)
    with left:
        draw_overview(summaries, layer, head, config.window)
    with right:
        draw_head(attention, summaries[layer * config.n_heads + head], texts, query, config.layer_kinds)
    address.publish()


def draw_overview(summaries: Sequence[HeadSummary], layer: int, head: int, window: int) -> None:
    """All heads: the sliding layers in one band, the global layers in another."""
    st.subheader("All heads", anchor=False)
    if st.session_state.measure not in MEASURES:
        st.session_state.measure = next(iter(MEASURES))
    measure = st.selectbox(
        "Show", list(MEASURES), key="measure", format_func=lambda name: f"{name}: {MEASURES[name][1]}"
    )
    for kind in ("sliding", "global"):
        heads = [summary for summary in summaries if summary.kind == kind]
        if not heads:
            continue
        color = KIND_COLOR[heads[0].kind]
        with st.container(border=True):
            st.markdown(f":{color}-badge[{kind} layers] {SEES[heads[0].kind].format(window=window)}")
            # A new choice is a new chart, so that a second click on the same head counts again.
            key = f"{kind} {layer} {head} {measure}"
            st.altair_chart(
                band_chart(heads, measure, layer, head), width="content", key=key, on_select=lambda key=key: choose(key)
            )


def choose(key: str) -> None:
    """Take over the head that was clicked in an overview."""
    for point in st.session_state[key].selection.get("head", []):
        st.session_state.layer, st.session_state.head = int(point["layer"]), int(point["head"])


def draw_head(
    attention: LayerAttention, summary: HeadSummary, texts: Sequence[str], query: int, kinds: Sequence[LayerKind]
) -> None:
    """One head in full: its map, its numbers, and the keyboard's way to another one."""
    view = head_map(attention, summary.head)
    kind = "global" if view.window is None else f"sliding, window {view.window}"
    st.subheader(f"Layer {view.layer} · {kind} · head {view.head}", anchor=False)
    with st.container(horizontal=True):
        st.segmented_control(
            "Layer",
            range(len(kinds)),
            key="layer",
            required=True,
            wrap=True,
            format_func=lambda layer: f":{KIND_COLOR[kinds[layer]]}[{layer}]",
        )
        st.segmented_control("Head", range(attention.q.shape[1]), key="head", required=True, wrap=True)
    st.altair_chart(attention_chart(view, texts, query, MAP_HEIGHT), width="stretch")
    st.caption(explain(view.cell, view.n_tokens, view.window))
    st.markdown(" · ".join(numbers(summary)))


def numbers(summary: HeadSummary) -> list[str]:
    """One head in numbers, as Markdown."""
    return [
        f"first token **{summary.first_token:.3f}**",
        f"previous token **{summary.previous_token:.3f}**",
        f"entropy **{summary.entropy:.2f}** bits",
        f"mean distance **{summary.distance:.1f}** tokens",
        f"past window **{summary.past_window:.3f}**",
    ]


def explain(cell: int, n_tokens: int, window: int | None) -> str:
    """What the picture is made of, in a sentence or two."""
    what = "Every square is one weight" if cell == 1 else f"Every square pools {cell} × {cell} tokens"
    if window is None:
        return f"{what}. A global layer sees everything before the query."
    if n_tokens <= window:
        return f"{what}. The text is shorter than the window of {window}, so nothing is hidden from this layer yet."
    return f"{what}. The orange line is the window's edge: left of it, in grey, is what this layer cannot see."


@st.cache_resource(max_entries=8, show_spinner=False)
def layer_attention(key: tuple[str, int], ids: tuple[int, ...], layer: int, _opened: Opened) -> LayerAttention:
    with _opened.lock:
        return read_layer(_opened.model, torch.tensor(ids), layer)


@st.cache_resource(max_entries=8, show_spinner="Reading all heads …")
def head_summaries(key: tuple[str, int], ids: tuple[int, ...], _opened: Opened) -> list[HeadSummary]:
    with _opened.lock:
        return summarize_heads(_opened.model, torch.tensor(ids))
