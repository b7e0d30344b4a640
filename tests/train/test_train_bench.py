from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shardscope.config import PRESETS, ConfigError
from shardscope.model import Shard
from shardscope.train import bench

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", [path.stem for path in sorted((DOCS / "benchmarks").glob("train-*.json"))])
def test_the_table_in_the_docs_is_the_one_that_the_json_gives(name: str) -> None:
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    report = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    assert f"<!-- {name} -->\n{bench.table(report)}\n<!-- /{name} -->" in page


def test_stripping_the_hooks_changes_nothing_but_the_hooks() -> None:
    torch.manual_seed(0)
    model, ids = Shard(PRESETS["shard-pico"]).eval(), torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids)
        bench.strip_hooks(model)
        torch.testing.assert_close(model(ids), before)
    assert not any(isinstance(module, bench.HookPoint) for module in model.modules())


def test_a_length_that_does_not_fit_is_refused_in_one_sentence() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(ConfigError, match="--seq-len 4096 does not fit: shard-pico reads at most 512 tokens"):
        bench.run(parser.parse_args(["--device", "cpu", "--model", "shard-pico", "--seq-len", "4096"]))


def test_a_made_up_language_has_one_successor_for_a_token_nine_times_in_ten() -> None:
    tokens = bench.language(50, 8, 500, seed=1).tokens
    follows = torch.zeros(50, 50)
    follows.index_put_((tokens[:, :-1].flatten(), tokens[:, 1:].flatten()), torch.ones(8 * 500), accumulate=True)
    share = follows.max(dim=1).values.sum() / follows.sum()
    assert 0.87 < share < 0.95
