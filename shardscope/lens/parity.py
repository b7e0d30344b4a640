"""The parity certificate: does a checkpoint compute the same in Shardscope, TransformerLens and stock transformers?

Every home reads the same prompts, one shorter and one longer than the window, in float32 and in bfloat16. Logits are
compared with the native model's in the same dtype, and so is the greedy text that each home writes with its own cache.
Float32 must agree as `torch.allclose` has it, with 1e-5 both absolute and relative: the order of additions differs
between the homes, nothing else. In bfloat16 every home rounds in other places, so the bounds are wide, and the greedy
text is reported, not judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from shardscope.checkpoint import load
from shardscope.lens.transformers_home import DTYPES, export_pretrained
from shardscope.model import Shard

TOLERANCE = 1e-5  # float32: |difference| <= TOLERANCE * (1 + |native|)
BF16_MEAN, BF16_ARGMAX = 0.05, 0.90  # bfloat16: largest mean difference, smallest share of equal argmaxes
GREEDY_TOKENS = 16

Tokens = Int[Tensor, "1 pos"]
Logits = Float[Tensor, "1 pos vocab"]


@dataclass(frozen=True)
class Home:
    """Another library's copy of the model: its logits, and its greedy continuation by `n` tokens."""

    name: str
    logits: Callable[[Tokens], Logits]
    greedy: Callable[[Tokens, int], Tokens]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One home against the native model on one prompt in one dtype."""

    home: str
    dtype: str
    prompt: str
    tokens: int
    max_difference: float
    mean_difference: float
    argmax_agreement: float  # share of positions with the same likeliest token
    same_greedy: int  # greedy tokens before the first that differs
    greedy: int
    passed: bool


@dataclass(frozen=True)
class Certificate:
    comparisons: list[Comparison]

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)

    def lines(self) -> list[str]:
        """A table to print, and the verdict."""
        heading = f"{'home':<16}{'dtype':<10}{'prompt':<14}{'max diff':>10}{'mean diff':>11}{'argmax':>9}{'greedy':>9}"
        rows = [
            f"{c.home:<16}{c.dtype:<10}{f'{c.prompt}, {c.tokens}':<14}"
            f"{c.max_difference:>10.1e}{c.mean_difference:>11.1e}"
            f"{c.argmax_agreement:>9.2%}{f'{c.same_greedy}/{c.greedy}':>9}  {'ok' if c.passed else 'OUT OF BOUNDS'}"
            for c in self.comparisons
        ]
        return [heading, *rows, "the homes agree" if self.passed else "the homes DISAGREE"]


def verify(model: Shard | str | Path | None, seed: int = 0) -> Certificate:
    """Compare the homes on the CPU. `model` is a Shard, a checkpoint or a run (None: the newest run)."""
    comparisons = []
    for dtype in ("float32", "bfloat16"):
        shard = _in_dtype(model, dtype)
        native = cache(lambda ids, shard=shard: shard(torch.tensor([ids])).float())
        with TemporaryDirectory() as scratch, torch.no_grad(), _WideProducts():
            folder = export_pretrained(shard, Path(scratch) / "export", dtype)
            for build in (_transformer_lens, _transformers):
                home = build(shard, folder)
                for name, prompt in _prompts(shard, seed).items():
                    comparisons.append(_compare(native, home, dtype, name, prompt))
                del home
    return Certificate(comparisons)


def _compare(
    native: Callable[[tuple[int, ...]], Logits], home: Home, dtype: str, name: str, prompt: Tokens
) -> Comparison:
    """Both on the prompt, and the native model's opinion of the greedy text that the home wrote.

    The native model reads prompt and text at once: the texts are equal exactly if every token is the likeliest one
    after those before it. Homes that write the same text share this one pass.
    """
    written, pos = home.greedy(prompt, GREEDY_TOKENS), prompt.shape[1]
    ours = native(tuple(written[0, :-1].tolist()))
    kept = (ours[0, pos - 1 :].argmax(dim=-1) == written[0, pos:]).long().cumprod(dim=0)
    ours, theirs = ours[:, :pos], home.logits(prompt).float()
    difference = (ours - theirs).abs()
    agreement = (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).float().mean().item()
    if dtype == "float32":
        within = torch.allclose(theirs, ours, rtol=TOLERANCE, atol=TOLERANCE)
        passed = within and _decided_alike(ours, theirs) and bool(kept.all())
    else:
        passed = difference.mean().item() <= BF16_MEAN and agreement >= BF16_ARGMAX
    return Comparison(
        home=home.name,
        dtype=dtype,
        prompt=name,
        tokens=pos,
        max_difference=difference.max().item(),
        mean_difference=difference.mean().item(),
        argmax_agreement=agreement,
        same_greedy=int(kept.sum()),
        greedy=GREEDY_TOKENS,
        passed=passed,
    )


def _decided_alike(native: Logits, theirs: Logits) -> bool:
    """The same likeliest token wherever the two best are further apart than the tolerance could bridge."""
    best = native.topk(2, dim=-1).values
    decided = best[..., 0] - best[..., 1] > 4 * TOLERANCE * (1 + best[..., 0].abs())
    return bool((native.argmax(dim=-1) == theirs.argmax(dim=-1))[decided].all())


class _WideProducts(TorchDispatchMode):
    """Products of bfloat16 matrices, summed in float32 and rounded once, as hardware for bfloat16 does it.

    torch's own way on a CPU without such hardware takes minutes for a thousand tokens of a shard-54m.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        narrow = func in _PRODUCTS and args[0].dtype == torch.bfloat16
        if not narrow:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, (args, kwargs or {}))
        return tree_map(lambda x: x.bfloat16() if isinstance(x, Tensor) else x, func(*args, **kwargs))


_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


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
        return load(model, dtype=DTYPES[dtype])
    copy = Shard(model.config, model.tokenizer).to(DTYPES[dtype])
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def _transformer_lens(shard: Shard, folder: Path) -> Home:
    from shardscope.lens.bridge import to_transformer_lens

    bridge = to_transformer_lens(shard)
    return Home(
        "TransformerLens",
        lambda tokens: bridge(tokens, prepend_bos=False),
        lambda tokens, n: bridge.generate(  # type: ignore[arg-type, return-value]
            tokens, max_new_tokens=n, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
        ),
    )


def _transformers(shard: Shard, folder: Path) -> Home:
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    return Home(
        "transformers",
        lambda tokens: stock(tokens).logits,
        lambda tokens, n: stock.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n, do_sample=False, eos_token_id=None
        ),
    )
