"""docs/reference-run.md and its pictures, from the committed metrics of a run: `python scripts/reference_run.py`.

The metrics are what `shardscope reproduce` collected; docs/reference/README.md says what else of the run is there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from shardscope.config import ConfigError
from shardscope.files import read_json
from shardscope.reproduce.report import write_page
from shardscope.reproduce.report_training import TRAINING

DOCS = Path(__file__).resolve().parents[1] / "docs"
METRICS = DOCS / "reference" / "shard-54m-run.json"
NOTES = DOCS / "reference" / "shard-54m-notes.json"
OVERLAP = DOCS / "reference" / "shard-54m-overlap.json"
UNSEEN = DOCS / "reference" / "shard-54m-unseen.json"  # made by scripts/held_out_unseen.py
XRAY = DOCS / "reference" / "shard-54m-xray.json"
DECODING = DOCS / "benchmarks" / "decode-h100.json"
MOST_PASSES = 8  # of any source, in both phases together


def metrics() -> dict[str, Any]:
    """What the run collected, with its overlap as it was counted since, on the same tokens."""
    found, counted = read_json(METRICS, ConfigError), read_json(OVERLAP, ConfigError)
    for phase in found["runs"]:
        for name, source in found["text"][phase].items():
            overlap = dict(counted[phase][name])
            assert overlap.pop("fingerprint") == source["fingerprint"], f"{OVERLAP}: {name} is other text"
            source["overlap"] = overlap
    return found


def remarks(found: dict[str, Any]) -> dict[str, str]:
    """What the metrics do not say, by the section that it belongs to."""
    notes = read_json(NOTES, ConfigError)
    return {
        "": (
            f"SHARDSCOPE_DATA and SHARDSCOPE_EVAL_DATA name the folders of its text and of the test sets. Every figure "
            f"below is made from [these files](reference/README.md) by `python scripts/reference_run.py`.\n\n"
            f"{_earlier_run(found, notes)}"
        ),
        "Its text": f"{notes['text']} {_scored()}\n\n{_possible_tokens(found)}",
        "Bits per byte, by source": _unseen(found),
        "Questions": notes["questions"],
        "The card's six prompts": _loop(),
        "Beside the card": _decoding(found, notes),
        "What it cost": _clock(found, notes),
    }


def _earlier_run(found: dict[str, Any], notes: dict[str, Any]) -> str:
    earlier = notes["earlier_run"]
    before, after = (
        (
            found["runs"][phase]["held_out"][-1]["bits_per_byte"]["all"],
            earlier["held_out"][phase]["bits_per_byte"]["all"],
        )
        for phase in ("pretrain", "anneal")
    )
    return (
        f"It has been run twice: an earlier run ({earlier['what']}) ended the pretraining at {before[1]:.4f} and the "
        f"anneal at {after[1]:.4f} held-out bits per byte, this one at {before[0]:.4f} and {after[0]:.4f}. "
        "How much another seed would change was not measured."
    )


def _unseen(found: dict[str, Any]) -> str:
    """What the held-out text takes without the words that it has in common with training text."""
    counted = read_json(UNSEEN, ConfigError)
    bits, size = 0.0, 0
    for name, positions in found["loss"]["after"].items():
        if name in counted:
            part = counted[name]["not seen"]
            bits, size = bits + part["bits_per_byte"] * part["bytes"], size + part["bytes"]
        else:  # of these nothing was seen
            bits += sum(some["nats"] for some in positions) / math.log(2)
            size += sum(some["bytes"] for some in positions)
    shares = ", ".join(f"{s['seen']['bytes'] / s['all']['bytes']:.0%} of {name}" for name, s in counted.items())
    alone = ", ".join(
        f"{name} {s['not seen']['bits_per_byte']:.3f} instead of {s['all']['bits_per_byte']:.3f}"
        for name, s in counted.items()
    )
    return (
        f"How much better: without the words that stand there thirteen in a row ({shares}, in bytes of these windows), "
        f"the model takes, in bits per byte, {alone}, and over all sources {bits / size:.3f} "
        "(`scripts/held_out_unseen.py`, with the weights rounded to bfloat16)."
    )


def _possible_tokens(found: dict[str, Any]) -> str:
    """How many tokens this text has for so many passes, beside what was planned and what was read."""
    sizes = {name: source["tokens"] for phase in found["text"].values() if isinstance(phase, dict)
             for name, source in phase.items()}  # fmt: skip
    read, passes = dict.fromkeys(sizes, 0.0), dict.fromkeys(sizes, 0.0)
    for run in found["runs"].values():
        for name, source in run["sources"].items():
            read[name] += source["share"] * run["tokens"]
            passes[name] += source["epochs"]
    first, second = sorted(passes, key=passes.__getitem__, reverse=True)[:2]
    total = sum(read.values())
    at_weights = total * MOST_PASSES / passes[first]
    without_first = (total - read[first]) * MOST_PASSES / passes[second] + MOST_PASSES * sizes[first]
    every = MOST_PASSES * sum(sizes.values())
    return (
        f"About a billion tokens were planned, with at most {MOST_PASSES} passes of any source in both phases "
        f"together. The run read {total / 1e6:.0f} M, in at most {max(passes.values()):.1f} passes, and this text "
        f"holds no billion: {MOST_PASSES} passes of all of it are {every / 1e6:.0f} M. With the "
        f"weights of both phases as they are, {first} would come to {MOST_PASSES} passes at {at_weights / 1e6:.0f} M, "
        f"and {second}, if {first} were then read no more, at {without_first / 1e6:.0f} M."
    )


def _scored() -> str:
    """How many of the test questions share words with the text."""
    counted = read_json(OVERLAP, ConfigError)["scored"]
    shared = [f"{counted[name][0]} of {counted[name][1]:,} of {name}" for name in counted if name != "what"]
    return (
        "Of the test questions with their answers few have 13 words in a row in common with a training document, for "
        f"the most part sequences of numbers: {', '.join(shared)}."
    )


def _loop() -> str:
    """What the X-ray finds in the annealed model's greedy story."""
    found = read_json(XRAY, ConfigError)
    when, cures = found["when"], found["cures"]
    ended = [f"{cure['remedy']} {cure['setting']:g} at {cure['cost']:.3f}" for cure in cures if not cure["looping"]]
    without = next(cure for cure in cures if cure["remedy"] == "ablation")
    switched_off = " and ".join(without["parts"])
    return (
        f"Decoded greedily the annealed model loops: after `{found['prompt']}` comes `{when['text'].strip()}` from "
        f"token {when['onset']} on, again and again. `shardscope xray` (weights rounded to bfloat16, on a CPU; "
        f"[JSON](reference/{XRAY.name})) calls the loop *{found['verdict']}*: {found['reason']}. Switching "
        f"{switched_off} off is no cure, as it costs {without['cost']:.1f} nats of held-out loss and another loop "
        f"follows. What ends it, with its cost in nats: {', '.join(ended)}."
    )


def _decoding(found: dict[str, Any], notes: dict[str, Any]) -> str:
    rows = read_json(DECODING, ConfigError)["rows"]
    (alone,) = [row for row in rows if row["decoder"] == "shardscope" and row["batch"] == 1]
    (theirs,) = [row for row in rows if row["decoder"] == "transformers" and row["batch"] == 1]
    here = found["samples"]["after"]["decoding"]["tokens_per_second"]
    return (
        f"Decoding was timed while {notes['measured_at_once'] - 1} other stages measured on the same GPU. Alone on an "
        f"H100 the same architecture writes {alone['tokens_per_second']:,.0f} tokens/s greedily, not {here:,.0f}, and "
        f"through transformers {theirs['tokens_per_second']:,.0f} ([benchmark](benchmarks/{DECODING.name}))."
    )


def _clock(found: dict[str, Any], notes: dict[str, Any]) -> str:
    minutes, price = notes["minutes_by_the_clock"], found["price_per_hour"]
    training = [stage for stage in found["stages"] if stage["name"].partition("/")[0] in TRAINING]
    model = sum(stage["seconds"] for stage in training) / 60
    energy = sum(stage["joules"] for stage in training) / 3600
    return (
        f"By the clock all of it took {minutes} minutes, {minutes / 60 * price:.2f} of rent: "
        f"{notes['measured_at_once']} stages measured on the one GPU at a time, so theirs count more than once the "
        f"minutes and the energy that they shared. The model itself, {model:.1f} minutes and {energy:.0f} Wh, was "
        f"alone on it. {notes['price']}"
    )


def write(page: Path = DOCS / "reference-run.md") -> Path:
    found = metrics()
    return write_page(found, page, remarks(found))


if __name__ == "__main__":
    print(write())
