"""What storing a model in fewer bits does to its text: twenty greedy continuations, before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from shardscope.generation import SamplingConfig, generate
from shardscope.model import Shard
from shardscope.progress import progress_bar

if TYPE_CHECKING:
    from transformers import VaultGemmaForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENS = 32  # of each continuation
PROMPTS = (
    "Once upon a time, in a small village,",
    "The capital of France is",
    "Water boils when",
    "The first chapter begins with",
    "She opened the door and",
    "In the nineteenth century,",
    "The cell is the smallest unit of",
    "Plants need light because",
    "He said that he would",
    "The river runs through",
    "Question: What is 23 + 19? Answer:",
    "To compute 12 plus 7, we can",
    "Solve: 17 * 23 = ?",
    "Let x be a real number such that",
    "The sum of two even numbers is",
    "def fibonacci(n):",
    "import os",
    "class Stack:",
    "for i in range(10):",
    "# This function returns",
)


@dataclass(frozen=True)
class GreedyAgreement:
    """How many of `prompts` greedy texts of `tokens` tokens stayed the same, and in which dtype they were before."""

    same: int
    prompts: int
    tokens: int
    before: str

    def sentence(self, dtype: str) -> str:
        return (
            f"in {dtype} {self.same} of {self.prompts} prompts keep their greedy text of {self.tokens} tokens, "
            f"compared with {self.before}"
        )


@torch.no_grad()
def compare_greedy_texts(shard: Shard, narrow: VaultGemmaForCausalLM) -> GreedyAgreement:
    """Compare a Shard's greedy texts with those of its copy in fewer bits.

    The copy reads the Shard's own text once: it would write the same if each token is its likeliest after those before.
    """
    if shard.tokenizer is not None:
        prompts = [shard.tokenizer.encode(text, bos=True) for text in PROMPTS]
    else:
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(shard.config.vocab_size, (len(PROMPTS), 8), generator=generator).tolist()
    prompts = [prompt[: max(1, shard.config.n_ctx // 2)] for prompt in prompts]
    tokens = min(TOKENS, shard.config.n_ctx - max(map(len, prompts)))
    config = SamplingConfig(max_new_tokens=tokens, stop_at_eos=False)
    same = 0
    with progress_bar(desc="comparing greedy texts", total=len(prompts), unit="text") as bar:
        for prompt, written in zip(prompts, generate(shard, prompts, config), strict=True):
            text = torch.tensor([[*prompt, *written.ids]], device=narrow.device)
            with WideProducts():
                likeliest = narrow(text[:, :-1]).logits[0, len(prompt) - 1 :].argmax(dim=-1)
            same += bool(torch.equal(likeliest, text[0, len(prompt) :]))
            bar.update()
    return GreedyAgreement(same, len(prompts), tokens, str(shard.embed.W_E.dtype).removeprefix("torch."))


class WideProducts(TorchDispatchMode):
    """Products of bfloat16 matrices, summed in float32 and rounded once, as hardware for bfloat16 does it.

    torch's own way on a CPU without such hardware takes minutes for a thousand tokens of a shard-54m.
    """

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
