"""The ten lines that a notebook begins with, as they are written in the README, natively and on a bridge."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from shardscope import Shard
from shardscope.failures import ORDER
from shardscope.generation import Generation

LINES = """
from shardscope import generate, label, load, read, score

model = load()
tokens = model.to_tokens("Once upon a time")
logits, cache = model.run_with_cache("Once upon a time")
found = cache["pattern", 3], cache["embed"], cache["blocks.3.attn.hook_z"], cache["pattern", -1]
there = ("pattern", 3) in cache, cache.get(("pattern", 3))
text = generate(model, "Once upon a time", max_new_tokens=40)
primary = label(text).primary
nats = score(model, "The capital of France is", [" Paris", " Rome"])
head = read(model, long_text).head(3, 1)
"""


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What the lines leave behind."""
    names: dict[str, object] = {"long_text": "Once upon a time there was a cat. " * 30}
    exec(LINES, names)
    return names


def test_the_lines_give_what_they_say(names: dict) -> None:
    model: Shard = names["model"]
    tokenizer = model.tokenizer
    assert tokenizer is not None
    assert names["tokens"].tolist() == [tokenizer.encode("Once upon a time", bos=True)]
    torch.testing.assert_close(names["logits"], model(names["tokens"]), rtol=1e-5, atol=1e-4)
    (pattern, embed, z, last), (there, got) = names["found"], names["there"]
    n, heads = names["tokens"].shape[1], model.config.n_heads
    assert pattern.shape == last.shape == (1, heads, n, n)
    assert embed.shape == (1, n, model.config.d_model)
    assert z.shape == (1, n, heads, model.config.d_head)
    assert torch.equal(last, names["cache"]["pattern", model.config.n_layers - 1])
    assert there
    assert torch.equal(got, pattern)
    text = names["text"]
    assert isinstance(text, Generation)
    assert text.prompt == "Once upon a time"
    assert text.tokenizer is tokenizer
    assert names["primary"] in (*ORDER, "no flag")
    paris, rome = names["nats"]
    assert paris < 0
    assert rome < 0


def test_the_lines_whose_names_are_transformer_lens_s_give_the_same_on_a_bridge(names: dict) -> None:
    pytest.importorskip("transformer_lens")
    from shardscope.interop import to_transformer_lens

    model: Shard = names["model"]
    bridge = to_transformer_lens(model)
    text = "Once upon a time"
    assert torch.equal(bridge.to_tokens(text), names["tokens"])
    logits, cache = bridge.run_with_cache(text)
    torch.testing.assert_close(logits, names["logits"], rtol=1e-5, atol=1e-4)
    for key in (("pattern", 3), "embed", "blocks.3.attn.hook_z", ("pattern", -1)):
        torch.testing.assert_close(cache[key], names["cache"][key], rtol=1e-5, atol=1e-4)
    written = bridge.generate(text, max_new_tokens=40, do_sample=False, return_type="tokens", verbose=False)
    done: Generation = names["text"]
    assert written[0, : done.tokens.shape[1]].tolist() == done.tokens[0].tolist()


def test_the_functions_are_functions_and_come_when_they_are_asked_for() -> None:
    code = (
        "import sys, shardscope; before = set(sys.modules);"
        "assert not {'shardscope.microscope', 'shardscope.failures', 'shardscope.generation'} & before, before;"
        "from shardscope import generate, label, read, score, stream;"
        "assert all(map(callable, (generate, label, read, score, stream, shardscope.generate)));"
        "assert 'generate' in dir(shardscope)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
    with pytest.raises(ImportError):
        exec("from shardscope import genrate", {})
