"""The commands of `shardscope`, in the order of a model's life.

A command is a line here and a module beside this file with `add_arguments(parser)` and `run(arguments) -> int`. The
module is imported only when its command is used, so it may import what it needs at its top.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A name, what `--help` says of it, and command lines to paste (without the leading `shardscope`)."""

    name: str
    help: str
    examples: tuple[str, ...]

    @property
    def module(self) -> str:
        return f"shardscope.cli.{self.name}_command"


COMMANDS = (
    Command(
        "train",
        "Train as a recipe says: a TOML file, or the name of a packaged recipe.",
        (
            "train shard-pico-pretrain",
            "train recipes/shard-pico-anneal.toml --schedule.steps 100 --out runs/short",
        ),
    ),
    Command("info", "What a checkpoint or a run is: architecture, training, state.", ("info runs/shard-pico-anneal",)),
    Command(
        "generate",
        "Continue a prompt; greedy unless a temperature is given.",
        (
            'generate "Once upon a time" --temperature 0.7 --top-p 0.9 --seed 1',
            'generate "Question: What is 23 + 19? Answer:" --checkpoint runs/shard-pico-anneal --stop "\\n"',
        ),
    ),
    Command(
        "explore",
        "Open the explorer in a browser: attention, tokens, heads, runs, failures.",
        ("explore", "explore --port 8600 --runs runs/ --checkpoint runs/shard-pico-anneal"),
    ),
    Command(
        "attention",
        "Every head's attention over a prompt, as PNG, Parquet and one offline HTML page.",
        ("attention runs/shard-pico-anneal --prompt-file story.txt --out looking/",),
    ),
    Command(
        "failures",
        "What goes wrong in samples: the model card's six prompts, or prompts of your own, labelled.",
        ("failures runs/shard-pico-anneal", 'failures --prompt "Solve: 17 * 23 = ?" --seed 3'),
    ),
    Command(
        "atlas",
        "How often each failure occurs at every checkpoint of a run, before and after its anneal.",
        (
            "atlas runs/shard-pico-pretrain runs/shard-pico-anneal --png atlas.png",
            "atlas runs/shard-pico-anneal --prompts mine.jsonl --temperatures 0,0.7 --seeds 4 --json atlas.json",
        ),
    ),
    Command(
        "xray",
        "Why a text loops: onset, heads and MLPs, the smallest set that breaks it, and cures.",
        (
            'xray --prompt "The capital of France is"',
            'xray runs/shard-pico-anneal --prompt "Once upon a time" --json loop.json --picture loop.svg',
        ),
    ),
    Command(
        "longcontext",
        "How far back a fact is retrieved, which heads fetch it, and the loss by position.",
        ("longcontext", "longcontext runs/shard-nano-anneal --distance 256 --distance 1024 --json reach.json"),
    ),
    Command(
        "eval",
        "Score ARC, GSM8K, MATH and arithmetic offline on a small sample, earlier runs beside it.",
        (
            "eval",
            "eval runs/shard-pico-anneal --tasks shard_arith --limit 50",
            "eval --data path/to/test-sets",
        ),
    ),
    Command(
        "report",
        "Held-out loss of a run before and after, beside a byte n-gram, gzip and xz, and the card's six prompts.",
        (
            "report runs/shard-pico-anneal",
            "report runs/shard-nano-anneal --ngram 8 --ngram-bytes 120_000_000",
            "report runs/shard-pico-pretrain runs/shard-pico-anneal",
            "report runs/reproduce/shard-pico/metrics.json --out report.md",
        ),
    ),
    Command(
        "reproduce",
        "The reference run from text to report: pretrain, pause, anneal, and every measurement; resumable.",
        (
            "reproduce --price-per-hour 2.50",
            "reproduce --recipes shard-pico-pretrain shard-pico-anneal --data path/to/test-sets --limit 50",
            "reproduce --dry-run",
        ),
    ),
    Command(
        "export",
        "Write a directory that stock transformers loads, as VaultGemma.",
        ("export runs/shard-pico-anneal --out exported/", "export --out exported/ --dtype bfloat16"),
    ),
    Command(
        "import",
        "Read an exported directory, or a published model.pt without running code from it.",
        (
            "import exported/ --out imported/",
            "import models/model.pt --tokenizer tokenizer.json --text sample.txt --out imported/",
        ),
    ),
    Command(
        "verify",
        "The parity certificate: the same numbers natively, in TransformerLens and in transformers.",
        ("verify runs/shard-pico-anneal",),
    ),
    Command(
        "bench",
        "Measure speed beside a peer in the same run: a table, and JSON.",
        ("bench decode", "bench train --help"),
    ),
)
