"""Failures: how often, at every checkpoint; the samples behind a rate, or prompts continued live; one sample with what
is wrong with it and where; the X-ray of one that loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd
import streamlit as st

from apps.parts import address, exports
from apps.parts.atlas import Shown, draw_atlas, pick_sample
from apps.parts.caching import cached
from apps.parts.checkpoints import Opened, pick_checkpoint, run_of
from apps.parts.continuing import Continuation, continue_prompts, sampling_controls
from apps.parts.flags import COLORS, count, draw_flags, evidence, hue, judge
from apps.parts.logs import read_log
from apps.parts.rows import choose_by_row
from apps.parts.text import plain, sentence
from apps.parts.tokens import marked_text
from apps.parts.xray import Looping, draw_xray, of_row, sampling_lines
from shardscope.config import ConfigError
from shardscope.failures import CARD_PROMPTS, Labels, SuitePrompt, describe, for_model, load_suite, text_model_of
from shardscope.generation import SamplingConfig
from shardscope.model import PromptError
from shardscope.visible import on_one_line, visible

SUITES = {
    "card": "the card's six",
    "math": "math",
    "code": "code",
    "prose": "prose",
    "retrieval": "retrieval (long)",
}
STOPS = {"eos": "ended by the model", "length": "cut at the limit", "context": "the context is full", "stop": "stopped"}
LONGEST_PROMPT = 1200  # characters of a prompt that are drawn, its last ones
IN_THE_LIST = 60  # characters of a prompt in the list of samples


def page() -> None:
    opened = pick_checkpoint()
    if opened is None:
        return
    shown = draw_atlas(opened)
    if shown is not None and st.session_state.cell:
        draw_picked(shown, opened)
    else:
        draw_live(opened)
    address.publish()
    draw_probes(opened)


def draw_picked(shown: Shown, opened: Opened) -> None:
    """A sample of the atlas, looked at as one that was written now."""
    picked = pick_sample(shown, opened)
    if picked is None:
        return
    sample, of = picked.sample, picked.opened or opened
    prompt = next(prompt for prompt in shown.atlas.settings.prompts if prompt.id == sample.prompt)
    tokenizer, config = of.model.tokenizer, of.model.config
    assert tokenizer is not None
    try:
        written = for_model([prompt], of.model, room=len(sample.ids))
        sampling = SamplingConfig(
            max_new_tokens=shown.atlas.settings.max_new_tokens, temperature=sample.temperature, seed=sample.seed
        )
        text_model = text_model_of(run_of(of))
    except ConfigError as error:
        st.error(sentence(error))
        return
    if not written or any(id >= config.vocab_size for id in sample.ids):
        st.error("This sample is none of the model's that is open: its tokens do not fit. Sample the run again.")
        return
    [prompt] = written
    looping = Looping(
        of,
        prompt,
        Continuation(sample.ids, sample.text, sample.stop_reason),
        tuple(tokenizer.encode(prompt.text, bos=True)),
        sampling,
    )
    labels = judge(prompt, looping.sample, tokenizer, text_model)
    stay_with(looping)
    draw_sample(looping, labels)
    if labels.loop is not None and picked.opened is not None:
        draw_xray(looping)


def draw_live(opened: Opened) -> None:
    """Prompts of the suite, sampled as somebody chooses."""
    st.subheader("Sampled now", anchor=False)
    with st.form("sampled", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        address.one_of("suite", list(SUITES))
        st.selectbox("Prompts", list(SUITES), key="suite", format_func=SUITES.__getitem__, width=170)
        sampling = sampling_controls("sample_tokens", fewest=1)
        st.form_submit_button("Sample", type="primary")
        st.form_submit_button("Next seed", on_click=next_seed)
    assert sampling is not None, "at least one token is sampled"
    try:
        draw_samples(opened, sampling)
    except (PromptError, ConfigError) as error:
        st.error(sentence(error))


def next_seed() -> None:
    st.session_state.seed += 1


def prompts_of(opened: Opened, suite: str) -> list[SuitePrompt]:
    """The prompts of a suite that fit into the model's context, each written out for it."""

    def chosen(prompt: SuitePrompt) -> bool:
        return prompt.skill != "card" and (prompt.domain if prompt.retrieval is None else "retrieval") == suite

    def write() -> list[SuitePrompt]:
        wanted = CARD_PROMPTS if suite == "card" else [prompt for prompt in load_suite() if chosen(prompt)]
        return for_model(wanted, opened.model, room=1)

    return cached("prompts", (opened.fingerprint, suite), 16, "", lambda _: write())


def draw_samples(opened: Opened, sampling: SamplingConfig) -> None:
    """A table that appears when the model has written, and the sample that is looked at."""
    tokenizer = opened.model.tokenizer
    assert tokenizer is not None
    suite: str = st.session_state.suite
    prompts = prompts_of(opened, suite)
    if not prompts:
        st.error(
            f"None of these prompts fits into this model's context of {opened.model.config.n_ctx} tokens; "
            "choose other prompts or another checkpoint."
        )
        return
    ids = tuple(tuple(tokenizer.encode(prompt.text, bos=True)) for prompt in prompts)
    bar = st.empty()
    samples: list[Continuation] = []
    for samples in continue_prompts(opened, ids, sampling):
        written = sum(len(sample.ids) for sample in samples)
        bar.progress(min(1.0, written / (len(samples) * sampling.max_new_tokens)), "Sampling …")
    bar.empty()
    text_model = text_model_of(run_of(opened))
    judged = cached(
        "labels",
        (opened.fingerprint, ids, tuple(samples)),
        16,
        "",
        lambda _: [judge(prompt, it, tokenizer, text_model) for prompt, it in zip(prompts, samples, strict=True)],
    )
    look_at_samples(opened, sampling, prompts, ids, samples, judged)


@st.fragment
def look_at_samples(
    opened: Opened,
    sampling: SamplingConfig,
    prompts: Sequence[SuitePrompt],
    ids: Sequence[tuple[int, ...]],
    samples: Sequence[Continuation],
    judged: Sequence[Labels],
) -> None:
    names = [prompt.id for prompt in prompts]
    address.one_of("sample", names)
    suite: str = st.session_state.suite
    st.markdown(count(judged))
    table = sample_table(prompts, samples, judged)
    columns = {"failure": None, "tokens": st.column_config.NumberColumn(width=60)}
    choose_by_row(table, names, "sample", key=f"table of {suite}", columns=columns)
    exports.buttons(
        "samples",
        f"shardscope-{opened.fingerprint}-samples",
        lambda: samples_cell(opened, sampling, suite),
        lambda: table,
    )
    listed = {name: f"{name} · {on_one_line(p.text)[-IN_THE_LIST:]}" for name, p in zip(names, prompts, strict=True)}
    name = st.selectbox("Sample", names, key="sample", format_func=listed.__getitem__)
    row = names.index(name)
    looping = Looping(opened, prompts[row], samples[row], ids[row], of_row(sampling, row))
    stay_with(looping)
    draw_sample(looping, judged[row])
    if judged[row].loop is not None:
        draw_xray(looping)
    address.publish()


def stay_with(shown: Looping) -> None:
    """What was found out about one sample is not asked of the next by itself; only an address asks at once."""
    if st.session_state.setdefault("sample_explained", shown.key) != shown.key:
        st.session_state.update(sample_explained=shown.key, cause=False, without=False)


def draw_sample(shown: Looping, labels: Labels) -> None:
    """One sample, with every flag's words coloured in the text and its false-alarm rate below."""
    prompt, sample, tokenizer = shown.prompt, shown.sample, shown.opened.model.tokenizer
    assert tokenizer is not None
    before = prompt.text if len(prompt.text) <= LONGEST_PROMPT else "… " + prompt.text[-LONGEST_PROMPT:]
    with st.container(border=True):
        marked_text(before, sample.text, evidence(sample, labels, tokenizer), key="sample text")
    draw_flags(labels)
    right = f" · a right answer would hold {plain(' or '.join(prompt.gold))}" if prompt.gold else ""
    st.caption(f"{describe(labels)} · {len(sample.ids)} tokens, {STOPS[sample.stop_reason or 'length']}{right}")
    exports.buttons(
        "sample",
        shown.file_name("flags"),
        lambda: sample_cell(shown),
        lambda: flag_table(shown, labels),
    )


def flag_table(shown: Looping, labels: Labels) -> pd.DataFrame:
    """A line for each flag of a sample, with the words of the output that it is about."""
    tokenizer = shown.opened.model.tokenizer
    assert tokenizer is not None
    flags = [
        {"flag": words, "from": start, "to": end, "text": shown.sample.text[start:end]}
        for start, end, _, words in evidence(shown.sample, labels, tokenizer)
    ]
    return pd.DataFrame(flags, columns=["flag", "from", "to", "text"])


def sample_cell(shown: Looping) -> str:
    """A cell that samples and labels one prompt again."""
    choices = f"domain={shown.prompt.domain!r}, gold={shown.prompt.gold!r}"
    return (
        exports.loading(shown.opened)
        + sampling_lines(shown.prompt, shown.sampling)
        + (
            "from shardscope.failures import describe, label\n\n"
            "generation = generate(model, prompt, sampling)\n"
            f"labels = label(generation, {choices})\n"
            "generation.text, describe(labels), labels.flags\n"
        )
    )


def sample_table(
    prompts: Sequence[SuitePrompt], samples: Sequence[Continuation], judged: Sequence[Labels]
) -> pd.DataFrame:
    """A line for each prompt."""
    return pd.DataFrame(
        [
            {
                "prompt": prompt.text,
                "output": sample.text,
                "failure": labels.primary,
                "flags": describe(labels),
                "tokens": len(sample.ids),
            }
            for prompt, sample, labels in zip(prompts, samples, judged, strict=True)
        ]
    )


def samples_cell(opened: Opened, sampling: SamplingConfig, suite: str) -> str:
    """A cell that samples and labels the prompts again."""
    choices = f"temperature={sampling.temperature}, top_p={sampling.top_p}, seed={sampling.seed}"
    if suite == "card":
        return exports.loading(opened) + (
            "from shardscope.failures import describe, sample_card\n\n"
            f"samples = sample_card(model, max_new_tokens={sampling.max_new_tokens}, {choices})\n"
            "[(sample.prompt.text, sample.generation.text, describe(sample.labels)) for sample in samples]\n"
        )
    wanted = "p.retrieval is not None" if suite == "retrieval" else f"p.domain == {suite!r} and p.retrieval is None"
    return exports.loading(opened) + (
        "from shardscope.failures import describe, for_model, label, load_suite\n"
        "from shardscope.generation import SamplingConfig, generate\n\n"
        f'chosen = [p for p in load_suite() if p.skill != "card" and {wanted}]\n'
        "prompts = for_model(chosen, model, room=1)\n"
        f"sampling = SamplingConfig(max_new_tokens={sampling.max_new_tokens}, {choices})\n"
        "samples = generate(model, [p.text for p in prompts], sampling)\n"
        "labels = [label(s, domain=p.domain, gold=p.gold) for p, s in zip(prompts, samples)]\n"
        "[(p.text, s.text, describe(found)) for p, s, found in zip(prompts, samples, labels)]\n"
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
            color=alt.Color("failure:N", scale=alt.Scale(domain=list(COLORS), range=list(map(hue, COLORS)))),
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
