"""An atlas as text for a terminal."""

from __future__ import annotations

from shardscope.failures.atlas.rates import DOMAINS, ROWS, Rate, before_and_after, changes, rates
from shardscope.failures.atlas.records import Atlas, AtlasColumn
from shardscope.visible import on_one_line

MOST_COLUMNS = 6  # checkpoints in a table; of more, evenly chosen ones


def atlas_table(atlas: Atlas) -> str:
    """A block for each domain: a line for each failure, a column for each checkpoint, percent with the interval; then
    what changed from before to after. All temperatures together.
    """
    shown = thinned(atlas.columns)
    cells = {
        (rate.run, rate.step, rate.domain, rate.failure): rate for rate in rates(atlas) if rate.temperature is None
    }
    lines = [_heading(atlas, len(shown))]
    steps = "".join(f"{f'step {column.step:,}':>17}" for column in shown)
    for domain in DOMAINS:
        rows = [[cells[column.run, column.step, domain, failure] for column in shown] for failure in ROWS]
        if not rows[-1][0].samples:
            continue
        lines += ["", f"{domain:<12}{steps}", *(_line(row) for row in rows if row[0].samples)]
        if len({column.run for column in shown}) > 1:
            lines.insert(-len([row for row in rows if row[0].samples]) - 1, " " * 12 + _names(shown))
    lines += _changes(atlas)
    return "\n".join(line.rstrip() for line in lines)


def thinned(columns: tuple[AtlasColumn, ...], most: int = MOST_COLUMNS) -> list[AtlasColumn]:
    """At most `most` of them, evenly spread; the first and the last of all, and those that are compared, stay."""
    if len(columns) <= most:
        return list(columns)
    chosen = {round(place * (len(columns) - 1) / (most - 1)) for place in range(most)}
    before = columns.index(before_and_after(columns)[0])
    if before not in chosen:  # it takes the place of its neighbour
        inner = chosen - {0, len(columns) - 1}
        chosen = chosen - {min(inner, key=lambda place: abs(place - before))} | {before}
    return [columns[place] for place in sorted(chosen)]


def _heading(atlas: Atlas, shown: int) -> str:
    settings, left_out = atlas.settings, atlas.left_out
    temperatures = ", ".join(f"{temperature:g}" for temperature in settings.temperatures)
    words = [
        f"{len(settings.prompts) - len(left_out)} prompts at temperature {temperatures}, {settings.seeds} seeds "
        f"(greedy: 1), {settings.max_new_tokens} new tokens; percent of the samples, with the 95 % interval"
    ]
    if left_out:
        words.append(f"{len(left_out)} prompts left out, which do not fit into the context")
    if shown < len(atlas.columns):
        words.append(f"{shown} of {len(atlas.columns)} checkpoints shown; --json has all")
    return "\n".join(words)


def _names(shown: list[AtlasColumn]) -> str:
    """Each run's name above its first column."""
    line = ""
    for place, column in enumerate(shown):
        if place == 0 or shown[place - 1].run != column.run:
            room = 17 * sum(other.run == column.run for other in shown)
            name = on_one_line(column.run)
            line = line.ljust(17 * place) + "  " + (name if len(name) < room - 2 else name[: room - 4] + "…")
    return line


def _line(row: list[Rate]) -> str:
    return f"{row[0].failure:<12}" + "".join(f"{_percent(rate):>17}" for rate in row)


def _percent(rate: Rate) -> str:
    if rate.rate is None:
        return "–"
    low, high = rate.interval
    return f"{rate.rate:.1%}"[:-1] + f" ({100 * low:.0f}–{100 * high:.0f})"


def _changes(atlas: Atlas) -> list[str]:
    """What is clearly rarer or more often after than before, over all domains and in each."""
    clear = [one for one in changes(atlas) if one.after.temperature is None and one.verdict != "undecided"]
    if len(atlas.columns) < 2:
        return []
    before, after = before_and_after(atlas.columns)
    lines = [
        "",
        f"from {on_one_line(before.run)} step {before.step:,} to {on_one_line(after.run)} step {after.step:,}:",
    ]
    for one in clear:
        low, high = one.interval
        lines.append(
            f"  {one.after.domain:<8}{one.after.failure:<12}{one.verdict:<12}{100 * one.difference:+.1f} points "
            f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        )
    return lines + ([] if clear else ["  no failure is clearly rarer or more often"])
