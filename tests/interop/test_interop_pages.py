"""The pages about other libraries: every Python block and every command runs as it is written there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from shardscope import Shard
from shardscope.checkpoint import checkpoint_folder, save_checkpoint
from shardscope.cli import main

pytest.importorskip("transformer_lens")

PAGES = sorted((Path(__file__).parents[2] / "docs" / "interop").glob("*.md"))


@pytest.fixture
def workplace(trained_model: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run and the published file that the pages speak of."""
    c = trained_model.config
    save_checkpoint(checkpoint_folder(tmp_path / "runs" / "shard-pico-anneal", 200), trained_model)
    (tmp_path / "models").mkdir()
    values = {
        **{"vocab_size": c.vocab_size, "dim": c.d_model, "n_layers": c.n_layers, "n_heads": c.n_heads},
        **{"mlp_hidden": c.d_mlp, "max_seq_len": c.n_ctx, "sliding_window": c.window, "head_dim": c.d_head},
    }
    torch.save({"cfg": values, "model": trained_model.state_dict()}, tmp_path / "models" / "model.pt")
    assert trained_model.tokenizer is not None
    trained_model.tokenizer.save(tmp_path / "models" / "tokenizer.json")
    (tmp_path / "models" / "sample.txt").write_text("K7QZ2M9XB4WJ" * 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_written(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```(python|sh)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert {kind for kind, _ in blocks} >= {"python"}
    names: dict[str, object] = {}
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, page.name, "exec"), names)
            continue
        for line in code.splitlines():
            program, *words = shlex.split(line)
            assert program == "shardscope"
            assert main(words) == 0, capsys.readouterr().err


def test_there_is_a_page_for_each_library() -> None:
    assert [page.stem for page in PAGES] == ["original-file", "transformer-lens", "transformers"]
