"""How well the labels agree with a person: precision and recall over samples that were read and labelled by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardscope.config import ConfigError
from shardscope.failures.intervals import Interval, wilson
from shardscope.failures.labels import ORDER, Failure, Labels, label_tokens
from shardscope.files import parse_json, read_text


@dataclass(frozen=True, kw_only=True)
class ReadSample:
    """A sample, and every failure that a person saw in it; `tokens` are the texts of its tokens."""

    model: str
    prompt: str
    tokens: tuple[str, ...]
    domain: str
    gold: tuple[str, ...]
    stop_reason: str
    labels: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """For one label: how many samples a person and the rule gave it to, and how many both.

    `noticed` counts those of a person's that the rule at least suspects.
    """

    failure: Failure
    by_hand: int
    by_rule: int
    both: int
    noticed: int

    @property
    def precision(self) -> Interval:
        return wilson(self.both, self.by_rule)

    @property
    def recall(self) -> Interval:
        return wilson(self.both, self.by_hand)


def read_samples(path: str | Path) -> list[ReadSample]:
    """Raises ConfigError, with the line, for a file that holds anything else."""
    samples = []
    try:
        for number, line in enumerate(read_text(Path(path)).splitlines(), start=1):
            row = parse_json(line, f"{path}, line {number}")
            labels = frozenset(row["labels"])
            if unknown := labels - set(ORDER):
                raise ConfigError(f"{path}, line {number}: unknown labels {sorted(unknown)}; known: {', '.join(ORDER)}")
            samples.append(
                ReadSample(
                    model=row["model"],
                    prompt=row["prompt"],
                    tokens=tuple(row["tokens"]),
                    domain=row["domain"],
                    gold=tuple(row["gold"]),
                    stop_reason=row["stop_reason"],
                    labels=labels,
                )
            )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a file of samples labelled by hand ({error!r})") from None
    return samples


def labels_of(sample: ReadSample) -> Labels:
    return label_tokens(
        sample.prompt,
        sample.tokens,
        stop_reason=sample.stop_reason,  # type: ignore[arg-type]
        domain=sample.domain,  # type: ignore[arg-type]
        gold=sample.gold,
    )


def agreement(samples: Sequence[ReadSample]) -> list[Agreement]:
    """One for each label. A suspicion counts for "untrue", which is never more, and for no other label."""
    flags = [labels_of(sample).flags for sample in samples]
    suspected = [{flag.failure for flag in found} for found in flags]
    fired = [{flag.failure for flag in found if not flag.suspect or flag.failure == "untrue"} for found in flags]
    read = [sample.labels for sample in samples]
    return [
        Agreement(
            failure=failure,
            by_hand=sum(failure in labels for labels in read),
            by_rule=sum(failure in found for found in fired),
            both=sum(failure in labels and failure in found for labels, found in zip(read, fired, strict=True)),
            noticed=sum(failure in labels and failure in found for labels, found in zip(read, suspected, strict=True)),
        )
        for failure in ORDER
    ]


def agreement_table(found: Sequence[Agreement]) -> str:
    """Markdown: counts, precision and recall in percent with their 95 % intervals; a dash where nothing can be said."""
    rows = [
        "| label | read | fired | both | precision | recall | fired or suspected |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        precision = _percent(one.both, one.by_rule, one.precision)
        recall = _percent(one.both, one.by_hand, one.recall)
        noticed = f"{100 * one.noticed / one.by_hand:.0f} %" if one.by_hand else "–"
        counts = f"{one.by_hand} | {one.by_rule} | {one.both}"
        rows.append(f"| {one.failure} | {counts} | {precision} | {recall} | {noticed} |")
    return "\n".join(rows)


def _percent(both: int, of: int, interval: Interval) -> str:
    return f"{100 * both / of:.0f} % ({100 * interval.low:.0f}–{100 * interval.high:.0f})" if of else "–"
