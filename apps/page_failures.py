"""Failures: the model card's six prompts, continued live, each with what is wrong with it and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.parts import address, exports
from apps.parts.checkpoints import Opened, pick_checkpoint, run_of
from apps.parts.continuing import Continuation, continue_prompts, sampling_controls
from apps.parts.heads import OKABE_ITO
from apps.parts.logs import read_log
from apps.parts.text import in_a_sentence, plain, visible
from apps.parts.tokens import marked_text
from shardscope.failures import CARD_PROMPTS, Labels, SuitePrompt, describe, label
from shardscope.failures.labels import token_pieces
from shardscope.generation import SamplingConfig
from shardscope.tokenizer import Tokenizer

COLORS = {"no flag": "gray", "loop": "orange", "breakdown": "red"}
STOPS = {"eos": "ended by the model", "length": "cut at the limit", "context": "the context is full", "stop": "stopped"}


def page() -> None:
    opened = pick_checkpoint()
    if opened is None:
        return
    with st.form("sample", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        sampling = sampling_controls("sample_tokens", fewest=1)
        st.form_submit_button("Sample", type="primary")
        st.form_submit_button("Next seed", on_click=next_seed)
    assert sampling is not None, "at least one token is sampled"
    address.publish()
    draw_samples(opened, sampling)
    draw_probes(opened)


def next_seed() -> None:
    st.session_state.seed += 1


@in_a_sentence
def draw_samples(opened: Opened, sampling: SamplingConfig) -> None:
    """Six cards that fill up while the model writes, and are judged when it has ended."""
    tokenizer = opened.model.tokenizer
    assert tokenizer is not None
    summary = st.empty()
    boxes = cards(len(CARD_PROMPTS))
    prompts = tuple(tuple(tokenizer.encode(prompt.text, bos=True)) for prompt in CARD_PROMPTS)
    if (longest := max(map(len, prompts))) > opened.model.config.n_ctx:
        summary.error(
            f"The longest of the six prompts has {longest} tokens and this model's context holds "
            f"{opened.model.config.n_ctx}; choose another checkpoint."
        )
        return
    samples: list[Continuation] = []
    for samples in continue_prompts(opened, prompts, sampling):
        summary.progress(
            sum(len(sample.ids) for sample in samples) / (len(samples) * sampling.max_new_tokens), "Sampling …"
        )
        for row, (prompt, sample) in enumerate(zip(CARD_PROMPTS, samples, strict=True)):
            boxes[row].code(visible(prompt.text + sample.text), language=None, wrap_lines=True)
    judged = [judge(prompt, sample, tokenizer) for prompt, sample in zip(CARD_PROMPTS, samples, strict=True)]
    summary.markdown(count(judged))
    for row, (prompt, sample, labels) in enumerate(zip(CARD_PROMPTS, samples, judged, strict=True)):
        with boxes[row].container():
            draw_sample(row, prompt, sample, labels, tokenizer)
    exports.buttons(
        "samples",
        f"shardscope-{opened.fingerprint}-samples",
        lambda: samples_cell(opened, sampling),
        lambda: sample_table(samples, judged),
    )


def sample_table(samples: Sequence[Continuation], judged: Sequence[Labels]) -> pd.DataFrame:
    """A line for each of the six prompts."""
    rows = zip(CARD_PROMPTS, samples, judged, strict=True)
    return pd.DataFrame(
        [
            {
                "prompt": p.text,
                "output": s.text,
                "failure": labels.primary,
                "flags": describe(labels),
                "tokens": len(s.ids),
            }
            for p, s, labels in rows
        ]
    )


def samples_cell(opened: Opened, sampling: SamplingConfig) -> str:
    """A cell that samples and labels the six prompts again."""
    choices = f"temperature={sampling.temperature}, top_p={sampling.top_p}, seed={sampling.seed}"
    return exports.loading(opened) + (
        "from shardscope.failures import describe, sample_card\n\n"
        f"samples = sample_card(model, max_new_tokens={sampling.max_new_tokens}, {choices})\n"
        "[(sample.prompt.text, sample.generation.text, describe(sample.labels)) for sample in samples]\n"
    )


def draw_probes(opened: Opened) -> None:
    """What training itself sampled from the same prompts, as the run went on."""
    run = run_of(opened)
    lines, problem = read_log(run) if run else ([], "")
    samples = [line for line in lines if line.get("kind") == "sample"]
    st.subheader("While it was trained", anchor=False)
    if problem:
        st.warning(f"What it logged cannot be read: {plain(problem)}.")
        return
    if run is None or not samples:
        st.caption("Its training logged no samples; `train.sample_every` makes it do so.")
        return
    table = probe_table(samples)
    counts = table.groupby(["step", "failure"]).size().reset_index(name="samples")
    bars = (
        alt.Chart(counts)
        .mark_bar()
        .encode(
            x=alt.X("step:O"),
            y=alt.Y("samples:Q", axis=alt.Axis(tickMinStep=1)),
            color=alt.Color("failure:N", scale=alt.Scale(range=OKABE_ITO)),
            tooltip=["step", "failure", "samples"],
        )
    )
    left, right = st.columns([2, 3], gap="medium")
    left.altair_chart(bars.properties(height=280), width="stretch")
    right.dataframe(table.iloc[::-1], hide_index=True, height=280)
    exports.buttons(
        "training samples",
        f"shardscope-{opened.fingerprint}-training-samples",
        lambda: (
            "from pathlib import Path\n\nfrom shardscope.train.metrics import read_metrics\n\n"
            f'samples = read_metrics(Path({str(exports.relative(run))!r}), "sample")\n'
            "names = ('step', 'prompt', 'output', 'failure')\n[tuple(map(sample.get, names)) for sample in samples]\n"
        ),
        lambda: table,
    )


def probe_table(samples: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """A line for each logged sample; what a line lacks, or holds as something else than text, is said in its place."""
    return pd.DataFrame(
        [
            {"step": sample["step"], **{name: _logged_text(sample, name) for name in ("prompt", "output", "failure")}}
            for sample in samples
        ]
    )


def _logged_text(sample: Mapping[str, object], name: str) -> str:
    value = sample.get(name)
    return visible(value) if isinstance(value, str) else f"no {name} logged"


def cards(number: int) -> list[DeltaGenerator]:
    """Bordered boxes in rows of two, which fold into one column on a phone."""
    boxes = []
    for _ in range(0, number, 2):
        for column in st.columns(2):
            boxes.append(column.container(border=True, height="stretch").empty())
    return boxes[:number]


def judge(prompt: SuitePrompt, sample: Continuation, tokenizer: Tokenizer) -> Labels:
    return label(
        sample.text,
        prompt=prompt.text,
        ids=sample.ids,
        stop_reason=sample.stop_reason or "length",
        domain=prompt.domain,
        gold=prompt.gold,
        tokenizer=tokenizer,
    )


def count(judged: Sequence[Labels]) -> str:
    """How many samples fail in which way, as Markdown."""
    words = [labels.primary for labels in judged]
    return " ".join(badge(word, f"{words.count(word)} {word}") for word in sorted(set(words), key=words.index))


def badge(word: str, text: str) -> str:
    return f":{COLORS.get(word, 'violet')}-badge[{text}]"


def draw_sample(row: int, prompt: SuitePrompt, sample: Continuation, labels: Labels, tokenizer: Tokenizer) -> None:
    right = f" · a right answer would hold {' or '.join(prompt.gold)}" if prompt.gold else ""
    st.markdown(badge(labels.primary, labels.primary))
    marked_text(prompt.text, sample.text, evidence(sample, labels, tokenizer), key=f"sample {row}")
    st.caption(f"{describe(labels)} · {len(sample.ids)} tokens, {STOPS[sample.stop_reason or 'length']}{right}")


def evidence(sample: Continuation, labels: Labels, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The characters of the output that the primary failure, else the first suspicion, is about."""
    flags = sorted(labels.flags, key=lambda flag: (flag.failure != labels.primary, flag.suspect))
    if not flags:
        return None
    pieces = token_pieces(sample.ids, tokenizer)
    return sum(map(len, pieces[: flags[0].start])), sum(map(len, pieces[: flags[0].end]))
