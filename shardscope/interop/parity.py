"""The parity certificate: does a checkpoint compute the same in Shardscope, TransformerLens and stock transformers?

Every implementation reads the same prompts, one shorter and one longer than the window, in float32 and in bfloat16. No
two of them add in the same order, so none is the measure of the others: each is measured by its distance from the exact
logits, which the same weights give in float64. transformers has no stock model that normalises queries and keys, so a
Shard with `qk_norm` is compared with TransformerLens alone. What is judged:

- float32: every logit within `TOLERANCE` (1e-5) times 1 + the largest logit of its position, or within `NUDGES` (16)
  times what the exact logits change by when every weight is rounded once more: sharp attention magnifies any rounding,
  in whichever order one adds. On average at most `ROUNDING` times as far off as Shardscope itself; the likeliest token
  and the greedy text the same, except where two tokens are so near that the first bound would let them change places.
- bfloat16: on average at most `ROUNDING` times as far off as Shardscope itself. Every one rounds in other places, and
  a few hundredths of a logit decide between two words, so the text is reported and not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shardscope.checkpoint import load
from shardscope.interop.huggingface import export_pretrained
from shardscope.interop.rounding import DTYPES, WideProducts
from shardscope.model import Shard
from shardscope.progress import progress_of_shares

TOLERANCE = 1e-5  # float32: |theirs - exact| <= TOLERANCE * (1 + largest |exact| of the position)
# or <= NUDGES * largest |nudged - exact|. Of five models and prompts, sharp ones among them, it took 2 to 6.4.
NUDGES = 16.0
ROUNDOFF = 2.0**-24  # of float32
ROUNDING = 3.0  # both dtypes: mean |theirs - exact| <= ROUNDING * mean |Shardscope - exact|
GREEDY_TOKENS = 16

Tokens = Int[Tensor, "1 pos"]
Logits = Float[Tensor, "1 pos vocab"]


@dataclass(frozen=True)
class Implementation:
    """Another library's copy of the model: its logits, and its greedy continuation by `n` tokens."""

    name: str
    logits: Callable[[Tokens], Logits]
    greedy: Callable[[Tokens, int], Tokens]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One implementation on one prompt in one dtype, against the exact logits of the same weights."""

    implementation: str
    dtype: str
    prompt: str
    tokens: int
    max_difference: float
    mean_difference: float
    argmax_agreement: float  # share of positions with the same likeliest token
    same_greedy: int | None  # greedy tokens before the first that Shardscope would not write; None: Shardscope itself
    passed: bool


@dataclass(frozen=True)
class Certificate:
    comparisons: list[Comparison]

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)

    def lines(self) -> list[str]:
        """A table to print, and the verdict."""
        heading = f"{'implementation':<16}{'dtype':<10}{'prompt':<14}" + "".join(
            f"{name:>{width}}" for name, width in (("max diff", 10), ("mean diff", 11), ("argmax", 9), ("greedy", 9))
        )
        rows = [
            f"{c.implementation:<16}{c.dtype:<10}{f'{c.prompt}, {c.tokens}':<14}"
            f"{c.max_difference:>10.1e}{c.mean_difference:>11.1e}{c.argmax_agreement:>9.2%}"
            f"{'-' if c.same_greedy is None else f'{c.same_greedy}/{GREEDY_TOKENS}':>9}"
            f"  {'ok' if c.passed else 'OUT OF BOUNDS'}"
            for c in self.comparisons
        ]
        legend = "diff: from the logits that the same weights give in float64; greedy: tokens as Shardscope writes them"
        return [heading, *rows, legend, "all implementations agree" if self.passed else "the implementations DISAGREE"]


def verify(model: Shard | str | Path | None, seed: int = 0) -> Certificate:
    """Compare the implementations on the CPU.

    `model` is a Shard, a checkpoint or a run (None: the built-in model).
    """
    comparisons: list[Comparison] = []
    dtypes = ("float32", "bfloat16")
    with progress_of_shares("verify") as progress:
        for number, dtype in enumerate(dtypes):

            def report(done: float, name: str, number: int = number, dtype: str = dtype) -> None:
                progress((number + done) / len(dtypes), f"{name} in {dtype}")

            comparisons += _comparisons(_in_dtype(model, dtype), dtype, seed, report)
    return Certificate(comparisons)


def _comparisons(shard: Shard, dtype: str, seed: int, report: Callable[[float, str], None]) -> Iterator[Comparison]:
    """Every implementation on every prompt in one dtype; `report` is told the share done and the one that is next."""
    prompts = _prompts(shard, seed)
    report(0.0, "Shardscope")
    with TemporaryDirectory() as scratch, torch.no_grad(), WideProducts():
        native = cache(lambda ids: shard(torch.tensor([ids])))
        exact = {name: exact_logits(shard, prompt) for name, prompt in prompts.items()}
        ours = {name: native(tuple(prompt[0].tolist())) for name, prompt in prompts.items()}
        bounds = {name: _bound(shard, prompt, exact[name]) for name, prompt in prompts.items()}
        for name in prompts:
            yield _compare("Shardscope", dtype, name, exact[name], bounds[name], ours[name], ours[name], None)
        folder, others = Path(scratch) / "export", [_transformer_lens]
        if not shard.config.qk_norm:
            export_pretrained(shard, folder, dtype)
            others.append(_transformers)
        for done, build in enumerate(others, start=1):
            other = build(shard, folder)
            report(done / (1 + len(others)), other.name)
            for name, prompt in prompts.items():
                written = other.greedy(prompt, GREEDY_TOKENS)
                opinion = native(tuple(written[0, :-1].tolist()))[0, prompt.shape[1] - 1 :]
                shortfall = opinion.amax(dim=-1) - opinion.gather(1, written[0, prompt.shape[1] :, None])[:, 0]
                theirs = other.logits(prompt)
                yield _compare(other.name, dtype, name, exact[name], bounds[name], ours[name], theirs, shortfall)
            del other


def exact_logits(shard: Shard, tokens: Tokens, nudge: float = 0.0) -> Float[Tensor, "1 pos vocab"]:
    """What the weights mean: the logits with every step in float64, on the CPU. Only the table of rotary angles stays
    float32; it is a part of the architecture that all of them share to the bit.

    `nudge`: of its size, how much every weight is changed by first, up or down at random.
    """
    copy = Shard(shard.config).double()
    copy.load_state_dict(shard.state_dict())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), _NoRounding():
        for weight in copy.parameters() if nudge else ():
            up = torch.randint(2, weight.shape, generator=generator)
            weight.mul_(1 + nudge * (2 * up.double() - 1))
        return copy.eval()(tokens)


def _bound(shard: Shard, tokens: Tokens, exact: Logits) -> Float[Tensor, "1 pos"] | None:
    """How far off the logits of each position may be in float32; None in another dtype."""
    if shard.embed.W_E.dtype != torch.float32:
        return None
    magnified = (exact_logits(shard, tokens, nudge=ROUNDOFF) - exact).abs().max()
    return (TOLERANCE * (1 + exact.abs().amax(dim=-1))).clamp(min=NUDGES * float(magnified))


def _compare(
    implementation: str,
    dtype: str,
    name: str,
    exact: Logits,
    bound: Float[Tensor, "1 pos"] | None,
    native: Logits,
    theirs: Logits,
    shortfall: Float[Tensor, "greedy"] | None,
) -> Comparison:
    """`theirs` against `exact`, with the native model's own distance as the measure of what rounding does.

    `shortfall` is how far below the likeliest token the native model sees each greedy token that the other one wrote:
    all zeros if and only if the native model writes the same text.
    """
    difference = (theirs.double() - exact).abs()
    rounding = (native.double() - exact).abs().mean()
    passed = bool(difference.mean() <= ROUNDING * rounding)
    if bound is not None:
        chosen = exact.gather(-1, theirs.argmax(dim=-1, keepdim=True))[..., 0]
        passed = passed and bool((difference.amax(dim=-1) <= bound).all())
        passed = passed and bool((exact.amax(dim=-1) - chosen <= 2 * bound).all())
        passed = passed and (shortfall is None or bool((shortfall <= 4 * bound.max()).all()))
    return Comparison(
        implementation=implementation,
        dtype=dtype,
        prompt=name,
        tokens=exact.shape[1],
        max_difference=difference.max().item(),
        mean_difference=difference.mean().item(),
        argmax_agreement=(exact.argmax(dim=-1) == theirs.argmax(dim=-1)).double().mean().item(),
        same_greedy=None if shortfall is None else int((shortfall == 0).long().cumprod(dim=0).sum()),
        passed=passed,
    )


class _NoRounding(TorchDispatchMode):
    """What a model widens to float32 on its way (norms, softmax, rotation, logits) stays in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        widens = func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.float32
        if widens and args[0].dtype == torch.float64:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


def _prompts(shard: Shard, seed: int) -> dict[str, Tokens]:
    """Random tokens after the begin-of-document token: a prompt inside the window, one past it where there is room."""
    config = shard.config
    generator = torch.Generator().manual_seed(seed)
    longest = config.n_ctx - GREEDY_TOKENS
    lengths = {"short": min(config.window, 32), "long": config.window + 32}
    bos = shard.tokenizer.bos_id if shard.tokenizer is not None else 0
    prompts = {}
    for name, length in lengths.items():
        body = torch.randint(1, config.vocab_size, (1, max(1, min(length, longest) - 1)), generator=generator)
        prompts[name] = torch.cat([torch.full((1, 1), bos), body], dim=1)
    return prompts


def _in_dtype(model: Shard | str | Path | None, dtype: str) -> Shard:
    if not isinstance(model, Shard):
        return load(model, device="cpu", dtype=DTYPES[dtype])
    copy = Shard(model.config, model.tokenizer).to(DTYPES[dtype])
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def _transformer_lens(shard: Shard, folder: Path) -> Implementation:
    from shardscope.interop.bridge import to_transformer_lens

    bridge = to_transformer_lens(shard)
    return Implementation(
        "TransformerLens",
        lambda tokens: bridge(tokens, prepend_bos=False),
        lambda tokens, n: bridge.generate(  # type: ignore[arg-type, return-value]
            tokens, max_new_tokens=n, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
        ),
    )


def _transformers(shard: Shard, folder: Path) -> Implementation:
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    return Implementation(
        "transformers",
        lambda tokens: stock(tokens).logits,
        lambda tokens, n: stock.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n, do_sample=False, eos_token_id=None
        ),
    )
