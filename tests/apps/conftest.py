"""Puts the repository on the path (`apps` is run from a checkout, not installed); pages in a browser, a run on them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import browser
import pytest
import server
import torch
from small_run import make_run, with_markup

from shardscope import Shard, ShardConfig, load
from shardscope.checkpoint import save_checkpoint
from shardscope.generation import Generation, generate
from shardscope.tokenizer import Tokenizer

if TYPE_CHECKING:  # playwright is an extra: the other tests of this folder run without it
    from driving import Watch

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture
def tiny_run(tmp_path: Path, tiny_config: ShardConfig, tiny_tokenizer: Tokenizer) -> Path:
    return make_run(tmp_path / "runs" / "tiny-run", tiny_config, tiny_tokenizer)


@pytest.fixture(scope="module")
def large(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 12 × 8 sharp heads, beside the run and older than it."""
    torch.manual_seed(0)
    config = ShardConfig(vocab_size=300, n_ctx=1400, d_model=32, n_layers=12, n_heads=8, d_head=8, d_mlp=8, window=400)
    model = Shard(config, tiny_tokenizer)
    with torch.no_grad():
        model.embed.W_E.mul_(20)
        for block in model.blocks:
            block.attn.W_Q.mul_(3)
    return save_checkpoint(tmp_path_factory.mktemp("explorer") / "runs" / "large", model)


@pytest.fixture(scope="module")
def run(large: Path, tiny_tokenizer: Tokenizer) -> Path:
    """A run of two checkpoints: small and random, with a window that a prompt leaves."""
    from driving import WINDOW

    config = ShardConfig(
        vocab_size=300, n_ctx=320, d_model=32, n_layers=4, n_heads=4, d_head=8, d_mlp=48, window=WINDOW
    )
    folder = large.parents[1]
    tokenizer = with_markup(tiny_tokenizer, folder / "tokenizer.json")
    return make_run(folder / "runs" / "tiny-run", config, tokenizer)


@pytest.fixture(scope="module")
def model(run: Path) -> Shard:
    return load(run)


@pytest.fixture(scope="module")
def written(model: Shard) -> Generation:
    from driving import PROMPT, SAMPLING

    return generate(model, PROMPT, SAMPLING)


@pytest.fixture(scope="module")
def ids(written: Generation) -> torch.Tensor:
    """What the pages look at: the prompt and its continuation."""
    return torch.tensor([*written.prompt_ids, *written.ids])


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    log = run.parents[1] / "server.log"
    with server.explorer(run.parent, log=log) as address:
        yield address
    said = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
    # A page that is closed while its socket opens is a traceback of the web server's, and no error of the explorer's.
    gone = re.findall(r"^\s*starlette\.websockets\.WebSocketDisconnected:", said, re.MULTILINE)
    assert said.count("Traceback") == len(gone), said[said.find("Traceback") :][-4000:]


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    from playwright import sync_api

    try:
        with sync_api.sync_playwright() as playwright, browser.headless(playwright) as chromium:
            yield chromium
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="module")
def window(chromium) -> Iterator[object]:
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    yield context
    context.close()


@pytest.fixture
def watch() -> Watch:
    from driving import Watch

    return Watch()


@pytest.fixture
def page(window, watch: Watch) -> Iterator[object]:
    page = window.new_page()
    page.set_default_timeout(60_000)
    watch.over(page)
    yield page
    shown_errors = page.locator("[data-testid=stException]").count()
    page.close()
    assert watch.errors == []
    assert watch.hosts == {"localhost"}
    assert shown_errors == 0
