"""The page about hooks: its cell runs as written, and what it says of TransformerLens holds on a bridge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shardscope import Shard

PAGE = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text(encoding="utf-8")
SAME = re.findall(r"^\| `(.+)` \| same \|$", PAGE, re.MULTILINE)


def test_the_cell_runs_as_written() -> None:
    (cell,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(cell, "hooks.md", "exec"), names)
    assert names["model"].blocks[0].attn.W_Q.grad is not None


def halve(z: Tensor, hook: object) -> Tensor:
    return z * 0.5


@pytest.fixture(scope="module")
def pair(trained_config: Any, trained_weights: Any, tiny_tokenizer: Any) -> list[dict[str, Any]]:
    """What the lines of the table may name: for a Shard, and for a bridge over the same weights."""
    pytest.importorskip("transformer_lens")
    from shardscope.interop import to_transformer_lens

    model = Shard(trained_config, tiny_tokenizer)
    model.load_state_dict(trained_weights)
    bridge = to_transformer_lens(model.eval())
    bridge.set_use_attn_result(True)
    text = "K7Q2M9X4K7Q2M9X4"
    shared = {"text": text, "halve": halve}
    return [{"model": m, "cache": m.run_with_cache(text)[1], **shared} for m in (model, bridge)]


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, tuple):
        return all(same(*parts) for parts in zip(ours, theirs, strict=True))
    if not isinstance(theirs, Tensor):
        return bool(ours == theirs)
    bound = 1e-4 * theirs.abs().amax() + 1e-6
    return ours.shape == theirs.shape and bool(((ours - theirs).abs() <= bound).all())


@pytest.mark.parametrize("line", SAME)
def test_a_line_that_is_the_same_gives_the_same_on_a_bridge(pair: list[dict[str, Any]], line: str) -> None:
    ours, theirs = (eval(line, names) for names in pair)
    assert same(ours, theirs)


def test_what_is_said_to_differ_differs_as_it_says(pair: list[dict[str, Any]]) -> None:
    from shardscope.model import PromptError

    assert len(SAME) > 25
    model, bridge = (names["model"] for names in pair)
    with pytest.raises(PromptError, match="do not fit"):
        model("a" * 2000)
    assert bridge("a" * 2000).shape[1] == model.to_tokens("a" * 2000).shape[1] == model.config.n_ctx
    assert not torch.isfinite(pair[0]["cache"]["attn_scores", 0]).all()
    assert torch.isfinite(pair[1]["cache"]["attn_scores", 0]).all()
