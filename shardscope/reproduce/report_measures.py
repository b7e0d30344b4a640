"""Sections of the report that tell what was measured on checkpoints, before the anneal and after it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from shardscope.failures.intervals import wilson
from shardscope.reproduce import published
from shardscope.reproduce.markdown import DASH, code, table
from shardscope.reproduce.report_training import Metrics, last_loss

METRICS_SHOWN = (
    "acc", "acc_bytes", "answer_bits_per_byte", "exact_match", "exact_match (strict-match)",
    "exact_match (flexible-extract)", "math_verify", "digit_accuracy",
)  # fmt: skip
ACCURACIES = ("acc", "acc_bytes")
# Of a guess: ARC has four choices (three or five in one question of a hundred), shard_arith_choice four.
CHANCE = {"shard_arc_easy": 0.25, "shard_arc_challenge": 0.25, "shard_arith_choice": 0.25}
TITLES = {
    "shard_arc_easy": "ARC-Easy", "shard_arc_challenge": "ARC-Challenge", "shard_gsm8k": "GSM8K", "shard_math": "MATH",
    "shard_arith": "sums", "shard_arith_choice": "sums with four choices",
}  # fmt: skip
LOOP = "loop"
SEEN = 0.01  # of a held-out text in training documents: less is not worth a word


# --------------------------------------------------------------------------------------------------- held-out text


def bits_per_byte(found: Metrics, _: str) -> str:
    before, after = sums(found["loss"]["before"]), sums(found["loss"]["after"])
    rows = [
        [
            name, f"{after[name]['tokens']:,}", f"{bits(before[name]):.4f}", f"{bits(after[name]):.4f}",
            f"{bits(after[name]) - bits(before[name]):+.4f}", f"{nats(before[name]):.3f}", f"{nats(after[name]):.3f}",
        ]
        for name in after
    ]  # fmt: skip
    head = ["held out", "tokens", "bits/byte before the anneal", "after", "change", "nats/token before", "after"]
    return "\n\n".join([_windows(found), table(head, rows), *_seen(found)])


def _seen(found: Metrics) -> list[str]:
    """Which held-out text stands in part in text that was trained on."""
    shares = _shares_seen(found)
    if not shares:
        return []
    named = ", ".join(f"{share:.0%} of {name}" for name, share in shares.items())
    return [
        f"Of the held-out text {named} stands word for word in documents that were trained on, so these figures are "
        "better than new text would give."
    ]


def seen_in_short(found: Metrics) -> str:
    shares = _shares_seen(found)
    return f"; of {', '.join(shares)} a part was trained on" if shares else ""


def _shares_seen(found: Metrics) -> dict[str, float]:
    return {
        name: source["overlap"]["held_out_share"]
        for phase in found["runs"]
        for name, source in found["text"][phase].items()
        if source["overlap"] and not source["overlap"]["dropped"]
        and (source["overlap"].get("held_out_share") or 0) > SEEN
    }  # fmt: skip


def _windows(found: Metrics) -> str:
    """How long the windows are, and what of the change is due to that."""
    pretrain, anneal = found["runs"]["pretrain"], found["runs"]["anneal"]
    words = f"In windows of {anneal['seq_len']:,} tokens, those of the anneal, before it as after it."
    if pretrain["seq_len"] >= anneal["seq_len"]:
        return words
    ended = pretrain["held_out"][-1]["bits_per_byte"]["all"]
    return (
        f"{words} The pretraining had read {pretrain['seq_len']:,} at a time, so part of the change is that the anneal "
        f"taught it to use the rest: in windows of its own length, over its own sources, it ended at {ended:.4f}."
    )


def by_position(found: Metrics, _: str) -> str:
    before, after = (_over_sources(found["loss"][when]) for when in ("before", "after"))
    sources = found["loss"]["after"]
    rows = [
        [
            f"{first:,} to {last:,}",
            *(_shown_nats(part) for parts in sources.values() for part in parts if part["first"] == first),
            _shown_nats(before[first, last]),
            _shown_nats(after[first, last]),
        ]
        for first, last in after
    ]
    words = "Nats a token after the anneal, by source, and over all sources before and after it; windows of its length."
    return f"{words}\n\n{table(['position', *sources, 'all before the anneal', 'all after'], rows)}"


def _shown_nats(part: Mapping[str, float]) -> str:
    return f"{nats(part):.3f}" if part["tokens"] else DASH


def sums(by_source: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Nats, tokens and bytes of each source over all positions, and of all sources."""
    keys = ("nats", "tokens", "bytes")
    found = {name: {key: sum(part[key] for part in parts) for key in keys} for name, parts in by_source.items()}
    return {**found, "all": {key: sum(one[key] for one in found.values()) for key in keys}}


def _over_sources(by_source: Mapping[str, Any]) -> dict[tuple[int, int], dict[str, float]]:
    found: dict[tuple[int, int], dict[str, float]] = {}
    for parts in by_source.values():
        for part in parts:
            together = found.setdefault((part["first"], part["last"]), {"nats": 0.0, "tokens": 0, "bytes": 0})
            for key in together:
                together[key] += part[key]
    return {place: together for place, together in found.items() if together["tokens"]}


def nats(part: Mapping[str, float]) -> float:
    """Nats a token."""
    return part["nats"] / part["tokens"]


def bits(part: Mapping[str, float]) -> float:
    """Bits a byte."""
    return part["nats"] / math.log(2) / part["bytes"]


# -------------------------------------------------------------------------------------------------------- questions


def tasks(found: Metrics, _: str) -> str:
    rows = [
        [
            task.removeprefix("shard_"), f"{now['questions']:,}", _metric(task, then["metric"]),
            _with_error(then), _with_error(now), _change(then, now),
        ]
        for task, then, now in _asked(found)
    ]  # fmt: skip
    if not rows:
        return ""
    words = (
        "Before the anneal and after it, through lm-evaluation-harness, of so many questions, ± the standard error of "
        "the mean; docs/evaluation.md says what the tasks (shard_arc_easy and so on) and metrics are. "
        "`answer_bits_per_byte` is better where it is lower, everything else where it is higher. Chance is what a "
        "guess scores; the wrong choices of arith_choice are near misses and an operand. The same questions are asked "
        "before and after, so the error of a change, reckoned as of two separate sets of questions, is rather too "
        "large than too small."
    )
    head = ["task", "of", "metric", "before", "after", "change"]
    parts = [words, table(head, rows, words=(0, 2))]
    if said := _beside_chance(found):
        parts.append(said)
    return "\n\n".join(parts)


def _metric(task: str, metric: str) -> str:
    return f"{metric}, chance {CHANCE[task]:g}" if task in CHANCE and metric in ACCURACIES else metric


def _asked(found: Metrics) -> Iterator[tuple[str, Metrics, Metrics]]:
    """Each metric that is shown: its task, and its row before and after the anneal."""
    for name, result in found["tasks"].items():
        task, _, when = name.rpartition("/")
        if when == "after":
            before = {row["metric"]: row for row in found["tasks"][f"{task}/before"]["rows"]}
            for row in result["rows"]:
                if row["metric"] in METRICS_SHOWN:
                    yield task, before[row["metric"]], row


def _with_error(row: Metrics) -> str:
    error = f" ± {row['stderr']:.3f}" if row["stderr"] is not None else ""
    return f"{row['value']:.3f}{error}"


def _change(then: Metrics, now: Metrics) -> str:
    change = f"{now['value'] - then['value']:+.3f}"
    if then["stderr"] is None or now["stderr"] is None:
        return change
    return f"{change} ± {math.hypot(then['stderr'], now['stderr']):.3f}"


def _beside_chance(found: Metrics) -> str:
    """Which accuracies after the anneal are no better than a guess, by two standard errors."""
    level, below = [], []
    for task, _then, now in _asked(found):
        if task in CHANCE and now["metric"] in ACCURACIES and now["stderr"] is not None:
            away = (now["value"] - CHANCE[task]) / now["stderr"] if now["stderr"] else math.inf
            if abs(away) < 2:
                level.append(f"{task.removeprefix('shard_')} ({now['metric']})")
            elif away < 0:
                below.append(f"{task.removeprefix('shard_')} ({now['metric']})")
    said = []
    if level:
        said.append(f"Within two standard errors of chance after the anneal: {', '.join(level)}.")
    if below:
        said.append(f"Below chance: {', '.join(below)}.")
    return " ".join(said)


def questions_in_short(found: Metrics) -> list[str]:
    """The first accuracy or share of right answers of each task of questions, after the anneal, in one line."""
    said: dict[str, str] = {}
    for task, _then, now in _asked(found):
        if now["metric"] in ("acc_bytes", "exact_match", "exact_match (strict-match)") and now["stderr"] is not None:
            chance = f" (chance {CHANCE[task]:.0%})" if task in CHANCE else ""
            said.setdefault(task, f"{TITLES.get(task, task)} {now['value']:.1%} ± {now['stderr']:.1%}{chance}")
    return [f"Right answers after the anneal: {', '.join(said.values())}."] if said else []


# --------------------------------------------------------------------------------------------------------- failures


def failures(found: Metrics, _: str) -> str:
    before, after = found["suite"]["before"], found["suite"]["after"]
    if not after["prompts"]:
        return ""
    rows = []
    for name, count in after["failures"].items():
        left, came = _moved(before["by_prompt"], after["by_prompt"], name)
        then = _rate(before["failures"][name], before["prompts"])
        rows.append([name, then, _rate(count, after["prompts"]), str(left), str(came), f"{sign_test(left, came):.2f}"])
    left_out = f" {after['left_out']} prompts do not fit the context and are left out." if after["left_out"] else ""
    words = (
        f"{after['prompts']} prompts, one continuation of {after['new_tokens']} tokens each at temperature 0.7 and "
        "top-p 0.9, counted by the failure that comes first in the list of docs/failures.md, with 95 % Wilson "
        f"intervals.{left_out} Lost it, got it: prompts that have the label only before the anneal, and only after it. "
        "p: how probable a split at least as uneven is if the anneal changes nothing (exact sign test; over so many "
        "rows one of a few hundredths is no surprise)."
    )
    return f"{words}\n\n{table(['first failure', 'before the anneal', 'after', 'lost it', 'got it', 'p'], rows)}"


def _moved(before: Mapping[str, str], after: Mapping[str, str], name: str) -> tuple[int, int]:
    """How many prompts had the label before alone, and how many have it after alone."""
    both = before.keys() & after.keys()
    left = sum(before[prompt] == name != after[prompt] for prompt in both)
    came = sum(before[prompt] != name == after[prompt] for prompt in both)
    return left, came


def sign_test(left: int, came: int) -> float:
    """Two-sided p-value of the exact sign test (McNemar's, exact)."""
    moved = left + came
    tail = sum(math.comb(moved, k) for k in range(min(left, came) + 1)) / 2**moved
    return min(1.0, 2 * tail)


def _rate(count: int, of: int) -> str:
    low, high = wilson(count, of)
    return f"{count / of:.1%} ({low:.1%} to {high:.1%})"


def failures_in_short(found: Metrics) -> list[str]:
    before, after = found["suite"]["before"], found["suite"]["after"]
    if not after["prompts"] or LOOP not in after["failures"]:
        return []
    then, now = (_rate(suite["failures"][LOOP], suite["prompts"]) for suite in (before, after))
    return [f"Of {after['prompts']} sampled continuations {now} loop after the anneal, {then} before it."]


def samples(found: Metrics, _: str) -> str:
    before, after = (found["samples"][when]["samples"] for when in ("before", "after"))
    parts = [
        "One sample each at temperature 0.7 and top-p 0.9, ours with seed 0 and up to 256 tokens, of which the first "
        "200 characters stand here; behind each what is wrong with it, in the card's words or by the first of our "
        "labels. The card shows less of its own."
    ]
    for then, now in zip(before, after, strict=True):
        lines = [f"{code(then['prompt'])}", ""]
        if then["prompt"] in published.SAMPLES:
            text, failure = published.SAMPLES[then["prompt"]]
            lines.append(f"- the card: {code(text)} ({failure})")
        lines += [f"- before the anneal: {_labelled(then)}", f"- after it: {_labelled(now)}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _labelled(sample: Metrics) -> str:
    return f"{code(sample['text'])} ({sample['failure']})"


# ------------------------------------------------------------------------------------------------- reach and heads


def reach(found: Metrics, _: str) -> str:
    heads = list(found["heads"].values())[-1]
    layers: dict[int, list[dict[str, Any]]] = {}
    for head in heads["heads"]:
        layers.setdefault(head["layer"], []).append(head)
    rows = [
        [
            f"layer {layer}, {some[0]['kind']}", f"{sum(head['distance'] for head in some) / len(some):.0f}",
            f"{max(head['distance'] for head in some):.0f}", f"{sum(head['reach'] for head in some) / len(some):.1%}",
        ]
        for layer, some in layers.items()
    ]  # fmt: skip
    window = found["model"]["window"]
    header = ["layer", "mean distance, tokens", "of its farthest head", f"attention {window:,} tokens back or more"]
    words = (
        f"How far back heads look after the anneal, over {heads['tokens']:,} tokens of held-out text; a sliding layer "
        f"sees {window:,}."
    )
    parts = [words, table(header, rows)]
    before, after = found["reach"]["before"], found["reach"]["after"]
    if "why_not" in after:
        return "\n\n".join([*parts, f"Facts at a distance were not asked for: {after['why_not']}"])
    told = (
        f"Whether it can use what it read: the text states a fact, one of {round(1 / after['chance'])} that it could "
        f"be, and asks for it so many tokens later, {after['whole'][0]['samples']} facts at each distance. How often "
        f"the model then prefers that fact to the others (chance {after['chance']:.1%}, 95 % Wilson intervals), whole, "
        "and cut: with every layer limited to the sliding window."
    )
    raised = "By how many nats the stated fact raises the log-probability of its answer, with 95 % intervals."
    surely = (
        "The farthest distance up to which that interval lies wholly above a tenth of a nat: before the anneal "
        f"{_back(before)}, after it {_back(after)}."
    )
    beyond = (
        "What the global layers gain from text that the window does not reach: nats a token of held-out text, by "
        "position, whole and cut."
    )
    places = [f"{part['first']:,} to {part['last']:,}" for part in after["losses"] if part["first"] >= window]
    losses = [
        [f"{part[way]:.3f}" for part in kind["losses"] if part["first"] >= window]
        for kind in (before, after)
        for way in ("whole", "cut")
    ]
    rows = [list(row) for row in zip(places, *losses, strict=True)]
    facts = [
        _at_distances(before, after, "chosen", ".0%"),
        raised,
        _at_distances(before, after, "lift", "z.2f"),
        surely,
    ]
    return "\n\n".join([*parts, told, *facts, *([beyond, table(["position", *_FOUR], rows)] if rows else [])])


_FOUR = ("before the anneal", "before, cut", "after", "after, cut")


def _at_distances(before: Metrics, after: Metrics, what: str, form: str) -> str:
    """A measure of recall and its interval, at each distance a row."""

    def shown(recall: Metrics) -> str:
        low, high = recall[f"{what}_interval"]
        return f"{recall[what]:{form}} ({low:{form}} to {high:{form}})"

    curves = [kind[way] for kind in (before, after) for way in ("whole", "cut")]
    rows = [[f"{some[0]['distance']:,}", *map(shown, some)] for some in zip(*curves, strict=True)]
    return table(["tokens back", *_FOUR], rows)


def _back(found: Metrics) -> str:
    whole, cut = (f"{found[key]:,} tokens" if found[key] else "none" for key in ("reach", "reach_cut"))
    return f"{whole} (cut: {cut})"


def heads(found: Metrics, images: str) -> str:
    kinds = ("previous", "induction", "sink")
    rows = []
    for name, scored in found["heads"].items():
        phase, _, step = name.partition("-")
        strongest = (max(scored["heads"], key=lambda head: head[kind]) for kind in kinds)
        shown = (
            f"L{head['layer']}H{head['head']} {head[kind]:.3f}" for kind, head in zip(kinds, strongest, strict=True)
        )
        rows.append([f"{phase}, step {int(step):,}", *shown])
    words = (
        f"The strongest head of each kind at {len(rows)} checkpoints, by the mean attention that it gives to the token "
        "before, to what followed an earlier occurrence of the current token (induction), and to the first token. What "
        "formed before the first of these checkpoints is not seen here. All heads and scores are in the metrics."
    )
    picture = f"![The strongest head of each kind against tokens]({images}-heads.svg)"
    header = ["checkpoint", "previous token", "induction", "first token"]
    return f"{words}\n\n{picture}\n\n{table(header, rows, words=(0, 1, 2, 3))}"


# ---------------------------------------------------------------------------------------------------------- the card


def beside_the_card(found: Metrics, _: str) -> str:
    model, pretrain, anneal = found["model"], found["runs"]["pretrain"], found["runs"]["anneal"]
    same = model["n_params"] == published.PARAMETERS
    machine, decoding = found["machine"]["name"], found["samples"]["after"]["decoding"]
    size = "the same architecture" if same else "another size of model"
    held_out = nats(sums(found["loss"]["after"])["all"])
    rows = [
        [
            "parameters", f"{published.PARAMETERS:,}", f"{model['n_params']:,}",
            "yes: the same architecture" if same else "no: another size of model",
        ],
        [
            "tokens of the pretraining", f"{published.TOKENS:,}", f"{pretrain['tokens']:,}",
            "roughly: tokens of another tokenizer and other text",
        ],
        [
            "training, tokens/s", f"{published.TOKENS_PER_SECOND:,}, a consumer-grade GPU",
            f"{pretrain['tokens_per_second']:,.0f}, {machine}",
            f"{'only together with the machines' if same else 'no'}: {size}, another machine; the card does not say at "
            "what sequence length",
        ],
        [
            "cross-entropy at the end of the anneal, nats/token", f"{published.CROSS_ENTROPY}",
            f"{last_loss(anneal):.2f} in training, {held_out:.2f} held out",
            "no: other text and another tokenizer, and the card does not say whether its text was held out; bits per "
            "byte of common text would compare",
        ],
        [
            "greedy decoding, tokens/s", f"{published.DECODING}, without a key-value cache",
            f"{decoding['tokens_per_second']:,.0f}, with one", f"no: {size}, another machine, and a cache",
        ],
        [
            "six prompts", "one sample each, above", "one sample each, above",
            "by eye alone: single draws, at the same temperature and top-p",
        ],
    ]  # fmt: skip
    return table(["figure", "Shard-40m-v1's card", "here", "do they compare?"], rows, words=(0, 1, 2, 3))
