"""The tables of decoding speed in docs/evaluation.md are those of the benchmarks' files.

After a benchmark, `python tests/generation/test_speed_page.py` writes its table and its command into the page.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shardscope.bench.decode import table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "evaluation.md"
NAMES = ("decode-cpu", "decode-cpu-nano", "decode-h200", "decode-h100")


def filled(page: str, name: str) -> str:
    """The page with this benchmark's command and table."""
    report = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    rows = "\n".join(table(report).splitlines()[2:])
    if "--out" in report["command"]:
        page = re.sub(rf"(?m)^    shardscope bench decode .*/{name}\.json$", f"    {report['command']}", page)
    return re.sub(rf"(?s)(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", lambda _: rows, page)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_in_the_docs_is_the_one_that_the_json_gives(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(f"<!-- {name} -->") == page.count(f"<!-- /{name} -->") == 1
    assert filled(page, name) == page


if __name__ == "__main__":
    for name in NAMES:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), name), encoding="utf-8")
