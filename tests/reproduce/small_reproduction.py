"""A reproduction that takes seconds: two sources of made-up text, a model of some thousand parameters."""

from __future__ import annotations

from pathlib import Path

from tiny_run import ANNEAL, RECIPE, write_corpus

SAMPLE = Path(__file__).parents[2] / "evals" / "sample"
TASKS = "shard_arc_easy,shard_arith"
# Room for the suite's prompts and what is written after them.
LONGER = {"n_ctx = 32": "n_ctx = 192", "seq_len = 32": "seq_len = 64", "steps = 20": "steps = 120"}


def make_recipes(folder: Path) -> list[str]:
    """A pretraining and its anneal in `folder`, as paths."""
    paths = []
    write_corpus(folder / "one.jsonl", seed=1)
    write_corpus(folder / "two.jsonl", seed=2)
    for name, text in (("pretrain", RECIPE), ("anneal", ANNEAL)):
        for short, long in LONGER.items():
            text = text.replace(short, long)
        paths.append(str(folder / f"tiny-{name}.toml"))
        Path(paths[-1]).write_text(text.format(folder=folder))
    return paths


def command(recipes: list[str], out: Path, tasks: str = TASKS, *more: str) -> list[str]:
    return [
        "reproduce", "--recipes", *recipes, "--out", str(out), "--data", str(SAMPLE), "--tasks", tasks, "--limit", "3",
        "--prompts", "8", "--checkpoints", "4", "--device", "cpu", *more,
    ]  # fmt: skip
