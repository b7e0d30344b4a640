"""How often each failure occurs, by checkpoint, domain and temperature, with intervals; and what an anneal changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shardscope.failures.atlas.records import Atlas, AtlasColumn, AtlasSample
from shardscope.failures.intervals import Interval, difference, wilson
from shardscope.failures.labels import NO_FLAG, ORDER, right_answers
from shardscope.failures.prompts import Domain, SuitePrompt

NO_END = "no end"  # the text ran into its limit of tokens
ROWS = (*ORDER, NO_END, NO_FLAG)
ALL = "all"
DOMAINS = (ALL, *get_args(Domain))
CHANGES = ("rarer", "more often", "undecided")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How many of the samples that a failure can be seen in have it: `fired` of `samples`; `suspected` only, besides.

    `domain` "all" and `temperature` None count every one. The interval (95 %, Wilson) takes samples as independent.
    """

    run: str
    step: int
    domain: str
    temperature: float | None
    failure: str
    fired: int
    suspected: int
    samples: int

    @property
    def rate(self) -> float | None:
        """None where no sample can show it."""
        return self.fired / self.samples if self.samples else None

    @property
    def interval(self) -> Interval:
        return wilson(self.fired, self.samples)

    def to_dict(self) -> dict[str, Any]:
        counts = {"fired": self.fired, "suspected": self.suspected, "samples": self.samples}
        place = {"run": self.run, "step": self.step, "domain": self.domain, "temperature": self.temperature}
        return {**place, "failure": self.failure, **counts, "rate": self.rate, "interval": list(self.interval)}


@dataclass(frozen=True, kw_only=True)
class Change:
    """A failure before and after: the rates' difference with its 95 % interval, and what that says."""

    before: Rate
    after: Rate

    @property
    def difference(self) -> float:
        return (self.after.rate or 0.0) - (self.before.rate or 0.0)

    @property
    def interval(self) -> Interval:
        return difference(self.before.fired, self.before.samples, self.after.fired, self.after.samples)

    @property
    def verdict(self) -> Literal["rarer", "more often", "undecided"]:
        """Undecided where the interval holds 0."""
        low, high = self.interval
        return "rarer" if high < 0 else "more often" if low > 0 else "undecided"

    def to_dict(self) -> dict[str, Any]:
        place = {"domain": self.after.domain, "temperature": self.after.temperature, "failure": self.after.failure}
        rates = {"before": self.before.rate, "after": self.after.rate}
        return {**place, **rates, "difference": self.difference, "interval": list(self.interval), "says": self.verdict}


def rates(atlas: Atlas) -> list[Rate]:
    """Every checkpoint, domain, temperature (None first: all of them) and failure, in this order."""
    prompts = {prompt.id: prompt for prompt in atlas.settings.prompts if prompt.id not in atlas.left_out}
    seen_in = {name: _failures_seen_in(prompt) for name, prompt in prompts.items()}
    return [rate for column in atlas.columns for rate in _rates(column, atlas, prompts, seen_in)]


def _rates(
    column: AtlasColumn, atlas: Atlas, prompts: dict[str, SuitePrompt], seen_in: dict[str, tuple[str, ...]]
) -> Iterable[Rate]:
    samples: Counter[tuple[str, float | None, str]] = Counter()
    fired: Counter[tuple[str, float | None, str]] = Counter()
    suspected: Counter[tuple[str, float | None, str]] = Counter()
    for sample in column.samples:
        if sample.prompt not in prompts:
            continue
        certain, suspicions = found_in(sample)
        for domain in (ALL, prompts[sample.prompt].domain):
            for temperature in (None, sample.temperature):
                samples.update((domain, temperature, failure) for failure in seen_in[sample.prompt])
                fired.update((domain, temperature, failure) for failure in certain)
                suspected.update((domain, temperature, failure) for failure in suspicions)
    for domain in DOMAINS:
        for temperature in (None, *atlas.settings.temperatures):
            for failure in ROWS:
                key = (domain, temperature, failure)
                yield Rate(
                    run=column.run, step=column.step, domain=domain, temperature=temperature, failure=failure,
                    fired=fired[key], suspected=suspected[key], samples=samples[key],
                )  # fmt: skip


def found_in(sample: AtlasSample) -> tuple[set[str], set[str]]:
    """What a sample counts for in ROWS, and what it is only suspected of.

    A suspicion counts in full for "untrue", which is never more than that.
    """
    certain = {flag.failure for flag in sample.flags if not flag.suspect or flag.failure == "untrue"}
    suspicions = {flag.failure for flag in sample.flags} - certain
    ended = {NO_END} if sample.stop_reason == "length" else set()
    nothing = {NO_FLAG} if sample.primary == NO_FLAG else set()
    return {*certain, *ended, *nothing}, set(suspicions)


def _failures_seen_in(prompt: SuitePrompt) -> tuple[str, ...]:
    """What can be seen in a continuation: a wrong answer only where the right one is known, numbers only in math."""
    blind = set()
    if prompt.domain != "math":
        blind.add("digits")
    if not right_answers(prompt.text, prompt.domain, prompt.gold):
        blind.add("wrong")
    return tuple(failure for failure in ROWS if failure not in blind)


def changes(atlas: Atlas) -> list[Change]:
    """The last checkpoint of the first run beside that of the last run; of a single run, its first beside its last.

    One for each domain, temperature and failure that can be seen; none of an atlas of one checkpoint.
    """
    if len(atlas.columns) < 2:
        return []
    first, last = before_and_after(atlas.columns)
    found = rates(Atlas(settings=atlas.settings, columns=(first, last)))
    half = len(found) // 2
    pairs = zip(found[:half], found[half:], strict=True)
    return [Change(before=before, after=after) for before, after in pairs if before.samples]


def before_and_after(columns: Sequence[AtlasColumn]) -> tuple[AtlasColumn, AtlasColumn]:
    """The two columns that `changes` compares."""
    last = columns[-1]
    other = [column for column in columns if column.run == columns[0].run]
    return (other[-1] if columns[0].run != last.run else columns[0]), last
