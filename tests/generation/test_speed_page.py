from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardscope.bench.decode import table

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["decode-cpu", "decode-cpu-nano", "decode-h200"])
def test_the_table_in_the_docs_is_the_one_that_the_json_gives(name: str) -> None:
    page = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    report = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    rows = "\n".join(table(report).splitlines()[2:])
    assert f"<!-- {name} -->\n{rows}\n<!-- /{name} -->" in page
