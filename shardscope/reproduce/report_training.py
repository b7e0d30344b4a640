"""Sections of the report that tell of the training: the runs, their text, the curves, and what everything cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardscope.reproduce.chart import Curve, chart
from shardscope.reproduce.markdown import DASH, table

RISEN = 0.02  # of a held-out loss above its lowest: the source was read too often
LAST = 0.1  # of a curve: its mean is the loss at the end, where one logged step is a draw of its batch
MOST_OF_LOSS = 2.5  # times the pretraining's last loss: the picture ends there, as it begins at ln(entries)
TRAINING = ("text", "pause", "pretrain", "anneal")  # the stages that make the model; the others measure it
STAGES = {
    "text": "tokenizer and token shards", "pause": "pretraining to its pause", "pretrain": "the rest of it",
    "anneal": "anneal", "questions": "test questions, counted", "heads": "scores of all heads", "loss": "held-out loss",
    "suite": "prompt suite", "samples": "six prompts, decoding", "reach": "facts at a distance",
    "tasks": "tasks of questions",
}  # fmt: skip
KINDS_OF_HEADS = {
    "previous": "previous token", "induction": "induction", "sink": "first token", "duplicate": "duplicate token",
}  # fmt: skip

Metrics = Mapping[str, Any]


def runs(found: Metrics, _: str) -> str:
    rows = []
    for phase, run in found["runs"].items():
        rows.append(
            [
                phase, f"{run['steps']:,}", f"{run['tokens']:,}", f"{run['sequences']} × {run['seq_len']:,}",
                f"{run['tokens_per_second']:,.0f}", f"{run['seconds'] / 60:.1f}", f"{last_loss(run):.3f}",
                str(run["skipped_steps"]), ", ".join(run["troubles"]) or "none",
            ]
        )  # fmt: skip
    head = ["phase", "steps", "tokens", "a step", "tokens/s", "minutes", "last loss", "skipped", "trouble"]
    pause, pretrain = found["pause"], found["runs"]["pretrain"]
    starts = [f"{step:,}" for step in pretrain["starts"]]
    if pause["status"] == "paused early":
        paused = (
            f"The pretraining was paused by a signal, {pause['reason']}, sent at step {pause['asked_at']:,} and saved "
            f"at step {pause['step']:,}. It was started {len(starts)} times, at the steps {' and '.join(starts)}."
        )
    else:
        paused = (
            f"The pretraining ended before the signal of step {pause['asked_at']:,} reached it, so it was not paused."
        )
    words = (
        f"A step: sequences × tokens of each. Last loss: nats a token of the training text, the mean over the last "
        f"{LAST:.0%} of the run. Skipped: steps whose gradient was not finite. {paused}"
    )
    return f"{table(head, rows, words=(0, 8))}\n\n{words}"


def last_loss(run: Metrics) -> float:
    """Nats a token: the mean of the curve's end."""
    losses = [point["loss"] for point in run["loss"]]
    return statistics.fmean(losses[-max(1, round(LAST * len(losses))) :])


def texts(found: Metrics, _: str) -> str:
    """One row for each different text of either phase."""
    read: dict[tuple[str, str], dict[str, Any]] = {}
    for phase, run in found["runs"].items():
        for name, source in found["text"][phase].items():
            row = read.setdefault((name, source["fingerprint"]), {"source": source})
            row[phase] = run["sources"][name] | {"read": run["sources"][name]["share"] * run["tokens"]}
    rows = []
    for (name, _fingerprint), row in read.items():
        phases = [row.get(phase) for phase in found["runs"]]
        passes = sum(phase["epochs"] for phase in phases if phase)
        rows.append(
            [
                name, f"{row['source']['documents']:,}", f"{row['source']['tokens']:,}",
                *(f"{phase['read']:,.0f} ({phase['share']:.1%})" if phase else DASH for phase in phases),
                f"{passes:.2f}",
            ]
        )  # fmt: skip
    head = ["source", "documents", "tokens", "read in the pretraining", "in the anneal", "passes"]
    words = "Passes: how often the source was read, in both phases together."
    overlaps = _overlaps({name: row["source"] for (name, _), row in read.items()})
    return "\n\n".join([table(head, rows), words, *overlaps])


def _overlaps(sources: Mapping[str, Metrics]) -> list[str]:
    """What of the training text is held-out or scored text, too."""
    counted = {name: source for name, source in sources.items() if source["overlap"] is not None}
    if not counted:
        return []
    rows = []
    for name, source in counted.items():
        overlap = source["overlap"]
        share = overlap.get("held_out_share")
        rows.append(
            [
                name, f"{overlap['documents']:,}", f"{overlap['exact']:,}", _known(overlap.get("mostly")),
                _known(overlap.get("formulas")), f"{overlap['tokens'] / source['tokens']:.1%}",
                DASH if share is None else f"{share:.1%}",
            ]
        )  # fmt: skip
    head = ["source", "overlapping", "the same", "half or more", "formulas", "tokens", "held-out text"]
    left_out = [name for name, source in counted.items() if source["overlap"]["dropped"]]
    done = {0: "trained on", len(counted): "left out of the training"}.get(
        len(left_out), f"left out of {' and '.join(left_out)}, and trained on elsewhere"
    )
    words = (
        f"Overlapping documents were {done}. They share 13 words in a row with held-out text or scored questions; of "
        "them, those that are the same text, and those of which half or more is such text. Formulas: further "
        "documents, which share only words that more than ten documents have. Tokens: the overlapping documents' share "
        "of the source. Held-out text: how much of the source's own stands in them."
    )
    return [words, table(head, rows)]


def _known(count: int | None) -> str:
    return DASH if count is None else f"{count:,}"


# ------------------------------------------------------------------------------------------------------------- curves


def curves(found: Metrics, images: str) -> str:
    pretrain, anneal = found["runs"]["pretrain"], found["runs"]["anneal"]
    parts = [
        f"![Training loss against tokens]({images}-loss.svg)",
        "The training loss is that of each phase's own mix of sources, so one curve does not continue the other. The "
        f"first steps, above {MOST_OF_LOSS:g} times the pretraining's last loss, are left out.",
        f"![Held-out bits per byte against tokens, by source]({images}-held-out.svg)",
    ]
    if pretrain["seq_len"] < anneal["seq_len"]:
        parts.append(
            f"Held-out text is read in windows of each phase's own length. Where the anneal begins they grow from "
            f"{pretrain['seq_len']:,} to {anneal['seq_len']:,} tokens, farther than the pretraining had ever read, so "
            "the curves step up before the anneal has taken a step."
        )
    if new := [name for name in anneal["sources"] if name not in pretrain["sources"]]:
        parts.append(f"`all` holds {' and '.join(new)} from there on.")
    parts.append(_overfitting(found))
    return "\n\n".join(part for part in parts if part)


def _overfitting(found: Metrics) -> str:
    """The sources whose held-out loss rose again while the anneal went on, with how often they were read in it."""
    anneal = found["runs"]["anneal"]
    said = []
    for name, source in anneal["sources"].items():
        points = [
            (line["bits_per_byte"][name], line["step"]) for line in anneal["held_out"] if name in line["bits_per_byte"]
        ]
        if points and points[-1][0] > (1 + RISEN) * min(points)[0]:
            lowest, step = min(points)
            said.append(
                f"{name}, read {source['epochs']:.1f} times in the anneal, stood at {lowest:.3f} bits per byte at its "
                f"step {step:,} and at {points[-1][0]:.3f} at its end"
            )
    return f"Overfitting: {'; '.join(said)}." if said else ""


def pictures(found: Metrics) -> dict[str, str]:
    """Every picture of the page by name, as SVG."""
    pretrain, anneal = found["runs"]["pretrain"], found["runs"]["anneal"]
    fork = pretrain["tokens"] / 1e6
    marks = [(fork, "anneal")]
    if found["pause"]["status"] == "paused early":
        marks.insert(0, (found["pause"]["step"] * _step_tokens(pretrain) / 1e6, "paused, resumed"))
    phases = (("pretrain", pretrain, 0.0), ("anneal", anneal, fork))
    losses = [
        Curve(name, [[(_millions(run, point["step"], first), point["loss"]) for point in run["loss"]]])
        for name, run, first in phases
    ]
    sources = dict.fromkeys(name for _, run, _ in phases for line in run["held_out"] for name in line["bits_per_byte"])
    held_out = [
        Curve(source, [_held_out(run, source, first) for _, run, first in phases])
        for source in sorted(sources, key="all".__eq__)  # which ends the key
    ]
    scored = list(_checkpoints(found))
    strongest = [
        Curve(words, [[(tokens, max(head[score] for head in heads)) for tokens, heads in scored]])
        for score, words in KINDS_OF_HEADS.items()
    ]
    tokens = "million tokens"
    highest = MOST_OF_LOSS * last_loss(pretrain)
    return {
        "loss": chart("Training loss", tokens, "nats a token", losses, marks, highest=highest),
        "held-out": chart("Held-out text", tokens, "bits per byte", held_out, marks),
        "heads": chart("The strongest head of each kind", tokens, "mean mass", strongest, [(fork, "anneal")]),
    }


def _held_out(run: Metrics, source: str, first: float) -> list[tuple[float, float]]:
    return [
        (_millions(run, line["step"], first), line["bits_per_byte"][source])
        for line in run["held_out"]
        if source in line["bits_per_byte"] and (first or line["step"] > 0)
    ]


def _checkpoints(found: Metrics) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    """Millions of tokens seen, and the heads, at each checkpoint."""
    fork = found["runs"]["pretrain"]["tokens"] / 1e6
    for name, scored in found["heads"].items():
        phase, _, step = name.partition("-")
        yield _millions(found["runs"][phase], int(step), fork if phase == "anneal" else 0.0), scored["heads"]


def _millions(run: Metrics, step: int, first: float) -> float:
    return first + step * _step_tokens(run) / 1e6


def _step_tokens(run: Metrics) -> int:
    return int(run["tokens"] // run["steps"])


# -------------------------------------------------------------------------------------------------------------- costs


def costs(found: Metrics, _: str) -> str:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for stage in found["stages"]:
        kinds.setdefault(stage["name"].partition("/")[0], []).append(stage)
    energy, price = any(stage["joules"] is not None for stage in found["stages"]), found["price_per_hour"]
    named = [(kind, some) for kind, some in kinds.items() if kind in TRAINING]
    named.append(("**the model**", [stage for _, some in named for stage in some]))
    measured = [(kind, some) for kind, some in kinds.items() if kind not in TRAINING]
    measured.append(("**measuring it**", [stage for _, some in measured for stage in some]))
    every = [*named, *(measured if len(measured) > 1 else []), ("**all**", found["stages"])]
    rows = [_cost(kind, stages, energy, price) for kind, stages in every]
    head = ["stage", "times", "minutes", *(["energy of the GPUs (Wh)"] if energy else []), *(["rent"] if price else [])]
    said = [] if energy else ["Energy was not measured: nvidia-smi gave no power."]
    if price:
        said.append(f"Rent: minutes at {price:g} an hour, in the currency of that price.")
    return "\n\n".join([*([" ".join(said)] if said else []), table(head, rows)])


def _cost(kind: str, stages: Sequence[Mapping[str, Any]], energy: bool, price: float | None) -> list[str]:
    seconds = sum(stage["seconds"] for stage in stages)
    joules = [stage["joules"] for stage in stages if stage["joules"] is not None]
    row = [STAGES.get(kind, kind), str(len(stages)), f"{seconds / 60:.1f}"]
    if energy:
        row.append(f"{sum(joules) / 3600:.1f}" if joules else DASH)
    return [*row, f"{seconds / 3600 * price:.2f}"] if price else row
