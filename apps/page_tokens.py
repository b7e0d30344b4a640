"""Tokens: how likely each token was, what every layer would have said, who decided it, and what if a head were off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st
import torch

from apps.parts import address, exports
from apps.parts.caching import alone, cached
from apps.parts.continuing import continue_without
from apps.parts.heads import Cell, Head, head_grid
from apps.parts.prompt import Asked, ask
from apps.parts.text import in_a_sentence
from apps.parts.tokens import token_strip
from shardscope.colors import OKABE_ITO, blue_orange
from shardscope.microscope import (
    AblationEffect,
    Attribution,
    LogitLens,
    ablation_effect,
    attribution,
    residuals,
)
from shardscope.microscope.ablation import Mode
from shardscope.visible import on_one_line, visible

AROUND = 64  # tokens to each side of the chosen one whose numbers are in the table
SHOWN_BEFORE = 3
CANDIDATES = 20


def page() -> None:
    asked = ask()
    if asked is None:
        return
    if len(asked.ids) < 2:
        st.info("A single token has no prediction before it; write a longer prompt.")
        return address.publish()
    look_at_tokens(asked)


@st.fragment
@in_a_sentence
def look_at_tokens(asked: Asked) -> None:
    n_tokens = len(asked.ids)
    if not 0 < st.session_state.query < n_tokens:
        st.session_state.query = min(asked.prompt_tokens, n_tokens - 1)
    query = int(st.session_state.query)
    first, last = max(0, query - AROUND), min(n_tokens - 1, query + AROUND)
    lens = read_out(asked, first, last)
    tint = np.zeros(n_tokens)
    tint[first + 1 : last + 1] = lens.next_probability[-1]
    token_strip(asked.texts, asked.prompt_tokens, query, tint, says=("probability", ""))
    st.caption(
        f"The framed token, number {query}, is explained below. The stronger the tint, the likelier a token was. "
        "Click another, or use the arrow keys and Enter."
    )
    left, right = st.columns(2, gap="medium")
    with left:
        draw_table(asked, lens, query)
    with right:
        draw_lens(asked, lens, query)
    explain_choice(asked, lens, query)
    address.publish()


def read_out(asked: Asked, first: int, last: int) -> LogitLens:
    """The logit lens from `first` to `last` - 1. The model runs once for a prompt; another token is only read out."""
    opened, model, ids = asked.opened, asked.opened.model, torch.tensor(asked.ids)
    stream = cached(
        "residuals",
        (opened.fingerprint, asked.ids),
        1,
        "Reading every layer …",
        lambda report: alone(opened, lambda: residuals(model, ids), report),
    )
    key = (opened.fingerprint, asked.ids, first, last)
    return cached(
        "lens", key, 16, "", lambda _: stream.lens(range(first, last), top=min(CANDIDATES, model.config.vocab_size))
    )


def draw_table(asked: Asked, lens: LogitLens, query: int) -> None:
    st.subheader("Probabilities", anchor=False)
    table = token_table(asked, lens)
    shown = table[table["position"] >= query - SHOWN_BEFORE]
    st.dataframe(
        shown,
        hide_index=True,
        height=420,
        column_config={"position": _NARROW, "probability": _SHARE, "rank": _RANK, "entropy": _BITS},
    )
    exports.buttons(
        "tokens",
        exports.file_name(asked, "tokens"),
        lambda: probabilities_cell(asked, lens.positions[0], lens.positions[-1] + 1),
        lambda: table,
    )


_SHARE = st.column_config.NumberColumn(
    "prob.", format="%.4f", help="probability of this token, given the tokens before it", width=64
)
_BITS = st.column_config.NumberColumn(format="%.2f", help="of the prediction, in bits; 0 is certain", width=58)
_NARROW = st.column_config.NumberColumn("pos.", help="position", width=44)
_RANK = st.column_config.NumberColumn(help="1 is the likeliest", width=44)


def token_table(asked: Asked, lens: LogitLens) -> pd.DataFrame:
    """A line for each token: how likely it was, its rank (1 is the likeliest), and what was likeliest."""
    pos = np.array(lens.positions) + 1
    return pd.DataFrame(
        {
            "position": pos,
            "token": [_text(asked, asked.ids[at]) for at in pos],
            "probability": lens.next_probability[-1],
            "rank": lens.next_rank[-1] + 1,
            "entropy": lens.entropy[-1],
            "likeliest": [_text(asked, id) for id in lens.tokens[-1, :, 0]],
        }
    )


def draw_lens(asked: Asked, lens: LogitLens, query: int) -> None:
    st.subheader(f"What each layer expects as token {query}", anchor=False)
    table = lens_table(asked, lens, lens.positions.index(query - 1))
    columns = {"after": st.column_config.TextColumn(width=78), "this token": _SHARE, "entropy": _BITS}
    st.dataframe(table, hide_index=True, height="content", column_config=columns)
    exports.buttons(
        "lens", exports.file_name(asked, f"lens-{query}"), lambda: lens_cell(asked, query - 1), lambda: table
    )


def lens_table(asked: Asked, lens: LogitLens, place: int, top: int = 3) -> pd.DataFrame:
    """A line for each layer: the actual token's probability there, the entropy, and the likeliest tokens."""
    layers = ["embedding", *(f"layer {layer}" for layer in range(len(lens.tokens) - 1))]
    rows = []
    for layer, name in enumerate(layers):
        best = zip(lens.tokens[layer, place, :top], lens.probabilities[layer, place, :top], strict=True)
        shown = {f"{rank}.": f"{_text(asked, id)} {share:.3f}" for rank, (id, share) in enumerate(best, start=1)}
        row = {"after": name, "this token": lens.next_probability[layer, place], "entropy": lens.entropy[layer, place]}
        rows.append({**row, **shown})
    return pd.DataFrame(rows)


def explain_choice(asked: Asked, lens: LogitLens, query: int) -> None:
    """Why this token and not that one, by head and MLP, and what happens without some heads."""
    place = lens.positions.index(query - 1)
    actual = asked.ids[query]
    options = list(dict.fromkeys([actual, *map(int, lens.tokens[-1, place])]))
    # The two were chosen for one token after one text, or came with the address; for another they start over.
    read = asked.ids[: query + 1]
    if st.session_state.get("token_explained", read) != read:
        st.session_state.target = st.session_state.against = -1
    st.session_state.token_explained = read
    address.one_of("target", options)
    others = [id for id in options if id != st.session_state.target]
    address.one_of("against", others)
    st.subheader("Why this token, not that one", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = {id: f"{_text(asked, id)}{' (the actual one)' if id == actual else ''}" for id in options}
        target = st.selectbox("This token", options, key="target", format_func=names.__getitem__, width=260)
        against = st.selectbox("Not that one", others, key="against", format_func=names.__getitem__, width=260)
        modes: tuple[Mode, ...] = get_args(Mode)
        address.one_of("mode", modes)
        mode = st.segmented_control("A head switched off writes", modes, key="mode", required=True) or modes[0]
    ids = torch.tensor(asked.ids)
    found = cached(
        "attribution",
        (asked.opened.fingerprint, asked.ids[:query], target, against),
        32,
        "Asking every head …",
        lambda report: alone(
            asked.opened, lambda: attribution(asked.opened.model, ids[:query], -1, target, against), report
        ),
    )
    config = asked.opened.model.config
    heads = tuple(h for h in st.session_state.ablate if h[0] < config.n_layers and h[1] < config.n_heads)
    st.session_state.ablate = heads
    left, right = st.columns([5, 4], gap="medium")
    with left:
        draw_attribution(asked, found, heads)
    with right:
        draw_parts(asked, found)
    draw_ablation(asked, heads, mode, query)


def draw_attribution(asked: Asked, found: Attribution, heads: Sequence[Head]) -> None:
    most = float(np.abs(found.heads).max()) or 1.0
    cells = {
        (layer, head): Cell(f"layer {layer}, head {head} adds {x:+.4f}", f"{x:+.2f}", blue_orange(float(x) / most))
        for (layer, head), x in np.ndenumerate(found.heads)
    }
    head_grid(
        "attribution grid",
        asked.opened.model.config,
        cells,
        heads,
        toggle,
        name="attribution",
        file=exports.file_name(asked, "attribution.svg"),
    )
    st.caption(
        "What each head adds to the logit of this token over that one, before the cap: orange speaks for it, blue "
        "against. Click a head to switch it off, and again to switch it on."
    )


def toggle(chosen: Head) -> None:
    heads = st.session_state.ablate
    st.session_state.ablate = (
        tuple(h for h in heads if h != chosen) if chosen in heads else tuple(sorted((*heads, chosen)))
    )


def draw_parts(asked: Asked, found: Attribution) -> None:
    parts = pd.DataFrame(found.largest(12), columns=["part", "logits"])
    chart = (
        alt.Chart(parts)
        .mark_bar()
        .encode(
            x=alt.X("logits:Q", title="logit difference"),
            y=alt.Y("part:N", sort=None, title=None, axis=alt.Axis(labelOverlap=False)),
            color=alt.condition("datum.logits > 0", alt.value(OKABE_ITO[1]), alt.value(OKABE_ITO[0])),
            tooltip=["part", alt.Tooltip("logits:Q", format="+.4f")],
        )
        .properties(height=300)
    )
    st.altair_chart(chart, width="stretch")
    total = found.embed + float(found.heads.sum()) + float(found.mlps.sum())
    st.caption(f"All parts add up to **{total:+.4f}**; the logit difference is **{found.logit:+.4f}**.")
    exports.buttons(
        "attribution",
        exports.file_name(asked, "attribution"),
        lambda: attribution_cell(asked, found),
        lambda: all_parts(found),
    )


def all_parts(found: Attribution) -> pd.DataFrame:
    size = 1 + found.heads.size + found.mlps.size
    return pd.DataFrame(found.largest(size), columns=["part", "logits"])


def attribution_cell(asked: Asked, found: Attribution) -> str:
    """A cell that leaves each head's share of the logit difference in `heads` [layer head], through the hooks."""
    return exports.opening(asked) + (
        f"this, that, position = {found.token}, {found.against}, {found.position}\n"
        'names = ["ln_final.hook_scale", *(f"blocks.{layer}.attn.hook_z" for layer in range(model.config.n_layers))]\n'
        "_, cache = model.run_with_cache(ids[None, : position + 1], names_filter=names)\n"
        "readout = (model.W_U[:, this] - model.W_U[:, that]) * model.ln_final.w / cache['ln_final.hook_scale'][0, -1]\n"
        "heads = torch.stack([\n"
        '    torch.einsum("hd,hdm,m->h", cache["z", layer][0, -1], block.attn.W_O, readout)\n'
        "    for layer, block in enumerate(model.blocks)\n"
        "]).detach()\n"
        "heads\n"
    )


def draw_ablation(asked: Asked, heads: tuple[Head, ...], mode: Mode, query: int) -> None:
    st.subheader("Without some heads", anchor=False)
    if not heads:
        st.caption(
            "Every head is on. Click heads above to switch them off; the continuation is then written once more."
        )
        return
    names = ", ".join(f"L{layer}H{head}" for layer, head in heads)
    effect = cached(
        "effect",
        (asked.opened.fingerprint, asked.ids, asked.prompt_tokens, heads, mode, query),
        32,
        f"Reading without {names} …",
        lambda report: alone(asked.opened, lambda: effect_of(asked, heads, mode, query), report, passes=2),
    )
    left, middle, right = st.columns([3, 3, 4], gap="medium")
    if asked.sampling:
        sampling, prompt = asked.sampling, asked.ids[: asked.prompt_tokens]
        without = cached(
            "ablated",
            (asked.opened.fingerprint, prompt, sampling, heads, mode),
            16,
            f"Continuing without {names} …",
            lambda _: continue_without(asked.opened, prompt, sampling, heads, mode),
        )
        left.markdown("With every head")
        left.code(visible(asked.new.text) or " ", language=None, wrap_lines=True)
        middle.markdown(f"Without {names} ({mode})")
        middle.code(visible(without.text) or " ", language=None, wrap_lines=True)
    right.markdown(
        f"The prediction moves by **{effect.kl[query - 1]:.4f}** bits (KL); the mean loss of the text by "
        f"**{effect.loss_change:+.4f}** nats a token."
    )
    table = effect_table(asked, effect)
    right.dataframe(table, hide_index=True, column_config={"before": _PART, "after": _PART, "logit": _CHANGE})
    exports.buttons(
        "ablation",
        exports.file_name(asked, "ablation"),
        lambda: ablation_cell(asked, heads, mode, query),
        lambda: table,
    )


def effect_of(asked: Asked, heads: Sequence[Head], mode: Mode, query: int) -> AblationEffect:
    """The effect on the prediction of `query`. A mean is the prompt's own, here and in the continuation."""
    ids = torch.tensor(asked.ids)
    return ablation_effect(
        asked.opened.model, ids, heads, mode, position=query - 1, top=8, reference=ids[: asked.prompt_tokens]
    )


_PART = st.column_config.NumberColumn(format="%.4f", help="probability of this token")
_CHANGE = st.column_config.NumberColumn(format="%+.3f", help="change of the capped logit")


def effect_table(asked: Asked, effect: AblationEffect) -> pd.DataFrame:
    tokens = [_text(asked, id) for id in effect.tokens]
    return pd.DataFrame({"token": tokens, "before": effect.before, "after": effect.after, "logit": effect.logit_change})


def _text(asked: Asked, id: int) -> str:
    return f"“{on_one_line(asked.text(int(id)))}”"


# ------------------------------------------------------------------------------------------------- cells


def probabilities_cell(asked: Asked, first: int, last: int) -> str:
    """A cell that leaves in `probabilities` how likely each token after positions first … last - 1 was."""
    return exports.opening(asked) + (
        "with torch.no_grad():\n"
        f"    predictions = model.unembed(model.hidden(ids[None])[:, {first}:{last}])[0].softmax(dim=-1)\n"
        f"probabilities = predictions.gather(1, ids[{first + 1} : {last + 1}, None])[:, 0]\n"
        "entropy = torch.special.entr(predictions).sum(dim=-1) / torch.log(torch.tensor(2.0))  # bits\n"
        "probabilities, entropy, predictions.argmax(dim=-1)\n"
    )


def lens_cell(asked: Asked, position: int) -> str:
    """A cell that leaves in `lens` [layer vocab] what each layer would predict after a position, through the hooks."""
    return exports.opening(asked) + (
        f"position = {position}\n"
        'names = ["hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.config.n_layers))]\n'
        "_, cache = model.run_with_cache(ids[None, : position + 1], names_filter=names)\n"
        "with torch.no_grad():\n"
        "    layers = [model.unembed(model.ln_final(cache[name][:, -1:]))[0, 0] for name in names]\n"
        "lens = torch.stack(layers).softmax(dim=-1)\n"
        "lens.topk(3)\n"
    )


def ablation_cell(asked: Asked, heads: Sequence[Head], mode: Mode, query: int) -> str:
    """A cell that leaves the `effect` of switching heads off and, if one was asked for, the other continuation."""
    cell = exports.opening(asked) + (
        "from shardscope.generation import SamplingConfig, generate\n"
        "from shardscope.microscope import ablated, ablation_effect\n\n"
        f"heads, mode = {list(heads)}, {mode!r}  # switched off at blocks.*.attn.hook_z\n"
        f"read = ids[:{asked.prompt_tokens}]  # the prompt: what a mean is over\n"
        f"effect = ablation_effect(model, ids, heads, mode, position={query - 1}, top=8, reference=read)\n"
    )
    if asked.sampling:
        s = asked.sampling
        choices = f"max_new_tokens={s.max_new_tokens}, temperature={s.temperature}, top_p={s.top_p}, seed={s.seed}"
        cell += (
            "with ablated(model, heads, mode, reference=read):\n"
            f"    without = generate(model, [read.tolist()], SamplingConfig({choices}))[0]\n"
        )
    return cell + "effect.tokens, effect.before, effect.after\n"
