"""What make installs: exact versions with the hashes of all their files, and licences that are known."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

from scripts import bill_of_materials
from scripts.dependencies import licence

ROOT = Path(__file__).parents[1]
TORCH = {
    "torch",
    "triton",
}  # their builds differ by index; their versions are pinned in constraints.txt and the Makefile


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name: str) -> dict[str, tuple[str, str]]:
    """Package to (version, the rest of its entry) in requirements/NAME.txt."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.findall(r"(?m)^([\w.-]+)==([^\s;\\]+)((?:.*\\\n)*.*)", text)
    assert len(entries) > 30
    return {normal(package): (version, rest) for package, version, rest in entries}


def constraints() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return {normal(package): version for package, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", text)}


@pytest.mark.parametrize("name", ["demo", "test"])
def test_every_package_is_locked_by_version_and_hash(name: str) -> None:
    pinned = constraints()
    for package, (version, rest) in locked(name).items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", rest), package
        assert pinned.get(package, version) == version, f"{package}: run `python scripts/lock.py`"
    assert not TORCH & locked(name).keys()


def test_what_the_project_asks_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    core = project["project"]["dependencies"]
    everything = [*core, *(line for name in ("interop", "eval", "app", "data") for line in extras[name])]
    for name, asked in (
        ("demo", [*core, *extras["app"]]),
        ("test", [*everything, *project["dependency-groups"]["dev"]]),
    ):
        wanted = {normal(re.match(r"[\w.-]+", line)[0]) for line in asked}  # type: ignore[index]
        missing = wanted - locked(name).keys() - TORCH
        assert not missing, f"requirements/{name}.txt lacks {sorted(missing)}; run `python scripts/lock.py`"
    assert locked("demo").keys() <= locked("test").keys()


def test_the_page_of_dependencies_names_each_with_its_licence() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = {
        normal(name): (version, terms)
        for name, version, terms in re.findall(r"(?m)^\| (\S+) \| (\S+) \| (.+?) \|", page)
    }
    for package, (version, _) in locked("test").items():
        assert rows[package][0] == version, f"{package}: run `python scripts/dependencies.py`"
        assert not rows[package][1].startswith("not "), package
    # A copyleft that would reach what imports it is none of them.
    strict = [name for name, (_, terms) in rows.items() if re.search(r"\b(AGPL|GPL|GNU General)", terms)]
    assert strict == []


def test_the_licences_are_those_that_the_installed_packages_state() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (\S+) \| (\S+) \| (.+?) \|", page)
    looked_at = 0
    for name, stated, terms in rows:
        try:
            about = metadata(name)
        except PackageNotFoundError:  # of another platform
            continue
        if about["Version"] == stated:
            looked_at += 1
            assert licence(about) == terms, f"{name}: run `python scripts/dependencies.py`"
    assert looked_at > 30


def test_an_audit_that_could_not_ask_is_no_clean_one() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (audit,) = re.findall(r"pip-audit (--.*)", makefile)
    assert {"--strict", "--require-hashes"} <= set(audit.split())
    assert (ROOT / audit.split()[-1]).is_file()


def test_the_bill_of_materials_names_every_package_with_version_licence_and_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"(?m)^audit:.*\n(?:\t.*\n)*?\t.*-m scripts\.bill_of_materials", makefile)
    monkeypatch.setattr("sys.argv", ["bill_of_materials.py", "--out", str(tmp_path / "sbom.json")])
    bill_of_materials.main()
    bill = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    parts = {part["name"]: part for part in bill["components"]}
    pinned = {**constraints(), **{name: version for name, (version, _) in locked("test").items()}}
    assert {name: part["version"] for name, part in parts.items()} == pinned
    for name, (_, rest) in locked("test").items():
        (published,) = parts[name]["externalReferences"]
        assert {digest["content"] for digest in published["hashes"]} == set(re.findall(r"sha256:(\w+)", rest)), name
    assert all(part["licenses"][0]["license"]["name"] for part in parts.values())
    named = {part["bom-ref"]: part["name"] for part in parts.values()}
    (ours,) = bill["dependencies"]
    core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    asked = {normal(re.match(r"[\w.-]+", line)[0]) for line in core}  # type: ignore[index]
    assert asked <= {named[part] for part in ours["dependsOn"]}
