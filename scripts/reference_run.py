"""docs/reference-run.md and its pictures, from the committed metrics of a run: `python scripts/reference_run.py`.

The metrics are what `shardscope reproduce` collected; docs/reference/README.md says what else of the run is there.
"""

from __future__ import annotations

from pathlib import Path

from shardscope.config import ConfigError
from shardscope.files import read_json
from shardscope.reproduce.report import write_report

DOCS = Path(__file__).resolve().parents[1] / "docs"
METRICS = DOCS / "reference" / "shard-54m-run.json"
NOTES = DOCS / "reference" / "shard-54m-notes.json"
XRAY = DOCS / "reference" / "shard-54m-xray.json"


def preface() -> str:
    """What the metrics do not say: how long it took by the clock, how an earlier run ended, and what its loops are."""
    runs, notes = read_json(METRICS, ConfigError)["runs"], read_json(NOTES, ConfigError)
    ends = {
        phase: (runs[phase]["held_out"][-1]["bits_per_byte"]["all"], earlier["bits_per_byte"]["all"])
        for phase, earlier in notes["earlier_run"]["held_out"].items()
    }
    return (
        f"By the clock it took {notes['minutes_by_the_clock']} minutes: what is measured on checkpoints was measured "
        f"{notes['measured_at_once']} stages at a time on the one GPU, so minutes and energy of these stages, in the "
        "last table, count more than once what they shared.\n\n"
        f"The figures repeat: an earlier run ({notes['earlier_run']['what']}) ended the pretraining at "
        f"{ends['pretrain'][1]:.4f} and the anneal at {ends['anneal'][1]:.4f} held-out bits per byte, this one at "
        f"{ends['pretrain'][0]:.4f} and {ends['anneal'][0]:.4f}.\n\n"
        f"{loop()}"
    )


def loop() -> str:
    """What the X-ray finds in the annealed model's greedy story."""
    found = read_json(XRAY, ConfigError)
    when, cures = found["when"], found["cures"]
    ended = [f"{cure['remedy']} {cure['setting']:g} at {cure['cost']:.3f}" for cure in cures if not cure["looping"]]
    without = next(cure for cure in cures if cure["remedy"] == "ablation")
    switched_off = " and ".join(without["parts"])
    return (
        f"Its greedy story loops: after `{found['prompt']}` comes `{when['text'].strip()}` from token {when['onset']} "
        "on, again and again. `shardscope xray` (weights rounded to bfloat16, on a CPU; "
        f"[JSON](reference/{XRAY.name})) calls it *{found['verdict']}*: {found['reason']}. Switching {switched_off} "
        f"off is no cure, as it costs {without['cost']:.1f} nats of held-out loss and another loop follows; what ends "
        f"it, with its cost in nats: {', '.join(ended)}."
    )


def write(page: Path = DOCS / "reference-run.md") -> Path:
    return write_report(METRICS, page, preface())


if __name__ == "__main__":
    print(write())
