"""How fast text is written, beside transformers' `generate` in the same run: same weights, same prompts, same tokens.

What `shardscope bench decode` prints and writes comes from here. The peer is the exported checkpoint in stock
transformers with its dynamic cache. Runs alternate, so that what slows the machine slows both; medians are reported.
A step reads every weight and the cached keys and values once, so the bytes of a token over the measured memory
bandwidth bound the speed at batch 1. With `--sampled` both also write at temperature 1, of all tokens: the peer draws
from a generator of its own, so those texts differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shardscope.bench import measure
from shardscope.checkpoint import load, save_checkpoint
from shardscope.config import PRESETS, ConfigError, ShardConfig
from shardscope.device import pick_device
from shardscope.generation.engine import generate
from shardscope.generation.forward import Packed
from shardscope.generation.sampling import SamplingConfig
from shardscope.model import Shard

if TYPE_CHECKING:
    import argparse

    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PEER = "transformers"
SAMPLED = ", sampled"
FLAGS = ("checkpoint", "model", "batch", "prompt", "new", "sampled", "runs", "dtype", "out")
STORY = (
    "The ferry left at six in the morning, when the harbour was still dark and only the baker had a light in his "
    "window. Anna stood at the rail with her brother and counted the boats that came in from the night's fishing. She "
    "was eleven years old, and she had never been to the mainland. In her pocket was a letter that her grandmother had "
    "written to a clockmaker whom nobody on the island had seen for thirty years, and in her bag was the clock. "
)


@dataclass(frozen=True)
class DecodingRow:
    """A row of the table. `tokens_per_second` counts all sequences, the prompts' reading included in the time."""

    decoder: str
    batch: int
    prompt: int
    new: int
    tokens_per_second: float
    spread: float | None  # as in measure.py
    seconds: list[float]  # of every run
    same_tokens: float | None  # share of the generated tokens that equal the peer's; None: they are sampled
    bytes_per_token: float  # of weights and cache that a step reads, for each sequence
    share_of_bandwidth: float  # as if every token were a step of its own; above 1 where several share one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="its weights go on with a story (default: random weights of --model)"
    )
    parser.add_argument("--model", default="shard-54m", choices=tuple(PRESETS), help="default shard-54m")
    parser.add_argument(
        "--batch",
        nargs="+",
        type=int,
        default=[1],
        metavar="N",
        help="sequences at once (default 1); where several numbers are given, --prompt and --new may have as many",
    )
    parser.add_argument(
        "--prompt", nargs="+", type=int, default=[32], metavar="N", help="tokens of each prompt (default 32)"
    )
    parser.add_argument(
        "--new", nargs="+", type=int, default=[128], metavar="N", help="tokens to generate (default 128)"
    )
    parser.add_argument("--sampled", action="store_true", help="also write at temperature 1")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: float32 on a CPU, else bfloat16")
    measure.add_shared_arguments(parser, runs=5)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. Raises ConfigError for sizes that do not fit."""
    cases = _cases(arguments)
    measure.at_least_one(runs=arguments.runs)
    device = pick_device(arguments.device)
    dtype = DTYPES[arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
    with TemporaryDirectory() as scratch:
        checkpoint = arguments.checkpoint or random_checkpoint(PRESETS[arguments.model], Path(scratch) / "random")
        model = load(checkpoint, device, dtype)
        if any(prompt + new > model.config.n_ctx for _, prompt, new in cases):
            raise ConfigError(f"--prompt and --new together exceed the model's context of {model.config.n_ctx}")
        peer = peer_of(measure.export(checkpoint, Path(scratch) / "exported"), device, dtype)
    bandwidth = memory_bandwidth(device)
    rows: list[DecodingRow] = []
    for batch, prompt, new in cases:
        rows += compare(model, peer, batch, prompt, new, arguments.runs, bandwidth, arguments.sampled)
    report = {
        "command": measure.command_line("decode", arguments, *FLAGS),
        "machine": measure.machine(device),
        "model": str(arguments.checkpoint or arguments.model),
        "parameters": model.n_params,
        "dtype": str(dtype).removeprefix("torch."),
        "memory_bandwidth": bandwidth,
        "rows": [asdict(row) for row in rows],
    }
    print(table(report))
    measure.save(report, arguments.out)
    return 0


def _cases(arguments: argparse.Namespace) -> list[tuple[int, int, int]]:
    """(batch, prompt, new) of each comparison; a number given once holds for all."""
    lists = [arguments.batch, arguments.prompt, arguments.new]
    many = max(map(len, lists))
    if any(len(numbers) not in (1, many) for numbers in lists):
        raise ConfigError("--batch, --prompt and --new: give one number, or as many as the longest of them has")
    if min(map(min, lists)) < 1:
        raise ConfigError("--batch, --prompt and --new: each number must be at least 1")
    return list(zip(*(numbers * (many // len(numbers)) for numbers in lists), strict=True))


def random_checkpoint(config: ShardConfig, folder: Path) -> Path:
    """Seeded random weights whose greedy text does not hang on the last bits of a logit."""
    torch.manual_seed(0)
    model = Shard(config)
    with torch.no_grad():
        model.embed.W_E.mul_(5)
    return save_checkpoint(folder, model)


def peer_of(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """An exported directory in stock transformers."""
    from transformers import AutoModelForCausalLM

    peer: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return peer.to(device).eval()  # type: ignore[arg-type]


def compare(
    model: Shard, peer: PreTrainedModel, batch: int, prompt: int, new: int, runs: int, bandwidth: float,
    sampled: bool = False,
) -> list[DecodingRow]:  # fmt: skip
    """A row for each way of writing the same greedy text; the first is transformers', to which the others are held.

    `sampled`: two more, at temperature 1.
    """
    picked = _prompts(model, batch, prompt)
    prompts, packed = picked.tolist(), Packed(model)
    tokens = picked.to(model.device)

    def theirs(sample: bool = False, **settings: int) -> list[list[int]]:
        with torch.inference_mode():
            # The end token is an ordinary one here, so that every run writes the same number of tokens.
            written: Tensor = peer.generate(  # type: ignore[operator]
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new,
                do_sample=sample,
                **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}),
                eos_token_id=None,
                pad_token_id=0,
                **settings,
            )
        return written[:, prompt:].tolist()

    def ours(lookup: bool = False, temperature: float = 0.0) -> list[list[int]]:
        config = SamplingConfig(max_new_tokens=new, stop_at_eos=False, lookup=lookup, temperature=temperature)
        return [list(generation.ids) for generation in generate(model, prompts, config, packed=packed)]

    decoders: dict[str, Callable[[], list[list[int]]]] = {PEER: theirs, "shardscope": ours}
    if batch == 1 and model.device.type == "cpu" and model.embed.W_E.dtype == torch.float32:
        decoders["transformers, prompt lookup"] = partial(theirs, prompt_lookup_num_tokens=10)
        decoders["shardscope, lookup (default)"] = partial(ours, lookup=True)
    if sampled:
        decoders[PEER + SAMPLED] = partial(theirs, sample=True)
        decoders["shardscope" + SAMPLED] = partial(ours, temperature=1.0)
    expected = theirs()
    texts = {name: decoder() for name, decoder in decoders.items()}  # warm
    seconds = measure.taking_turns(decoders, runs, model.device)
    size = bytes_per_token(model, batch, prompt + new // 2)
    return [
        DecodingRow(
            decoder=name,
            batch=batch,
            prompt=prompt,
            new=new,
            tokens_per_second=(speed := batch * new / measure.summary(times).median),
            spread=measure.summary(times).spread,
            seconds=times,
            same_tokens=None if name.endswith(SAMPLED) else _share_equal(texts[name], expected),
            bytes_per_token=size,
            share_of_bandwidth=speed * size / bandwidth,
        )
        for name, times in seconds.items()
    ]


def _prompts(model: Shard, batch: int, length: int) -> Tensor:
    """Beginnings of a story where the model has a tokenizer, each from another word on; else random tokens."""
    if model.tokenizer is None:
        generator = torch.Generator().manual_seed(batch)
        return torch.randint(1, model.config.vocab_size, (batch, length), generator=generator)
    ids = model.tokenizer.encode(STORY)
    ids *= 1 + (length + batch) // len(ids)
    return torch.tensor([ids[row : row + length] for row in range(batch)])


def bytes_per_token(model: Shard, batch: int, context: int) -> float:
    """What a step reads for each of `batch` sequences: its share of the weights, and its keys and values."""
    config, size = model.config, model.embed.W_E.element_size()
    held = sum(min(window or context, context) for window in config.windows)
    return size * (config.n_params / batch + 2 * held * config.n_heads * config.d_head)


def memory_bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes a second that one pass over a large array reads: the best of ten."""
    array = torch.ones(megabytes * 2**18, device=device)
    array.sum()
    return array.nbytes / min(measure.seconds_of(array.sum, device) for _ in range(10))


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    machine = report["machine"]
    lines = [
        f"{report['model']}, {report['dtype']}, {machine['name']}, {machine['threads']} threads, torch "
        f"{machine['torch']}; memory read at {report['memory_bandwidth'] / 1e9:.1f} GB/s",
        "",
    ]

    def case(row: dict[str, Any]) -> tuple[int, int, int, bool]:
        return row["batch"], row["prompt"], row["new"], row["decoder"].endswith(SAMPLED)

    peers = (PEER, PEER + SAMPLED)
    base = {case(row): row["tokens_per_second"] for row in report["rows"] if row["decoder"] in peers}
    header = [
        "decoder",
        "batch",
        "prompt + new",
        "tokens/s",
        "spread",
        "against peer",
        "same tokens",
        "MB/token",
        "bandwidth",
    ]
    cells = [
        [
            row["decoder"],
            str(row["batch"]),
            f"{row['prompt']} + {row['new']}",
            f"{row['tokens_per_second']:,.1f}",
            measure.shown_spread(row["spread"]),
            f"{row['tokens_per_second'] / base[case(row)]:.2f}×",
            "–" if row["same_tokens"] is None else f"{row['same_tokens']:.1%}",
            f"{row['bytes_per_token'] / 1e6:.1f}",
            f"{row['share_of_bandwidth']:.0%}",
        ]
        for row in report["rows"]
    ]
    return "\n".join([*lines, *measure.table(header, cells)])


def _share_equal(texts: list[list[int]], expected: list[list[int]]) -> float:
    pairs = [pair for row, other in zip(texts, expected, strict=True) for pair in zip(row, other, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)
