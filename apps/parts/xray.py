"""The X-ray of a loop on a page: when it began, who writes it, what causes it, and the text without that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import altair as alt
import pandas as pd
import streamlit as st

from apps.parts import exports
from apps.parts.caching import Report, alone, cached
from apps.parts.checkpoints import Opened, run_of
from apps.parts.continuing import Continuation
from apps.parts.flags import draw_flags, evidence, judge
from apps.parts.text import plain, sentence
from apps.parts.tokens import marked_text
from shardscope.colors import OKABE_ITO
from shardscope.config import ConfigError
from shardscope.failures import SuitePrompt, describe, text_model_of
from shardscope.failures.loop_xray import (
    Cause,
    Cure,
    Onset,
    Suspects,
    find_cause,
    find_onset,
    find_suspects,
    try_cures,
)
from shardscope.generation import Generation, SamplingConfig
from shardscope.visible import on_one_line

SHOWN = 10  # parts in a table; those that break the loop alone are always in it
LONGEST_BLOCK = 120  # characters of the loop that are quoted


@dataclass(frozen=True)
class Looping:
    """A sample that ends in a loop, and how it was sampled (with its own seed)."""

    opened: Opened
    prompt: SuitePrompt
    sample: Continuation
    prompt_ids: tuple[int, ...]
    sampling: SamplingConfig

    @property
    def key(self) -> tuple[object, ...]:
        return (self.opened.fingerprint, self.prompt_ids, self.sample.ids)

    @property
    def generation(self) -> Generation:
        return Generation(
            prompt=self.prompt.text,
            prompt_ids=self.prompt_ids,
            ids=self.sample.ids,
            text=self.sample.text,
            logprobs=(),  # an X-ray computes what it needs
            stop_reason=self.sample.stop_reason or "length",
            seed=self.sampling.seed,
            tokenizer=self.opened.model.tokenizer,
        )

    def file_name(self, *parts: str) -> str:
        return "-".join(["shardscope", self.opened.fingerprint, self.prompt.id, *parts])


def draw_xray(looping: Looping) -> None:
    """The stages, each as far as it has been asked for; what has no X-ray is one sentence."""
    st.subheader("X-ray of the loop", anchor=False)
    try:
        when, who = first_look(looping)
        left, right = st.columns(2, gap="medium")
        with left:
            draw_when(looping, when)
        with right:
            draw_who(looping, who)
        if not st.session_state.cause:
            st.button("Find the cause", type="primary", on_click=_choose, args=("cause",))
            st.caption(
                "Switches off every head and every MLP, searches the smallest set without which the loop breaks, "
                "sets random sets beside it, and tries cures. This takes a minute or so."
            )
            return
        cause, cures = explanation(looping, when, who)
        draw_cause(looping, cause)
        draw_cures(looping, cures)
        draw_rewritten(looping, cause, cures)
    except ConfigError as error:
        st.info(sentence(error))


def _choose(name: str) -> None:
    st.session_state[name] = True


def first_look(looping: Looping) -> tuple[Onset, Suspects]:
    """When and who: seconds at most."""

    def work(report: Report) -> tuple[Onset, Suspects]:
        def look() -> tuple[Onset, Suspects]:
            model, generation = looping.opened.model, looping.generation
            when = find_onset(model, generation)
            report(0.5, "ranking heads and MLPs")
            return when, find_suspects(model, generation, when)

        return alone(looping.opened, look)

    return cached("loops", looping.key, 32, "Looking at the loop …", work)


def explanation(looping: Looping, when: Onset, who: Suspects) -> tuple[Cause, list[Cure]]:
    """The interventions: a minute of the built-in model on two cores."""

    def work(report: Report) -> tuple[Cause, list[Cure]]:
        def intervene() -> tuple[Cause, list[Cure]]:
            model, generation = looping.opened.model, looping.generation
            cause = find_cause(model, generation, when, who, progress=lambda done, words: report(0.9 * done, words))
            report(0.9, "trying cures")
            return cause, try_cures(model, generation, when, cause.smallest_set)

        return alone(looping.opened, intervene)

    return cached("causes", looping.key, 32, "Finding the cause …", work)


# ------------------------------------------------------------------------------------------------------ when and who


def draw_when(looping: Looping, when: Onset) -> None:
    last = when.copies[-1]
    st.markdown("**When**")
    text = on_one_line(when.text)
    text = text if len(text) <= LONGEST_BLOCK else text[: LONGEST_BLOCK - 1] + "…"
    st.markdown(
        f"From token {when.onset} of the output on: {when.repeats:.1f} copies of {when.period} tokens "
        f"({when.kind}), “{plain(text)}”."
    )
    table = copies_table(when)
    lines = table.melt("copy", ["mean", "smallest"], "over the copy", "probability")
    chart = (
        alt.Chart(lines)
        .mark_line(point=True)
        .encode(
            x=alt.X("copy:Q", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("probability:Q", scale=alt.Scale(domain=[0, 1]), title="probability of its tokens"),
            color=alt.Color("over the copy:N", scale=alt.Scale(range=list(OKABE_ITO[:2]))),
            tooltip=["copy", "over the copy", alt.Tooltip("probability:Q", format=".4f")],
        )
        .properties(height=240)
    )
    st.altair_chart(chart, width="stretch")
    st.caption(
        f"In the last copy the entropy is {last.entropy:.2f} bits; the nearest token outside the loop is "
        f"“{plain(on_one_line(last.other_text))}”, whose logit is {abs(last.least_gap):.2f} "
        f"{'behind' if last.least_gap >= 0 else 'ahead'}."
    )
    cell = (
        xray_cell(looping, "find_onset")
        + "when = find_onset(model, generation)\nwhen.onset, when.period, when.copies\n"
    )
    exports.buttons("when", looping.file_name("when"), lambda: cell, lambda: table)


def copies_table(when: Onset) -> pd.DataFrame:
    """A line for each copy of the loop."""
    return pd.DataFrame(
        {
            "copy": range(1, len(when.copies) + 1),
            "mean": [copy.probability for copy in when.copies],
            "smallest": [copy.least_probability for copy in when.copies],
            "entropy": [copy.entropy for copy in when.copies],
            "best other": [on_one_line(copy.other_text) for copy in when.copies],
            "gap": [copy.least_gap for copy in when.copies],
        }
    )


def draw_who(looping: Looping, who: Suspects) -> None:
    st.markdown("**Who**")
    st.markdown(
        f"What each part adds to the logit of the loop's token less that of the best other one "
        f"({who.logit_difference:+.2f} in all, the embedding {who.embedding:+.2f}). A picture, no proof."
    )
    table = parts_table(who)
    st.dataframe(table.head(SHOWN), hide_index=True, height=388, column_config=_COLUMNS)
    st.caption("“looks back”: a head's attention to what followed in the loop's earlier copies.")
    cell = xray_cell(looping, "find_onset, find_suspects") + (
        "who = find_suspects(model, generation, find_onset(model, generation))\n"
        "sorted(who.parts, key=lambda part: -part.attribution)[:10]\n"
    )
    exports.buttons("who", looping.file_name("who"), lambda: cell, lambda: table)


_COLUMNS = {name: st.column_config.NumberColumn(format="%+.2f") for name in ("adds", "low", "high", "effect")}
_COLUMNS |= {"looks back": st.column_config.NumberColumn(format="%.2f")}
_LOSSES = {"held-out loss": st.column_config.NumberColumn(format="%.3f")}
_LOSSES |= {"change": st.column_config.NumberColumn(format="%+.3f")}


def parts_table(who: Suspects) -> pd.DataFrame:
    """Every head and MLP, those that write the loop's token most first; intervals of 95 %."""
    return pd.DataFrame(
        [
            {
                "part": part.name,
                "layer": part.layer_kind,
                "adds": part.attribution,
                "low": part.attribution_interval.low,
                "high": part.attribution_interval.high,
                "looks back": part.attention_all_copies,  # None for an MLP
            }
            for part in sorted(who.parts, key=lambda part: -part.attribution)
        ]
    )


# ---------------------------------------------------------------------------------------------------- cause and cures


def draw_cause(looping: Looping, cause: Cause) -> None:
    st.markdown(f"**Cause: {cause.verdict}**")
    st.markdown(f"{plain(cause.reason[:1].upper() + cause.reason[1:])}.")
    st.markdown("\n".join(f"- {line}" for line in findings(cause)))
    table = effects_table(cause)
    shown = table[(table.index < SHOWN) | (table["breaks it alone"] == "yes")]
    st.dataframe(shown, hide_index=True, column_config=_COLUMNS)
    st.caption(
        f"Each part alone replaced by its mean over held-out text: the change of the log-odds of the loop's next "
        f"token, and what the text then ends in. {cause.interventions} interventions."
    )
    cell = xray_cell(looping, "xray", "shardscope.failures") + (
        "found = xray(model, generation)  # the long one\n"
        "found.verdict, found.smallest_set, found.cause.parts, found.cures\n"
    )
    exports.buttons("cause", looping.file_name("cause"), lambda: cell, lambda: table)


def findings(cause: Cause) -> list[str]:
    """The smallest set and its random control, each with its interval, as Markdown."""
    if cause.smallest is None:
        return [f"No set of up to {cause.max_size} parts was found that breaks the loop."]
    found, control = cause.smallest, cause.random_control
    lines = [
        f"Smallest set: **{', '.join(found.parts)}**. Without it the loop breaks from {found.broken} of {found.starts} "
        f"starts ({found.interval.low:.0%} to {found.interval.high:.0%}); held-out loss {found.held_out_cost:+.3f}."
    ]
    if control is not None and control.sets:
        lines.append(
            f"As many random parts of the same kinds: {control.broken} of {control.sets} sets break it "
            f"({control.interval.low:.0%} to {control.interval.high:.0%})."
        )
    elif control is not None:
        lines.append("There are too few other parts of the same kinds for a random control.")
    return lines


def effects_table(cause: Cause) -> pd.DataFrame:
    """Every part switched off alone, those that carry the loop most first; intervals of 95 %."""
    return pd.DataFrame(
        [
            {
                "part": part.name,
                "layer": part.layer_kind,
                "effect": part.effect,
                "low": part.interval.low,
                "high": part.interval.high,
                "ends in": part.outcome,
                "breaks it alone": "yes" if part.broken else "no",
            }
            for part in sorted(cause.parts, key=lambda part: part.effect)
        ]
    )


def draw_cures(looping: Looping, cures: Sequence[Cure]) -> None:
    st.markdown("**Cures**")
    table = cures_table(cures)
    st.dataframe(table, hide_index=True, column_config=_LOSSES)
    cell = xray_cell(looping, "find_cause, find_onset, find_suspects, try_cures") + (
        "when = find_onset(model, generation)\n"
        "cause = find_cause(model, generation, when, find_suspects(model, generation, when))  # the long one\n"
        "cures = try_cures(model, generation, when, cause.smallest_set)\ncures\n"
    )
    exports.buttons("cures", looping.file_name("cures"), lambda: cell, lambda: table)


def cures_table(cures: Sequence[Cure]) -> pd.DataFrame:
    """Each remedy: how many texts still loop, and what it costs on held-out text in nats a token."""
    return pd.DataFrame(
        [
            {
                "remedy": f"without {', '.join(cure.parts)}" if cure.parts else cure.remedy,
                "setting": f"{cure.setting:g}" if cure.setting else "",
                "texts that loop": f"{cure.looping} of {cure.texts}",
                "interval": f"{cure.interval.low:.0%} to {cure.interval.high:.0%}",
                "held-out loss": cure.loss,
                "change": cure.cost,
            }
            for cure in cures
        ]
    )


# ----------------------------------------------------------------------------------------------------- written again


def draw_rewritten(looping: Looping, cause: Cause, cures: Sequence[Cure]) -> None:
    """The cures' own texts, so that the table above and the texts below cannot disagree."""
    parts = cause.smallest_set
    if not parts:
        return
    if not st.session_state.without:
        words = f"Switch {', '.join(parts)} off and write again"
        st.button(words, type="primary", on_click=_choose, args=("without",))
        return
    tokenizer = looping.opened.model.tokenizer
    assert tokenizer is not None
    versions = {name: continuation_of(cure) for name, cure in compared(cures).items()}
    text_model = text_model_of(run_of(looping.opened))
    table = pd.DataFrame(
        [
            {"text": name, "output": it.text, "flags": describe(judge(looping.prompt, it, tokenizer, text_model))}
            for name, it in versions.items()
        ]
    )
    st.caption("From the same prompt, both greedily: the texts that the first and the last row of the table count.")
    for column, (name, sample) in zip(st.columns(2, gap="medium"), versions.items(), strict=True):
        with column.container(border=True):
            labels = judge(looping.prompt, sample, tokenizer, text_model)
            st.markdown(f"**{name[:1].upper() + name[1:]}**")
            marked_text("", sample.text, evidence(sample, labels, tokenizer), key=f"text {name}")
            draw_flags(labels)
    exports.buttons("both texts", looping.file_name("both"), lambda: rewritten_cell(looping, parts), lambda: table)


def compared(cures: Sequence[Cure]) -> dict[str, Cure]:
    """The text as the model writes it, and that without the found parts, by name."""
    [none] = [cure for cure in cures if cure.remedy == "none"]
    [ablation] = [cure for cure in cures if cure.remedy == "ablation"]
    return {"the whole model": none, f"without {', '.join(ablation.parts)}": ablation}


def continuation_of(cure: Cure) -> Continuation:
    return Continuation(tuple(cure.ids), cure.text, cure.stop_reason)


def rewritten_cell(looping: Looping, parts: Sequence[str]) -> str:
    """A cell that leaves both texts in `texts`."""
    return xray_cell(looping, "find_onset, try_cures") + (
        f"cures = try_cures(model, generation, find_onset(model, generation), {list(parts)!r})\n"
        "texts = [cure.text for cure in (cures[0], cures[-1])]  # the whole model, and without the parts\ntexts\n"
    )


def xray_cell(looping: Looping, names: str, module: str = "shardscope.failures.loop_xray") -> str:
    """The first lines of the cells of this section: the model and the looping text, and what they use."""
    return (
        exports.loading(looping.opened)
        + sampling_lines(looping.prompt, looping.sampling)
        + (f"generation = generate(model, prompt, sampling)\n\nfrom {module} import {names}\n\n")
    )


def sampling_lines(prompt: SuitePrompt, sampling: SamplingConfig) -> str:
    """The lines that leave a prompt and how it is sampled in `prompt` and `sampling`."""
    chosen = {name: value for name, value in asdict(sampling).items() if value != asdict(SamplingConfig())[name]}
    return (
        "from shardscope.generation import SamplingConfig, generate\n\n"
        f"prompt = {prompt.text!r}\n"
        f"sampling = SamplingConfig({', '.join(f'{name}={value!r}' for name, value in chosen.items())})\n"
    )


def of_row(sampling: SamplingConfig, row: int) -> SamplingConfig:
    """How one sample of a batch was sampled: the engine gives each row the seed after the one before."""
    return replace(sampling, seed=sampling.seed + row)
