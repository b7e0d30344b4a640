"""How fast training is, beside transformers' model of the same shape in the same run: a table, and JSON.

A measured step is the trainer's own: a batch from the prefetching thread, forward, fused loss, backward, clipping,
Muon and AdamW, and the metrics read one step late; the variant `loop` is the whole trainer on text. What
`shardscope bench train` prints and writes comes from here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shardscope.bench.measure import (
    add_shared_arguments,
    command_line,
    machine,
    save,
    seconds_of,
    shown_spread,
    summary,
    synchronize,
)
from shardscope.bench.measure import table as markdown
from shardscope.bench.real_loop import loop_rates
from shardscope.config import (
    PRESETS,
    ConfigError,
    DataConfig,
    OptimizerConfig,
    Recipe,
    ShardConfig,
    Source,
    TrainConfig,
)
from shardscope.data import Batch, Prefetcher
from shardscope.device import pick_device
from shardscope.model import Shard
from shardscope.model.hooks import HookPoint
from shardscope.model.kernels import fp8
from shardscope.model.kernels.capture import PLAIN
from shardscope.train.flops import datasheet_flops, flops_per_token
from shardscope.train.graphed import Gradients
from shardscope.train.muon import ShardOptimizer
from shardscope.train.objective import Objective

FLAGS = ("model", "seq_len", "tokens", "steps", "variants", "trace", "device", "out")
BOS = 0
# Tokens a device holds at once.
MICRO = 131_072
# Tokens of a made-up document, on average: FineWeb-Edu's are about that long.
DOCUMENT = 700


@dataclass(frozen=True)
class Variant:
    """One way to train. `peer`: a model of transformers, with AdamW, in a plain loop; `loop`: the whole trainer."""

    name: str
    optimizer: str = "muon"
    fp8: bool = False
    mask_documents: bool = False
    hooks: bool = True
    peer: Literal["", "VaultGemma", "Llama"] = ""
    loop: bool = False


VARIANTS = {
    "fp8": Variant("Shard, MLP in fp8", fp8=True),
    "fp8-no-hooks": Variant("Shard, MLP in fp8, hook points stripped", fp8=True, hooks=False),
    "fp8-documents": Variant("Shard, MLP in fp8, documents kept apart", fp8=True, mask_documents=True),
    "shard": Variant("Shard"),
    "loop": Variant("Shard, the real loop", loop=True),
    "documents": Variant("Shard, documents kept apart", mask_documents=True),
    "adamw": Variant("Shard, AdamW", optimizer="adamw"),
    "llama": Variant("transformers' Llama, full attention, AdamW", peer="Llama"),
    "vaultgemma": Variant("transformers' VaultGemma, AdamW", peer="VaultGemma"),
}


@dataclass(frozen=True)
class TrainingRow:
    """A row of the table. Seconds are of one step, the median; `spread` as in measure.py."""

    variant: str
    model: str
    seq_len: int
    tokens_per_step: int
    tokens_per_second: float
    spread: float | None
    step_seconds: float
    compile_seconds: float
    flops_per_token: float
    mfu_datasheet: float | None
    mfu_matmul: float | None
    peak_memory_gb: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", nargs="+", choices=tuple(PRESETS), help="default: shard-54m on CUDA, else pico, nano"
    )
    parser.add_argument(
        "--seq-len",
        nargs="+",
        type=int,
        metavar="N",
        help="default: 2048 8192 on CUDA, else each model's whole context",
    )
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        metavar="N",
        help="of one step (default 131072 on CUDA, else 8192); with more numbers the first variant runs with each",
    )
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each variant (default 20)")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=tuple(VARIANTS),
        help="default: all but vaultgemma on CUDA, else shard, loop, vaultgemma",
    )
    parser.add_argument("--trace", type=int, default=0, metavar="N", help="steps of fast against float32 losses")
    add_shared_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. Raises ConfigError for sizes that do not fit."""
    device = pick_device(arguments.device)
    cuda = device.type == "cuda"
    models = arguments.model or (["shard-54m"] if cuda else ["shard-pico", "shard-nano"])
    lengths = {model: arguments.seq_len or ([2048, 8192] if cuda else [PRESETS[model].n_ctx]) for model in models}
    step_tokens = arguments.tokens or [131_072 if cuda else 8_192]
    names = arguments.variants or (
        [n for n in VARIANTS if n != "vaultgemma"] if cuda else ["shard", "loop", "vaultgemma"]
    )
    shapes = [(model, seq_len) for model in models for seq_len in lengths[model]]
    for (model, seq_len), tokens in product(shapes, step_tokens):
        if not 1 <= seq_len <= PRESETS[model].n_ctx or tokens < seq_len or tokens % seq_len:
            raise ConfigError(
                f"--seq-len {seq_len} does not fit: {model} reads 1 to {PRESETS[model].n_ctx} tokens, and --tokens "
                f"{tokens} must be a multiple of it"
            )
    if arguments.steps < 2:
        raise ConfigError(f"--steps {arguments.steps} gives no median and no spread; measure at least 2")
    eight_bit = [name for name in names if VARIANTS[name].fp8]
    if eight_bit and not fp8.available(device):
        raise ConfigError(
            f"--variants {eight_bit[0]}: {device} does not multiply 8-bit floats (Hopper and Ada GPUs with Triton do); "
            "leave it out"
        )
    matmul = matmul_flops(device)
    report: dict[str, Any] = {"command": command_line("train", arguments, *FLAGS), "machine": machine(device)}
    report |= {"matmul_flops": matmul, "rows": [], "traces": []}
    for model, seq_len in shapes:
        first = seq_len == lengths[model][0]
        # Compiling Llama takes a minute, and it has no window to gain from at another length.
        runs = [(name, step_tokens[0]) for name in names if first or name != "llama"]
        for name, tokens in runs + [(names[0], more) for more in step_tokens[1:]]:
            row = timed(VARIANTS[name], model, seq_len, tokens, arguments.steps, device, matmul)
            report["rows"].append(asdict(row))
            print(f"{row.model} T={row.seq_len} {row.variant}: {row.tokens_per_second:,.0f} tokens/s", flush=True)
            save(report, arguments.out)
    if arguments.trace:
        for model in models:
            traced = [name for name in names if name in ("shard", "fp8")]
            losses = trace(traced, PRESETS[model], lengths[model][0], arguments.trace, device)
            report["traces"].append({"model": model, "seq_len": lengths[model][0], "losses": losses})
            save(report, arguments.out)
    print(table(report))
    return 0


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table, and a line for every trace of losses."""
    header = [
        "model",
        "T",
        "tokens a step",
        "variant",
        "tokens/s",
        "spread",
        "MFU sheet",
        "MFU matmul",
        "memory",
        "compile",
    ]
    cells = [
        [
            row["model"],
            str(row["seq_len"]),
            f"{row['tokens_per_step']:,}",
            row["variant"],
            f"{row['tokens_per_second']:,.0f}",
            shown_spread(row["spread"]),
            *(f"{row[key]:.1%}" if row[key] else "–" for key in ("mfu_datasheet", "mfu_matmul")),
            f"{row['peak_memory_gb']:.1f} GB" if row["peak_memory_gb"] else "–",
            f"{row['compile_seconds']:.0f} s",
        ]
        for row in report["rows"]
    ]
    lines = markdown(header, cells)
    bare = {_shape(row): row["tokens_per_second"] for row in report["rows"] if row["variant"] == VARIANTS["shard"].name}
    for row in report["rows"]:
        if row["variant"] == VARIANTS["loop"].name and _shape(row) in bare:
            share = row["tokens_per_second"] / bare[_shape(row)]
            lines.append(
                f"\nThe real loop of {row['model']} at T={row['seq_len']}: {share:.1%} of the bare step's speed."
            )
    for found in report["traces"]:
        *variants, reference = found["losses"]
        exact = found["losses"][reference]
        for name in variants:
            fast = found["losses"][name]
            apart = max(abs(a - b) / b for a, b in zip(fast, exact, strict=True))
            lines.append(
                f"\n{VARIANTS[name].name}, {found['model']} at T={found['seq_len']}: over {len(fast)} steps the loss "
                f"({exact[0]:.3f} to {exact[-1]:.3f}) is never further than {apart:.1e} (relative) from float32's."
            )
    return "\n".join(lines)


def _shape(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["seq_len"], row["tokens_per_step"]


def matmul_flops(device: torch.device) -> float:
    """The rate of a large matrix product here, FLOP/s: bfloat16 on CUDA, float32 elsewhere."""
    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = summary([seconds_of(lambda: a @ b, device) for _ in range(12)]).median
    return 2 * size**3 / seconds


def recipe_of(
    variant: Variant,
    config: ShardConfig,
    seq_len: int,
    tokens: int,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    lr: float = 3e-4,
) -> Recipe:
    return Recipe(
        name="bench",
        phase="pretrain",
        model=config,
        data=DataConfig(
            sources=(Source(name="noise", path="made up"),), seq_len=seq_len, mask_documents=variant.mask_documents
        ),
        optimizer=OptimizerConfig(name="muon" if variant.optimizer == "muon" else "adamw", lr=lr),
        train=TrainConfig(
            batch_size=tokens // seq_len,
            micro_batch=min(tokens, MICRO) // seq_len,
            dtype=dtype,
            compile="off" if dtype == "float32" else "auto",
            fp8=variant.fp8,
        ),
    )


def timed(
    variant: Variant, model: str, seq_len: int, tokens: int, steps: int, device: torch.device, matmul: float
) -> TrainingRow:
    """Time `steps` steps after those in which everything is compiled and the caches fill."""
    config = PRESETS[model]
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if variant.loop:
        rates, compile_seconds = loop_rates(recipe_of(variant, config, seq_len, tokens), steps, device)
        seconds = [tokens / rate for rate in rates]
    else:
        seconds, compile_seconds = _step_seconds(variant, config, seq_len, tokens, steps, device)
    timing = summary(seconds)
    rate = tokens / timing.median
    flops = flops_per_token(config, seq_len)
    promised = datasheet_flops(device)
    return TrainingRow(
        variant=variant.name,
        model=model,
        seq_len=seq_len,
        tokens_per_step=tokens,
        tokens_per_second=round(rate, 1),
        spread=timing.spread,
        step_seconds=round(timing.median, 5),
        compile_seconds=round(compile_seconds, 1),
        flops_per_token=flops,
        mfu_datasheet=round(rate * flops / promised, 4) if promised else None,
        mfu_matmul=round(rate * flops / matmul, 4),
        peak_memory_gb=round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None,
    )


def _step_seconds(
    variant: Variant, config: ShardConfig, seq_len: int, tokens: int, steps: int, device: torch.device
) -> tuple[list[float], float]:
    """(seconds of each bare step, seconds that compiling took before)."""
    make_step = _peer_step if variant.peer else _shard_step
    step = make_step(variant, config, seq_len, tokens, device)
    with noise(config.vocab_size, tokens // seq_len, seq_len, steps + PLAIN + 3, device) as batches:
        following = iter(batches)
        compile_seconds = seconds_of(lambda: step(next(following)), device)
        # Three more with which shapes become graphs, and one to capture them.
        for _ in range(PLAIN + 1):
            step(next(following))
        seconds, waiting = [], step(next(following)).clone()
        for _ in range(steps):
            start = time.perf_counter()
            found = step(next(following))
            # As in the trainer: the host reads a step's numbers while the device works on the next.
            waiting.tolist()
            waiting = found
            seconds.append(time.perf_counter() - start)
        synchronize(device)
    return seconds, max(0.0, compile_seconds - summary(seconds).median)


def noise(vocab: int, batch: int, seq_len: int, steps: int, device: torch.device) -> Prefetcher:
    """Random tokens in documents of random length: speed does not depend on what they say."""

    def make(step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(1, vocab, (batch, seq_len + 1), generator=generator)
        begins = torch.rand(tokens.shape, generator=generator) < 1 / DOCUMENT
        return Batch(tokens.masked_fill_(begins, BOS), torch.zeros(batch, dtype=torch.long))

    return Prefetcher(make, 0, steps, pin=device.type == "cuda")


def _shard_step(
    variant: Variant, config: ShardConfig, seq_len: int, tokens: int, device: torch.device
) -> Callable[[Batch], Tensor]:
    torch.manual_seed(0)
    model = Shard(config).to(device).train()
    if not variant.hooks:
        strip_hooks(model)
    return shard_step(model, recipe_of(variant, config, seq_len, tokens))


def shard_step(model: Shard, recipe: Recipe) -> Callable[[Batch], Tensor]:
    """The trainer's step: a batch in, [loss, gradient norm] out, still on the device."""
    objective = Objective(model, recipe, BOS)
    optimizer = ShardOptimizer(model, recipe.optimizer, compiled=objective.compiled, graphs=objective.graphs)
    gradients = Gradients(objective, model, objective.graphs, optimizer.gradient_buffers)

    def step(batch: Batch) -> Tensor:
        window = batch.tokens.to(model.device, non_blocking=True)
        parts = window.split(recipe.train.micro_batch or len(window))
        total = torch.zeros((), device=model.device)
        for part in parts:
            total += gradients(part, 1 / len(parts))["loss"] / len(parts)
        norm = optimizer.step(1.0, total)
        optimizer.zero_grad()
        return torch.stack([total, norm])

    return step


class NoHook(nn.Module):
    """Stands where a hook point was."""

    watched = False

    def forward(self, activation: Tensor) -> Tensor:
        return activation


def strip_hooks(model: Shard) -> None:
    """Put a bare identity in the place of every hook point."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, HookPoint):
                setattr(module, name, NoHook())


def _peer_step(
    variant: Variant, config: ShardConfig, seq_len: int, tokens: int, device: torch.device
) -> Callable[[Batch], Tensor]:
    """transformers' model of this shape in a plain loop: autocast and torch.compile on CUDA, fused AdamW."""
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": config.vocab_size, "hidden_size": config.d_model, "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads, "head_dim": config.d_head, "max_position_embeddings": config.n_ctx,
        "tie_word_embeddings": True, "use_cache": False,
    }  # fmt: skip
    if variant.peer == "Llama":
        module: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    else:
        kinds = ["sliding_attention" if kind == "sliding" else "full_attention" for kind in config.layer_kinds]
        gemma = transformers.VaultGemmaConfig(
            **shape, hidden_activation="silu", query_pre_attn_scalar=config.d_head, sliding_window=config.window,
            layer_types=kinds, final_logit_softcapping=config.logit_cap, attn_logit_softcapping=None,
        )  # fmt: skip
        module = transformers.VaultGemmaForCausalLM(gemma)
    module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    cuda = device.type == "cuda"
    call = torch.compile(module) if cuda else module

    def step(batch: Batch) -> Tensor:
        window = batch.tokens.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            logits = call(window[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack([loss.detach(), norm])

    return step


def trace(
    names: Sequence[str], config: ShardConfig, seq_len: int, steps: int, device: torch.device, lr: float = 3e-4
) -> dict[str, list[float]]:
    """Losses of variants in bfloat16, and of a float32 model without any kernel of ours, from one start and one text.

    A batch is of 8,192 tokens on CUDA and of four sequences elsewhere, in a made-up language, so that there is
    something to learn.
    """
    tokens = max(seq_len, 8_192) if device.type == "cuda" else 4 * seq_len
    ways = {name: recipe_of(VARIANTS[name], config, seq_len, tokens, "bfloat16", lr) for name in names}
    ways["float32"] = recipe_of(Variant("float32"), config, seq_len, tokens, "float32", lr)
    losses = {}
    for name, recipe in ways.items():
        torch._dynamo.reset()
        torch.manual_seed(0)
        step = shard_step(Shard(config).to(device).train(), recipe)
        batches = (language(config.vocab_size, tokens // seq_len, seq_len, seed) for seed in range(steps))
        losses[name] = torch.stack([step(batch)[0] for batch in batches]).tolist()
    return losses


def language(vocab: int, batch: int, seq_len: int, seed: int) -> Batch:
    """A batch of a language in which a token has one successor, and every tenth token begins anew anywhere."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(0))
    pos = torch.arange(seq_len + 1).expand(batch, -1)
    begins = torch.rand(pos.shape, generator=generator) < 0.1
    begin = torch.where(begins, pos, 0).cummax(dim=1).values
    place = torch.randint(vocab, pos.shape, generator=generator).gather(1, begin)
    return Batch(order[(place + pos - begin) % vocab], torch.zeros(batch, dtype=torch.long))
