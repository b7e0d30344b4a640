"""The atlas of a run on a page: how often each failure occurs at each checkpoint, and the samples behind a square."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import streamlit as st

from apps.parts import address, exports
from apps.parts.caching import cached
from apps.parts.checkpoints import MAKE_ONE, Opened, find_checkpoints, run_of, start_folders, try_to_open
from apps.parts.rate_map import Place, rate_map, read_place
from apps.parts.rows import choose_by_row
from apps.parts.text import plain, sentence
from shardscope.checkpoint import WEIGHTS
from shardscope.config import ConfigError
from shardscope.failures.atlas import (
    Atlas,
    AtlasColumn,
    AtlasSample,
    AtlasSettings,
    Change,
    Rate,
    built_in_atlas,
    changes,
    list_atlases,
    rates,
    read_atlas,
)
from shardscope.failures.atlas.picture import atlas_picture
from shardscope.failures.atlas.rates import before_and_after, found_in
from shardscope.failures.atlas.records import folder_of
from shardscope.failures.atlas.table import thinned
from shardscope.train.lineage import forks_before
from shardscope.visible import on_one_line, visible

MOST_COLUMNS = 24  # checkpoints that are drawn; of more, evenly chosen ones
ALONE = "nothing beside it"
ALL = "all"
IN_THE_LIST = 60  # characters of a text in the list of samples


@dataclass(frozen=True)
class Shown:
    """An atlas with its rates; `runs` are the folders that it was read from, none for the one that ships."""

    atlas: Atlas
    rates: tuple[Rate, ...]
    changes: tuple[Change, ...]
    runs: tuple[Path, ...]

    @property
    def file_name(self) -> str:
        return f"shardscope-atlas-{self.atlas.settings.digest}"


@dataclass(frozen=True)
class Picked:
    """A sample of an atlas and the checkpoint that wrote it; `opened` is None where that is gone or another one now."""

    column: AtlasColumn
    sample: AtlasSample
    opened: Opened | None


def draw_atlas(opened: Opened) -> Shown | None:
    """The heat maps, or one sentence that says how to make an atlas."""
    st.subheader("How often, at every checkpoint", anchor=False)
    try:
        shown = _find(opened)
    except (ConfigError, OSError) as error:
        st.warning(sentence(error))
        return None
    if shown is None:
        st.caption(
            f"No atlas was made of this checkpoint's run yet: {_command(opened)} samples the suite at each step."
        )
        return None
    if not shown.runs:
        st.caption(
            "The built-in model is one checkpoint. A run has a column for each of its own: "
            f"{MAKE_ONE}, and sample it with `shardscope atlas RUN`."
        )
    _draw(shown)
    return shown


def _command(opened: Opened) -> str:
    path = str(exports.relative(run_of(opened) or opened.path))
    return f"`shardscope atlas {visible(path).replace('`', '')}`"


def _find(opened: Opened) -> Shown | None:
    """The atlas that the address names, of the open checkpoint's run and the one beside it."""
    run = run_of(opened) or opened.path
    known = list_atlases(run)
    if not known:
        is_built_in = opened.fingerprint == built_in_atlas().columns[0].fingerprint[:12]
        return _with_rates(built_in_atlas(), ()) if is_built_in else None
    by_digest = {settings.digest: settings for settings in known}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        digest = address.one_of("atlas", list(by_digest))
        if len(by_digest) > 1:
            digest = st.selectbox(
                "Sampled", list(by_digest), key="atlas", format_func=lambda it: _words(by_digest[it]), width=420
            )
        settings = by_digest[digest]
        others = _others(run, settings)
        beside = address.one_of("beside", [*others, ALONE])
        if others:
            beside = st.selectbox("Beside it", [*others, ALONE], key="beside", width=260)
    runs: tuple[Path, ...] = (run,)
    if beside in others:
        other = others[beside]
        runs = (other, run) if _parent(run) == other.name else (run, other)
    files = [file for path in runs for file in sorted((folder_of(path) / digest).glob("step-*.jsonl"))]
    key = (tuple(map(os.fsencode, runs)), digest, tuple((os.fsencode(file), file.stat().st_mtime_ns) for file in files))
    return cached("atlas", key, 4, "Reading the samples …", lambda _: _with_rates(read_atlas(runs, settings), runs))


def _words(settings: AtlasSettings) -> str:
    temperatures = ", ".join(f"{temperature:g}" for temperature in settings.temperatures)
    return (
        f"{len(settings.prompts)} prompts, temperature {temperatures}, {settings.seeds} seeds, "
        f"{settings.max_new_tokens} new tokens"
    )


def _others(run: Path, settings: AtlasSettings) -> dict[str, Path]:
    """Name to folder of the other runs that were sampled in the same way, those related by an anneal first."""
    found = find_checkpoints(start_folders()).values()
    runs = dict.fromkeys(path.parent.parent for path in found if path.parent.name == "checkpoints")
    sampled = [other for other in runs if other != run and settings in list_atlases(other)]
    related = sorted(sampled, key=lambda other: not (_parent(other) == run.name or _parent(run) == other.name))
    return {visible(other.name): other for other in related}


def _parent(run: Path) -> str:
    """The name of the run that this one was forked from; '' where nothing says so."""
    return "".join(fork.run.name for fork in forks_before(run)[-1:])


def _with_rates(atlas: Atlas, runs: Sequence[Path]) -> Shown:
    drawn = Atlas(settings=atlas.settings, columns=tuple(thinned(atlas.columns, MOST_COLUMNS)))
    return Shown(drawn, tuple(rates(drawn)), tuple(changes(atlas)), tuple(runs))


# -------------------------------------------------------------------------------------------------------- the map


def _draw(shown: Shown) -> None:
    settings = shown.atlas.settings
    options = [ALL, *(f"{temperature:g}" for temperature in settings.temperatures)]
    address.one_of("heat", options)
    st.segmented_control("Temperature", options, key="heat", required=True)
    temperature = _temperature()
    place = read_place(st.session_state.cell)
    rate_map("rates", [rate for rate in shown.rates if rate.temperature == temperature], place, _choose)
    left_out = len(shown.atlas.left_out)
    st.caption(
        f"Percent of the samples ({_words(settings)}; greedy once): dark is never, bright is always. A square opens "
        "its samples." + f" {left_out} prompts have no room in the context and are left out." * (left_out > 0)
    )
    _draw_changes(shown, temperature)
    exports.buttons(
        "atlas",
        shown.file_name,
        lambda: atlas_cell(shown),
        lambda: rates_table(shown),
        picture=False,
        png=lambda: atlas_picture(shown.atlas),
    )


def _choose(place: Place) -> None:
    """A square opens its samples; pressed again it closes them."""
    st.session_state.update(cell="" if str(place) == st.session_state.cell else str(place), pick="")


def close() -> None:
    st.session_state.update(cell="", pick="")


def _temperature() -> float | None:
    return None if st.session_state.heat == ALL else float(st.session_state.heat)


def _draw_changes(shown: Shown, temperature: float | None) -> None:
    """What an anneal clearly changed, over all domains."""
    if len(shown.atlas.columns) < 2:
        return
    before, after = before_and_after(shown.atlas.columns)
    clear = [
        f"**{one.after.failure}** {one.verdict} ({100 * one.difference:+.1f} points, "
        f"{100 * one.interval.low:+.1f} to {100 * one.interval.high:+.1f})"
        for one in shown.changes
        if one.after.domain == ALL and one.after.temperature == temperature and one.verdict != "undecided"
    ]
    st.markdown(
        f"From {plain(before.run)} step {before.step:,} to {plain(after.run)} step {after.step:,}: "
        + (", ".join(clear) or "nothing is clearly rarer or more often")
        + "."
    )


def rates_table(shown: Shown) -> pd.DataFrame:
    """A line for each rate, with its interval."""
    return pd.DataFrame(
        [
            {
                "run": rate.run,
                "step": rate.step,
                "domain": rate.domain,
                "temperature": ALL if rate.temperature is None else f"{rate.temperature:g}",
                "failure": rate.failure,
                "fired": rate.fired,
                "suspected": rate.suspected,
                "samples": rate.samples,
                "rate": rate.rate,
                "low": rate.interval.low,
                "high": rate.interval.high,
            }
            for rate in shown.rates
        ]
    )


def atlas_cell(shown: Shown) -> str:
    """A cell that leaves the atlas in `atlas` and its rates in `found`."""
    if shown.runs:
        digest, paths = shown.atlas.settings.digest, [str(exports.relative(run)) for run in shown.runs]
        reading = (
            f"runs = {paths!r}\n"
            f"[settings] = [known for known in list_atlases(runs[0]) if known.digest == {digest!r}]\n"
            "atlas = read_atlas(runs, settings)\n"
        )
        names = "list_atlases, rates, read_atlas"
    else:
        reading, names = "atlas = built_in_atlas()\n", "built_in_atlas, rates"
    return (
        f"from shardscope.failures.atlas import {names}\n\n{reading}found = rates(atlas)\n"
        "[(r.run, r.step, r.domain, r.temperature, r.failure, r.rate, r.interval) for r in found]\n"
    )


# ------------------------------------------------------------------------------------------------- behind a square


def pick_sample(shown: Shown, opened: Opened) -> Picked | None:
    """The samples of the chosen square and the one that is looked at; None where there is none to look at."""
    place = read_place(st.session_state.cell)
    column = next((c for c in shown.atlas.columns if place and (c.run, c.step) == (place.run, place.step)), None)
    if place is None or column is None:
        st.info("The square that the address names is not on these maps; choose another one.")
        return None
    found = samples_at(shown.atlas, column, place, _temperature())
    where = f"{plain(place.run)}, step {place.step:,}, {plain(place.domain)}"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(f"{plain(place.failure)}: {len(found)} samples of {where}", anchor=False)
        st.button("Close", on_click=close, icon=":material/close:")
    if not found:
        st.caption("No sample of this square failed in this way.")
        return None
    names = [name_of(sample) for sample in found]
    address.one_of("pick", names)
    table = samples_table(found)
    choose_by_row(table, names, "pick", key=f"samples of {place}")
    exports.buttons(
        "square", f"{shown.file_name}-square", lambda: square_cell(shown, place, _temperature()), lambda: table
    )
    listed = {name: f"{name} · {on_one_line(s.text)[:IN_THE_LIST]}" for name, s in zip(names, found, strict=True)}
    name = st.selectbox("Sample", names, key="pick", format_func=listed.__getitem__)
    return Picked(column, found[names.index(name)], _open(column, opened))


def _open(column: AtlasColumn, opened: Opened) -> Opened | None:
    """The checkpoint that wrote a column's samples, if it is still there and still the same."""
    if opened.fingerprint == column.fingerprint[:12]:
        return opened
    if not (column.checkpoint / WEIGHTS).exists():
        st.warning("The checkpoint that wrote these samples is no longer there: they can be read, but not explained.")
        return None
    found = try_to_open(f"{column.run}/{column.checkpoint.name}", column.checkpoint)
    if found is not None and found.fingerprint != column.fingerprint[:12]:
        st.warning("This checkpoint was written anew since: sample it again to explain what it writes now.")
        return None
    return found


def samples_at(atlas: Atlas, column: AtlasColumn, place: Place, temperature: float | None) -> list[AtlasSample]:
    """The samples that a square counts, then those that are only suspected."""
    domain = {prompt.id: prompt.domain for prompt in atlas.settings.prompts if prompt.id not in atlas.left_out}
    there = [
        (place.failure not in found_in(sample)[0], sample)
        for sample in column.samples
        if sample.prompt in domain
        and place.domain in (ALL, domain[sample.prompt])
        and temperature in (None, sample.temperature)
        and place.failure in set().union(*found_in(sample))
    ]
    return [sample for _, sample in sorted(there, key=lambda one: one[0])]


def name_of(sample: AtlasSample) -> str:
    """What tells a sample of a checkpoint apart."""
    return f"{sample.prompt}, temperature {sample.temperature:g}, seed {sample.seed}"


def samples_table(samples: Sequence[AtlasSample]) -> pd.DataFrame:
    """A line for each sample."""
    return pd.DataFrame(
        [
            {
                "prompt": sample.prompt,
                "output": sample.text,
                "flags": ", ".join(flag.failure + "?" * flag.suspect for flag in sample.flags) or "no flag",
                "temperature": sample.temperature,
                "seed": sample.seed,
                "tokens": len(sample.ids),
            }
            for sample in samples
        ]
    )


def square_cell(shown: Shown, place: Place, temperature: float | None) -> str:
    """A cell that leaves the samples behind a square in `samples`, those that are only suspected left out."""
    domain = "True" if place.domain == ALL else f"domain[s.prompt] == {place.domain!r}"
    of_temperature = "True" if temperature is None else f"s.temperature == {temperature!r}"
    return atlas_cell(shown) + (
        "\nfrom shardscope.failures.atlas.rates import found_in\n\n"
        "domain = {p.id: p.domain for p in atlas.settings.prompts}\n"
        f"[column] = [c for c in atlas.columns if (c.run, c.step) == ({place.run!r}, {place.step})]\n"
        f"there = [s for s in column.samples if {domain} and {of_temperature}]\n"
        f"samples = [s for s in there if {place.failure!r} in found_in(s)[0]]\n"
        "[(s.prompt, s.temperature, s.seed, s.text) for s in samples]\n"
    )
