"""Runs: the curves of every run in the start folders, live while one trains, what each plans, and their biographies."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any, TypeGuard

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from apps.parts import address, exports
from apps.parts.biography import LOOK_EVERY, draw_biographies
from apps.parts.checkpoints import FAILURES, MAKE_ONE, below, real, start_folders
from apps.parts.logs import logged_at, read_log
from apps.parts.text import plain
from shardscope.colors import MARK, OKABE_ITO
from shardscope.config import Recipe
from shardscope.files import read_json
from shardscope.train.health import troubles_of
from shardscope.train.lineage import Fork, forks_before
from shardscope.train.metrics import FILE
from shardscope.train.run import RECIPE, run_status
from shardscope.train.schedule import decay_start, lr_factor
from shardscope.visible import visible

LIVE = 120.0  # seconds without a line after which a run is no longer called running
ENDS = ("start", "paused early", "finished")  # events that say how a run stands
MOST_POINTS = 600  # of a curve
EVAL_FIELD = {"bits_per_byte": "bits_per_byte", "held_out_loss": "loss"}
DASHES = [[1, 0], [7, 4], [2, 3], [9, 3, 2, 3], [14, 5], [4, 2]]
CURVES = {
    "cross_entropy": ("train", "training cross-entropy, nats a token"),
    "bits_per_byte": ("eval", "held-out bits per byte"),
    "held_out_loss": ("eval", "held-out loss, nats a token"),
    "lr": ("train", "learning rate"),
    "grad_norm": ("train", "gradient norm"),
    "z": ("train", "logsumexp² of the logits (what the z-loss weighs)"),
    "tokens_per_second": ("train", "tokens a second"),
    "smallest_ratio": ("sentinel", "smallest over largest singular value, worst matrix"),
}


@dataclass(frozen=True)
class Run:
    """A run folder and what its recipe says; `problem` is why the recipe cannot be read."""

    name: str
    folder: Path
    recipe: Recipe | None
    problem: str = ""


def page() -> None:
    runs = find_runs(start_folders())
    if not runs:
        st.info(f"There is no run under {plain(', '.join(map(str, start_folders())))} yet: {MAKE_ONE}.")
        draw_biographies([])
        return address.publish()
    names = list(runs)
    known = [name for name in st.session_state.runs if name in runs]
    if len(known) < len(st.session_state.runs):
        st.warning("A run that the address names is not among those that this explorer was started with.")
    st.session_state.runs = known or names[:4]
    chosen = st.multiselect("Runs", names, key="runs")
    address.one_of("curve", list(CURVES))
    curve = st.selectbox("Curve", list(CURVES), key="curve", format_func=lambda name: CURVES[name][1])
    picked = [runs[name] for name in chosen]
    live(picked, str(curve))
    # Outside of what is drawn again every two seconds, which would take a file away while it is asked for.
    exports.buttons(
        "curve",
        f"shardscope-{curve}",
        lambda: curve_cell(picked, str(curve)),
        lambda: curve_table(picked, str(curve), most=0),
        picture=False,
    )
    forked = {name: forks(run) for name, run in runs.items()}
    for run in picked:
        draw_plan(run, forked, expanded=len(picked) <= 2)
    draw_biographies((run.name, run.folder) for run in picked)
    address.publish()


@st.fragment(run_every=LOOK_EVERY)
def live(runs: Sequence[Run], curve: str) -> None:
    """The curves as they are now; looks again every two seconds."""
    st.dataframe(states(runs), hide_index=True)
    table = curve_table(runs, curve)
    if table.empty:
        st.caption("Nothing of this kind has been logged yet.")
        return
    # Runs differ in colour and series in their dashes, in the legend too; a line of points would hide its dashes there.
    stroke = alt.Legend(symbolType="stroke", symbolSize=500, symbolStrokeWidth=2)
    several = table["series"].nunique() > 1
    base = alt.Chart(table).encode(
        x=alt.X("step:Q", title="step, counted from the start of the first run that it descends from"),
        y=alt.Y("value:Q", title=CURVES[curve][1], scale=alt.Scale(zero=False)),
        color=alt.Color("run:N", scale=alt.Scale(range=list(OKABE_ITO)), legend=stroke),
        tooltip=["run", "series", "step", alt.Tooltip("value:Q", format=".5g")],
    )
    dashes = alt.Scale(range=DASHES)
    lines = base.mark_line().encode(
        strokeDash=alt.StrokeDash("series:N", scale=dashes, legend=stroke if several else None)
    )
    starts = [{"step": steps, "run": run.name} for run in runs if (steps := steps_before(run))]
    # Wide and invisible where there are many: something for the pointer to find.
    points = base.mark_point(filled=True, size=40, opacity=1 if len(table) < 60 else 0)
    layers = [lines, points]
    if starts:
        rule = alt.Chart(pd.DataFrame(starts)).mark_rule(strokeDash=[4, 4], color=MARK)
        layers.append(rule.encode(x="step:Q", tooltip=["run", "step"]))
    st.altair_chart(alt.layer(*layers).properties(height=380), width="stretch")


def find_runs(folders: Sequence[Path]) -> dict[str, Run]:
    """Name to run, the one that logged last first."""
    found: dict[str, Run] = {}
    for folder in folders:
        for path in below(real(folder), (RECIPE, FILE)):
            name = visible(path.name)
            name = name if name not in found else visible(str(path))
            try:
                found[name] = Run(name, path, Recipe.from_dict(read_json(path / RECIPE)))
            except (*FAILURES, RecursionError) as error:
                found[name] = Run(name, path, None, str(error))
    return dict(sorted(found.items(), key=lambda item: -logged_at(item[1].folder)))


def states(runs: Sequence[Run]) -> pd.DataFrame:
    """A line for each run; what no run here has is no column."""
    table = pd.DataFrame([state(run) for run in runs])
    return table.drop(columns=[name for name in ("forked from", "trouble") if name in table and not any(table[name])])


def state(run: Run) -> dict[str, Any]:
    """A line of the table: how far the run is, and how well it does, or why its files cannot be read."""
    lines, evaluations, told = logged(run, "train"), logged(run, "eval"), logged(run, "event")
    events = [line["event"] for line in told if line.get("event") in ENDS]
    troubles = [f"{trouble.kind} since step {trouble.step:,}" for trouble, over in troubles_of(told) if over is None]
    last, quiet = visible(str(events[-1])) if events else "no line yet", time() - logged_at(run.folder)
    steps = run.recipe.schedule.steps if run.recipe else 0
    if run.recipe is None:
        last = f"{last}; its recipe cannot be read"
    if problem := read_log(run.folder)[1]:
        last = problem
    return {
        "run": run.name,
        "state": last if last != "start" else "running" if quiet < LIVE else "stopped",
        "forked from": visible(", ".join(map(str, forks(run)[-1:]))),
        "step": f"{lines[-1]['step'] if lines else 0:,} of {steps:,}",
        "trouble": visible(", ".join(troubles)),
        "cross-entropy": number(lines[-1].get("cross_entropy")) if lines else None,
        "held-out bits per byte": values(evaluations[-1], "bits_per_byte").get("all") if evaluations else None,
        "tokens a second": number(lines[-1].get("tokens_per_second")) if lines else None,
        "seconds since its last line": round(quiet),
    }


def curve_table(runs: Sequence[Run], curve: str, most: int = MOST_POINTS) -> pd.DataFrame:
    """run, series, step, value; at most `most` points of a series (0: all), the last one always."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        start = steps_before(run)
        series: dict[str, list[tuple[int, float]]] = {}
        for line in logged(run, CURVES[curve][0]):
            for name, value in values(line, curve).items():
                series.setdefault(name, []).append((start + int(line["step"]), value))
        for name, points in series.items():
            every = -(-len(points) // most) if most else 1
            rows += [
                {"run": run.name, "series": name, "step": step, "value": value}
                for step, value in points[:: -max(every, 1)][::-1]
            ]
    return pd.DataFrame(rows, columns=["run", "series", "step", "value"])


def curve_cell(runs: Sequence[Run], curve: str) -> str:
    """A cell that reads the lines behind the curve."""
    kind, words = CURVES[curve]
    starts = ", ".join(f"{str(exports.relative(run.folder))!r}: {steps_before(run)}" for run in runs)
    score, ratio = f's["{EVAL_FIELD.get(curve)}"]', "low / high for low, high"
    value = {
        "train": f'line["{curve}"]',
        "eval": f"{{name: {score} for name, s in line.items() if isinstance(s, dict) and {score} is not None}}",
        "sentinel": f'min(({ratio} in line["matrices"].values() if high and low is not None), default=None)',
    }[kind]
    has = f' if line.get("{curve}") is not None' if kind == "train" else ""
    return (
        "from pathlib import Path\n\nfrom shardscope.train.metrics import read_metrics\n\n"
        f"runs = {{{starts}}}  # folder: the step that it forks from\n"
        "curve = {\n"
        f'    run: [(start + line["step"], {value})\n'
        f'          for line in read_metrics(Path(run), "{kind}"){has}]\n'
        "    for run, start in runs.items()\n"
        "}\n"
        f"curve  # {words}\n"
    )


def values(line: Mapping[str, Any], curve: str) -> dict[str, float]:
    """What a line of metrics.jsonl says of a curve: one value, or one for each held-out source."""
    if line["kind"] == "eval":
        found = {name: scores.get(EVAL_FIELD[curve]) for name, scores in line.items() if isinstance(scores, Mapping)}
    elif line["kind"] == "sentinel":
        matrices = line.get("matrices")
        pairs = [pair for pair in matrices.values() if is_pair(pair)] if isinstance(matrices, Mapping) else []
        found = {"worst matrix": min((low / high for low, high in pairs), default=None)}
    else:
        found = {"training": line.get(curve)}
    numbers = {visible(name): number(value) for name, value in found.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def number(value: object) -> float | None:
    """A finite number; None for anything else. One that was not finite is null in the file."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None


def is_pair(value: object) -> TypeGuard[tuple[float, float]]:
    """Whether a matrix has its smallest and its largest singular value, as [low, high]."""
    return isinstance(value, list) and len(value) == 2 and None not in map(number, value) and value[1] != 0


def forks(run: Run) -> list[Fork]:
    """The forks that lead to a run, the oldest first."""
    # Later starts resume from the run's own checkpoints.
    first: dict[str, Any] = next((line for line in logged(run, "event") if line.get("event") == "start"), {})
    return forks_before(run.folder, str(first.get("started_from") or ""))


def steps_before(run: Run) -> int:
    """The steps that a run's weights had taken in other runs before its own first one; 0 for a run from nothing."""
    return sum(fork.step or 0 for fork in forks(run))


def logged(run: Run, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in the run's metrics.jsonl, as they are now."""
    return [line for line in read_log(run.folder)[0] if line.get("kind") == kind]


def draw_plan(run: Run, forked: Mapping[str, Sequence[Fork]], expanded: bool) -> None:
    """What a run sets out to do: its learning rate over the steps, its mixture, and the run that it forks from."""
    with st.expander(f"Plan of {plain(run.name)}", icon=":material/route:", expanded=expanded):
        if run.recipe is None:
            st.error(f"Its recipe cannot be read: {plain(run.problem)}.")
            return
        try:
            told = story(run, forked)
        except FAILURES as error:
            st.error(f"How far it came cannot be read: {plain(str(error))}.")
            return
        st.markdown(told)
        left, right = st.columns(2, gap="medium")
        rate = alt.Chart(rate_plan(run.recipe)).mark_line(color=OKABE_ITO[0])
        left.altair_chart(
            rate.encode(x="step:Q", y=alt.Y("learning rate:Q", axis=alt.Axis(format="~e"))).properties(height=200),
            width="stretch",
        )
        mixture = alt.Chart(mixture_plan(run.recipe)).mark_bar(color=OKABE_ITO[2])
        right.altair_chart(
            mixture.encode(
                x=alt.X("share:Q", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
                y=alt.Y("source:N", sort=None, title=None),
                tooltip=["source", "path", alt.Tooltip("share:Q", format=".1%")],
            ).properties(height=200),
            width="stretch",
        )
        recipe = run.recipe
        exports.buttons(
            f"plan of {run.name}",
            f"shardscope-{run.name}-plan",
            lambda: plan_cell(run),
            lambda: pd.concat([rate_plan(recipe), mixture_plan(recipe)]),
            picture=False,
        )


def plan_cell(run: Run) -> str:
    """A cell that leaves a run's learning rates in `rates` and its mixture in `shares`, from its recipe."""
    return (
        "import json\nfrom pathlib import Path\n\n"
        "from shardscope.config import Recipe\nfrom shardscope.train.schedule import lr_factor\n\n"
        f"recipe = Recipe.from_dict(json.loads(Path({str(exports.relative(run.folder / RECIPE))!r}).read_text()))\n"
        "steps = recipe.schedule.steps\n"
        "rates = [recipe.optimizer.lr * lr_factor(step, recipe.schedule) for step in range(steps)]\n"
        "total = sum(source.weight for source in recipe.data.sources)\n"
        "shares = {source.name: source.weight / total for source in recipe.data.sources}\n"
        "rates, shares\n"
    )


def story(run: Run, forked: Mapping[str, Sequence[Fork]]) -> str:
    """The run in a sentence or two, as Markdown; `forked` are the forks that lead to each run of the page."""
    assert run.recipe is not None
    schedule = run.recipe.schedule
    falls = decay_start(schedule)
    rate = (
        f"cosine over {schedule.steps:,} steps"
        if schedule.kind == "cosine"
        else f"{schedule.steps:,} steps, the rate falling over the last {schedule.steps - falls:,}"
        if falls < schedule.steps
        else f"{schedule.steps:,} steps, the rate never falling: the run ends in the stable phase"
    )
    words = [f"{run.recipe.phase} with {run.recipe.optimizer.name}: {rate}."]
    words += [f"It forks from {_named(fork.run.name, fork)}." for fork in forked[run.name][-1:]]
    children = [
        _named(name, fork) for name, to in forked.items() for fork in to[-1:] if fork.run.name == run.folder.name
    ]
    if children:
        words.append(f"Forked by {', '.join(children)}.")
    reason = run_status(run.folder).get("reason")
    return " ".join([*words, *([f"It ended because {plain(str(reason))}."] if reason else [])])


def _named(name: str, fork: Fork) -> str:
    return f"**{plain(name)}**" + ("" if fork.step is None else f" at step {fork.step:,}")


def rate_plan(recipe: Recipe) -> pd.DataFrame:
    steps = np.unique(np.linspace(0, recipe.schedule.steps - 1, 300).astype(int))
    rates = [recipe.optimizer.lr * lr_factor(int(step), recipe.schedule) for step in steps]
    return pd.DataFrame({"step": steps, "learning rate": rates})


def mixture_plan(recipe: Recipe) -> pd.DataFrame:
    total = sum(source.weight for source in recipe.data.sources)
    rows = [
        {"source": visible(s.name), "share": s.weight / total, "path": visible(s.path)} for s in recipe.data.sources
    ]
    return pd.DataFrame(rows)
