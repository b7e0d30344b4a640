"""Write docs/dependencies.md: every package that make installs, with its licence as its metadata states it.

    python scripts/dependencies.py

A package that this machine does not need, such as those for Windows, keeps the licence that the page has.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
INTRODUCTION = """# Dependencies and their licences

What `make demo` (marked) and `make test` install, by the hashes in `requirements/`, and PyTorch. Shardscope imports
these packages and ships none of them. Written by `python scripts/dependencies.py`; `make audit` asks for known
vulnerabilities in them (pip-audit) and writes a bill of materials in CycloneDX's format, `sbom.json`.
"""


def packages(file: Path) -> dict[str, str]:
    """Name to version of every package in a file of requirements."""
    return dict(re.findall(r"(?m)^([\w.-]+)==([^\s;\\]+)", file.read_text(encoding="utf-8")))


def licence(about: PackageMetadata) -> str:
    """What a package says: an SPDX expression, else its classifiers, else the first line of its licence field."""
    if expression := about.get("License-Expression"):
        return str(expression)
    classified = [
        words.rpartition(" :: ")[2] for words in about.get_all("Classifier") or [] if words.startswith("License")
    ]
    named = [words for words in classified if words != "OSI Approved"]
    first_line = str(about.get("License") or "").strip().partition("\n")[0]
    return ", ".join(sorted(set(named))) or first_line[:60] or "not stated in its metadata"


def table(known: dict[str, str]) -> str:
    demo, everything = (packages(ROOT / "requirements" / f"{name}.txt") for name in ("demo", "test"))
    torch = packages(ROOT / "constraints.txt")["torch"]
    lines = ["| package | version | licence | demo |", "|---|---|---|---|"]
    for name, version in sorted({**everything, "torch": torch}.items()):
        try:
            terms = licence(metadata(name))
        except PackageNotFoundError:
            terms = known.get(name, "not looked up: no package of this machine")
        lines.append(f"| {name} | {version} | {terms} | {'yes' if name in demo or name == 'torch' else ''} |")
    return "\n".join(lines)


def main() -> None:
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    known = dict(re.findall(r"(?m)^\| ([\w.-]+) \| [^|]+ \| ([^|]+) \|", before))
    PAGE.write_text(f"{INTRODUCTION}\n{table(known)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
