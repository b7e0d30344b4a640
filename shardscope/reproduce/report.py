"""The report of a reproduction: a Markdown page and its pictures, made from the metrics and nothing else.

A section stands there if its figures do: a run without questions has no table of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shardscope.bench.measure import table
from shardscope.config import ConfigError, ShardConfig
from shardscope.failures.intervals import wilson
from shardscope.files import read_json, write_text
from shardscope.reproduce.chart import Curve, chart
from shardscope.reproduce.ledger import duration
from shardscope.reproduce.pair import CHECKPOINTS
from shardscope.reproduce.pipeline import FORMAT

PUBLISHED = ShardConfig.preset("shard-54m").n_params
# Of the model card: see its table of results.
CARD_TOKENS_PER_SECOND, CARD_CROSS_ENTROPY, CARD_DECODING = 86_800, 3.27, 47
CARD_TOKENS = 48_220 * 131_072
METRICS_SHOWN = (
    "acc", "acc_bytes", "answer_bits_per_byte", "exact_match", "exact_match (strict-match)",
    "exact_match (flexible-extract)", "digit_accuracy",
)  # fmt: skip
RISEN = 0.02  # of a held-out loss above its lowest: the source was read too often
SHOWN_OF_A_SAMPLE = 200  # characters; the metrics hold all of it
DASH = "–"

Metrics = Mapping[str, Any]


def write_report(metrics: Path, page: Path, preface: str = "") -> Path:
    """Write the page, and its pictures into `images/` beside it. Raises ConfigError for a file of no such metrics."""
    found = read_json(metrics, ConfigError)
    if found.get("format") != FORMAT:
        raise ConfigError(f"{metrics}: not the metrics of `shardscope reproduce`, format {FORMAT}; run it again")
    try:
        drawn, text = pictures(found), report(found, f"images/{page.stem}", preface)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ConfigError(
            f"{metrics}: was changed since it was written ({error!r}); run `shardscope reproduce` again"
        ) from None
    for name, picture in drawn.items():
        write_text(page.parent / "images" / f"{page.stem}-{name}.svg", picture)
    return write_text(page, text)


def report(found: Metrics, images: str, preface: str = "") -> str:
    """The page. `images` is what the pictures' paths begin with, `preface` a paragraph after the first."""
    parts = [
        _opening(found), *([preface] if preface else []), _runs(found), _texts(found), _curves(found, images),
        _bits_per_byte(found), _by_position(found), _tasks(found), _failures(found), _samples(found), _reach(found),
        _heads(found, images), _beside_the_card(found), _costs(found),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


# -------------------------------------------------------------------------------------------------------- the pictures


def pictures(found: Metrics) -> dict[str, str]:
    """Every picture of the page by name, as SVG."""
    pretrain, anneal = found["runs"]["pretrain"], found["runs"]["anneal"]
    fork = pretrain["tokens"] / 1e6
    marks = [(fork, "anneal")]
    if found["pause"]["status"] == "paused early":
        marks.insert(0, (found["pause"]["step"] * _step_tokens(pretrain) / 1e6, "paused, resumed"))
    losses = [
        Curve(name, [(_millions(run, point["step"], first), point["loss"]) for point in run["loss"]])
        for name, run, first in (("pretrain", pretrain, 0.0), ("anneal", anneal, fork))
    ]
    sources = dict.fromkeys(
        name for run in (pretrain, anneal) for line in run["held_out"] for name in line["bits_per_byte"]
    )
    held_out = [
        Curve(
            source,
            [
                (_millions(run, line["step"], first), line["bits_per_byte"][source])
                for run, first in ((pretrain, 0.0), (anneal, fork))
                for line in run["held_out"]
                if source in line["bits_per_byte"] and (run is anneal or line["step"] > 0)
            ],
        )
        for source in sources
    ]
    strongest = [
        Curve(score, [(tokens, max(head[score] for head in heads)) for tokens, heads in _checkpoints(found)])
        for score in ("previous", "duplicate", "induction", "sink")
    ]
    tokens = "million tokens"
    return {
        "loss": chart("Training loss", tokens, "nats a token", losses, marks),
        "held-out": chart("Held-out text", tokens, "bits per byte", held_out, marks),
        "heads": chart("The strongest head of each kind", tokens, "mean mass", strongest, [(fork, "anneal")]),
    }


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


# -------------------------------------------------------------------------------------------------------- the sections


def _opening(found: Metrics) -> str:
    model, machine = found["model"], found["machine"]
    published = model["n_params"] == PUBLISHED
    title = "# The reference run" if published else f"# The reference run's pipeline on {found['name']}"
    size = "the published size" if published else f"not the published size of {PUBLISHED:,}"
    seconds = sum(stage["seconds"] for stage in found["stages"])
    first = (
        f"A model of {model['n_params']:,} parameters, {size}, was pretrained, annealed and measured in "
        f"{duration(seconds)} on {_machine(machine)} ({found['made']}, PyTorch {machine['torch']}, commit "
        f"{machine['commit'] or 'unknown'})."
    )
    if not published:
        first += " It shows what the report of a larger run contains; its figures say nothing about the published size."
    if (machine.get("load") or 0) > machine["threads"] + 1:
        first += f" Other programs ran beside it (load {machine['load']:.0f}), so its speeds are not the machine's."
    return f"{title}\n\n{first}\n\nAgain: `{_command(found)}`."


def _command(found: Metrics) -> str:
    """The command that asks for the same."""
    flags = {
        "--limit": found["limits"]["questions"], "--prompts": found["limits"]["prompts"],
        "--checkpoints": len(found["heads"]) if len(found["heads"]) != CHECKPOINTS else None,
        "--processes": found["machine"]["processes"] if found["machine"]["processes"] > 1 else None,
    }  # fmt: skip
    words = ["shardscope reproduce --recipes", *found["recipes"]]
    return " ".join([*words, *(f"{flag} {value}" for flag, value in flags.items() if value)])


def _machine(machine: Metrics) -> str:
    many = f"{machine['processes']} × " if machine["processes"] > 1 else ""
    return f"{many}{machine['name']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}"


def _runs(found: Metrics) -> str:
    rows = []
    for phase, run in found["runs"].items():
        rows.append(
            [
                phase, f"{run['steps']:,}", f"{run['tokens']:,}", f"{run['sequences']} × {run['seq_len']:,}",
                f"{run['tokens_per_second']:,.0f}", f"{run['seconds'] / 60:.1f}", f"{run['loss'][-1]['loss']:.3f}",
                str(run["skipped_steps"]), ", ".join(run["troubles"]) or "none",
            ]
        )  # fmt: skip
    head = ["phase", "steps", "tokens", "a step", "tokens/s", "minutes", "last loss (nats)", "steps skipped", "trouble"]
    pause, pretrain = found["pause"], found["runs"]["pretrain"]
    starts = [f"{step:,}" for step in pretrain["starts"]]
    if pause["status"] == "paused early":
        words = (
            f"The pretraining was paused by a signal, {pause['reason']}, sent at step {pause['asked_at']:,} and saved "
            f"at step {pause['step']:,}. It was started {len(starts)} times, at the steps {' and '.join(starts)}."
        )
    else:
        words = (
            f"The pretraining ended before the signal of step {pause['asked_at']:,} reached it, so it was not paused."
        )
    return "\n".join(["## The run", "", *table(head, rows), "", words])


def _texts(found: Metrics) -> str:
    rows = []
    for phase in found["runs"]:
        read = found["runs"][phase]["sources"]
        for name, source in found["text"][phase].items():
            overlap = source["overlap"]
            rows.append(
                [
                    f"{phase}, {name}", f"{source['documents']:,}", f"{source['tokens']:,}",
                    f"{read[name]['share'] * found['runs'][phase]['tokens']:,.0f}", f"{read[name]['share']:.1%}",
                    f"{read[name]['epochs']:.2f}",
                    DASH if overlap is None else f"{overlap['documents']:,}{' (dropped)' * overlap['dropped']}",
                ]
            )  # fmt: skip
    head = [
        "phase, source",
        "documents",
        "tokens",
        "tokens read",
        "share",
        "passes",
        "documents that repeat scored text",
    ]
    return "\n".join(["## Its text", "", *table(head, rows)])


def _curves(found: Metrics, images: str) -> str:
    return (
        f"## Curves\n\n![Training loss against tokens]({images}-loss.svg)\n\n"
        f"![Held-out bits per byte against tokens, by source]({images}-held-out.svg)" + _overfitting(found)
    )


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
    return f"\n\nOverfitting: {'; '.join(said)}." if said else ""


def _bits_per_byte(found: Metrics) -> str:
    before, after = _sums(found["loss"]["before"]), _sums(found["loss"]["after"])
    rows = [
        [
            name, f"{after[name]['tokens']:,}", f"{_bits(before[name]):.4f}", f"{_bits(after[name]):.4f}",
            f"{_bits(after[name]) - _bits(before[name]):+.4f}", f"{_nats(before[name]):.3f}",
            f"{_nats(after[name]):.3f}",
        ]
        for name in after
    ]  # fmt: skip
    head = ["held out", "tokens", "bits/byte before the anneal", "after", "change", "nats/token before", "after"]
    return "\n".join(["## Bits per byte, by source", "", _windows(found), "", *table(head, rows)])


def _windows(found: Metrics) -> str:
    """How long the windows are, and what of the change is due to that."""
    pretrain, anneal = found["runs"]["pretrain"], found["runs"]["anneal"]
    words = f"In windows of {anneal['seq_len']:,} tokens, those of the anneal."
    if pretrain["seq_len"] >= anneal["seq_len"]:
        return words
    ended = pretrain["held_out"][-1]["bits_per_byte"]["all"]
    return (
        f"{words} The pretraining had read {pretrain['seq_len']:,} at a time, and part of the change is that the "
        "anneal taught the rest: in windows of its own length, and on its own sources, it ended at "
        f"{ended:.4f}."
    )


def _by_position(found: Metrics) -> str:
    before, after = (_over_sources(found["loss"][when]) for when in ("before", "after"))
    sources = found["loss"]["after"]
    rows = [
        [
            f"{first:,} to {last:,}",
            *(_shown_nats(sums) for parts in sources.values() for sums in parts if sums["first"] == first),
            _shown_nats(before[first, last]),
            _shown_nats(after[first, last]),
        ]
        for first, last in after
    ]
    words = "Nats a token after the anneal, by source, and over all sources before and after it; windows of its length."
    head = ["position", *sources, "all before the anneal", "all after"]
    return "\n".join(["## Loss by position", "", words, "", *table(head, rows)])


def _shown_nats(sums: Mapping[str, float]) -> str:
    return f"{_nats(sums):.3f}" if sums["tokens"] else DASH


def _sums(by_source: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    keys = ("nats", "tokens", "bytes")
    sums = {name: {key: sum(part[key] for part in parts) for key in keys} for name, parts in by_source.items()}
    return {**sums, "all": {key: sum(one[key] for one in sums.values()) for key in keys}}


def _over_sources(by_source: Mapping[str, Any]) -> dict[tuple[int, int], dict[str, float]]:
    found: dict[tuple[int, int], dict[str, float]] = {}
    for parts in by_source.values():
        for part in parts:
            sums = found.setdefault((part["first"], part["last"]), {"nats": 0.0, "tokens": 0, "bytes": 0})
            for key in sums:
                sums[key] += part[key]
    return {place: sums for place, sums in found.items() if sums["tokens"]}


def _nats(sums: Mapping[str, float]) -> float:
    return sums["nats"] / sums["tokens"]


def _bits(sums: Mapping[str, float]) -> float:
    return sums["nats"] / math.log(2) / sums["bytes"]


def _tasks(found: Metrics) -> str:
    rows = []
    for name, result in found["tasks"].items():
        task, _, when = name.rpartition("/")
        if when != "after":
            continue
        before = {row["metric"]: row for row in found["tasks"][f"{task}/before"]["rows"]}
        rows += [
            [task, row["metric"], f"{row['questions']:,}", _with_error(before[row["metric"]]), _with_error(row)]
            for row in result["rows"]
            if row["metric"] in METRICS_SHOWN
        ]
    if not rows:
        return ""
    head = ["task", "metric", "questions", "before the anneal", "after"]
    return "\n".join(
        [
            "## Questions", "",
            "Through lm-evaluation-harness, ± the standard error of the mean; what the tasks and metrics are: "
            "docs/evaluation.md.", "", *table(head, rows),
        ]
    )  # fmt: skip


def _with_error(row: Metrics) -> str:
    error = f" ± {row['stderr']:.4f}" if row["stderr"] is not None else ""
    return f"{row['value']:.4f}{error}"


def _failures(found: Metrics) -> str:
    before, after = found["suite"]["before"], found["suite"]["after"]
    if not after["prompts"]:
        return ""
    rows = [
        [name, _rate(before["failures"][name], before["prompts"]), _rate(count, after["prompts"])]
        for name, count in after["failures"].items()
    ]
    left_out = f" {after['left_out']} prompts do not fit the context and are left out." if after["left_out"] else ""
    words = (
        f"{after['prompts']} prompts, one continuation of {after['new_tokens']} tokens each at temperature 0.7 and "
        "top-p 0.9, counted by the failure that comes first in the list of docs/failures.md, with 95 % Wilson "
        f"intervals.{left_out}"
    )
    head = ["failure", "before the anneal", "after"]
    return "\n".join(["## Failures in the prompt suite", "", words, "", *table(head, rows)])


def _rate(count: int, of: int) -> str:
    low, high = wilson(count, of)
    return f"{count / of:.1%} ({low:.1%} to {high:.1%})"


def _samples(found: Metrics) -> str:
    before, after = (found["samples"][when]["samples"] for when in ("before", "after"))
    rows = [
        f"| {_cell(then['prompt'])} | {_with_failure(then)} | {_with_failure(now)} |"
        for then, now in zip(before, after, strict=True)
    ]
    return "\n".join(
        [
            "## The card's six prompts", "", "Temperature 0.7, top-p 0.9, seed 0, up to 256 tokens; the first "
            f"{SHOWN_OF_A_SAMPLE} characters, and the failure that comes first.", "",
            "| prompt | before the anneal | after |", "|---|---|---|", *rows,
        ]
    )  # fmt: skip


def _with_failure(sample: Metrics) -> str:
    return f"{_cell(sample['text'])} ({sample['failure']})"


def _cell(text: str) -> str:
    """Text on one line of a table, as code, so that none of it is read as Markdown."""
    line = " ".join(text.split()).replace("|", "¦").replace("`", "'")
    shown = line if len(line) <= SHOWN_OF_A_SAMPLE else line[: SHOWN_OF_A_SAMPLE - 1] + "…"
    return f"`{shown}`" if shown else "nothing"


def _reach(found: Metrics) -> str:
    heads = list(found["heads"].values())[-1]
    layers: dict[int, list[dict[str, Any]]] = {}
    for head in heads["heads"]:
        layers.setdefault(head["layer"], []).append(head)
    rows = [
        [
            f"layer {layer}, {some[0]['kind']}", f"{sum(head['distance'] for head in some) / len(some):.1f}",
            f"{max(head['distance'] for head in some):.1f}", f"{sum(head['reach'] for head in some) / len(some):.1%}",
        ]
        for layer, some in layers.items()
    ]  # fmt: skip
    window = found["model"]["window"]
    head = ["layer", "mean distance to what is read", "of its farthest head", f"mass {window:,} tokens back or more"]
    parts = [
        "## Reach", "",
        f"After the anneal, over {heads['tokens']:,} tokens of held-out text; a sliding layer sees {window:,}.",
        "", *table(head, rows),
    ]  # fmt: skip
    before, after = found["reach"]["before"], found["reach"]["after"]
    if "why_not" in after:
        return "\n".join(parts)
    asked = zip(before["whole"], before["cut"], after["whole"], after["cut"], strict=True)
    recalled = [[f"{now['distance']:,}", *(_chosen(one) for one in (then, then_cut, now, now_cut))]
                for then, then_cut, now, now_cut in asked]  # fmt: skip
    words = (
        f"How often a fact is told from seven others so many tokens later (chance {after['chance']:.1%}); cut: with "
        "every layer seeing the window alone. The farthest that a fact surely raises its answer's probability: "
        f"{_back(before)} before the anneal, {_back(after)} after it."
    )
    head = ["tokens back", "before the anneal", "cut", "after", "cut"]
    return "\n".join([*parts, "", words, "", *table(head, recalled)])


def _back(reach: Metrics) -> str:
    whole, cut = (f"{reach[key]:,} tokens back" if reach[key] else "nowhere" for key in ("reach", "reach_cut"))
    return f"{whole} (cut: {cut})"


def _chosen(recall: Metrics) -> str:
    low, high = recall["chosen_interval"]
    return f"{recall['chosen']:.0%} ({low:.0%} to {high:.0%})"


def _heads(found: Metrics, images: str) -> str:
    rows = []
    for name, scored in found["heads"].items():
        phase, _, step = name.partition("-")
        rows.append(
            [
                f"{phase}, step {int(step):,}",
                *(_strongest(scored["heads"], score) for score in ("previous", "induction", "sink")),
            ]
        )
    words = (
        f"The strongest head (layer.head) of each kind at {len(rows)} checkpoints, by the mean mass that it gives to "
        "the token before, to what followed an earlier occurrence of the current token, and to the first token."
    )
    picture = f"![The strongest head of each kind against tokens]({images}-heads.svg)"
    head = ["checkpoint", "previous token", "induction", "first token"]
    return "\n".join(["## Heads through the training", "", words, "", picture, "", *table(head, rows)])


def _strongest(heads: list[dict[str, Any]], score: str) -> str:
    best = max(heads, key=lambda head: head[score])
    return f"{best['layer']}.{best['head']} {best[score]:.3f}"


def _beside_the_card(found: Metrics) -> str:
    model, pretrain, anneal = found["model"], found["runs"]["pretrain"], found["runs"]["anneal"]
    same = model["n_params"] == PUBLISHED
    machine, decoding = found["machine"]["name"], found["samples"]["after"]["decoding"]
    size = "the same architecture" if same else "another size of model"
    rows = [
        ["parameters", f"{PUBLISHED:,}", f"{model['n_params']:,}", "the same" if same else "no: another size"],
        ["tokens of the pretraining", f"{CARD_TOKENS:,}", f"{pretrain['tokens']:,}", "a count"],
        ["training, tokens/s", f"{CARD_TOKENS_PER_SECOND:,}, one consumer-grade GPU",
         f"{pretrain['tokens_per_second']:,.0f}, {machine}",
         f"{'as machines' if same else 'no'}: {size}, another machine"],
        ["last cross-entropy of the anneal, nats/token", f"{CARD_CROSS_ENTROPY}", f"{anneal['loss'][-1]['loss']:.2f}",
         "no: other text and another tokenizer; bits per byte of common text would compare"],
        ["greedy decoding, tokens/s", f"{CARD_DECODING}, without a key-value cache",
         f"{decoding['tokens_per_second']:,.0f}, with one", f"no: {size}, another machine, and a cache"],
        ["six prompts", "one sample each", "one sample each, above", "by eye: other draws of the same sampling"],
    ]  # fmt: skip
    return "\n".join(
        ["## Beside the card", "", *table(["figure", "Shard-40m-v1's card", "here", "do they compare?"], rows)]
    )


def _costs(found: Metrics) -> str:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for stage in found["stages"]:
        kinds.setdefault(stage["name"].partition("/")[0], []).append(stage)
    energy, price = any(stage["joules"] is not None for stage in found["stages"]), found["price_per_hour"]
    rows = [_cost(kind, stages, energy, price) for kind, stages in [*kinds.items(), ("all", found["stages"])]]
    head = ["stage", "times", "minutes", *(["energy of the GPUs (Wh)"] if energy else []), *(["rent"] if price else [])]
    said = [] if energy else ["Energy was not measured: nvidia-smi gave no power."]
    if price:
        said.append(f"Rent at {price:g} an hour.")
    return "\n".join(["## What it cost", "", *([" ".join(said), ""] if said else []), *table(head, rows)])


def _cost(kind: str, stages: list[dict[str, Any]], energy: bool, price: float | None) -> list[str]:
    seconds = sum(stage["seconds"] for stage in stages)
    joules = [stage["joules"] for stage in stages if stage["joules"] is not None]
    row = [kind, str(len(stages)), f"{seconds / 60:.1f}"]
    if energy:
        row.append(f"{sum(joules) / 3600:.1f}" if joules else DASH)
    return [*row, f"{seconds / 3600 * price:.2f}"] if price else row
