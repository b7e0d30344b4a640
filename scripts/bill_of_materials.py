"""Write sbom.json: every package that make installs, in CycloneDX's format, with licences and the hashes of its files.

    python -m scripts.bill_of_materials [--out sbom.json]

It asks no network: versions and hashes are those of requirements/test.txt, PyTorch's version that of constraints.txt,
licences those of docs/dependencies.md. The same files give the same bill.
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from scripts.dependencies import PAGE, ROOT, packages

PINNED = ("constraints.txt", "requirements/demo.txt", "requirements/test.txt")


def bill() -> dict[str, Any]:
    """A CycloneDX 1.6 document: Shardscope, its packages, and which of them it asks for itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (version,) = re.findall(r'__version__ = "(.+)"', (ROOT / "shardscope/__init__.py").read_text(encoding="utf-8"))
    about = component(project["name"], version, project["license"], [])
    versions = {normal(name): found for file in PINNED for name, found in packages(ROOT / file).items()}
    terms, hashes = licences(), hashes_of_files()
    parts = {
        name: component(name, found, terms.get(name, ""), hashes.get(name, []))
        for name, found in sorted(versions.items())
    }
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {normal(found[0]) for line in asked if (found := re.match(r"[\w.-]+", line))}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": about},
        "components": list(parts.values()),
        "dependencies": [
            {"ref": about["bom-ref"], "dependsOn": [parts[name]["bom-ref"] for name in sorted(names & parts.keys())]}
        ],
    }


def component(name: str, version: str, licence: str, hashes: list[str]) -> dict[str, Any]:
    """An entry of the bill; `hashes` are the SHA-256, in hex, of every file that its version was published as."""
    address = f"pkg:pypi/{name}@{version}"
    entry: dict[str, Any] = {"type": "library", "bom-ref": address, "name": name, "version": version, "purl": address}
    if licence:
        entry["licenses"] = [{"license": {"name": licence}}]
    if hashes:
        digests = [{"alg": "SHA-256", "content": digest} for digest in hashes]
        entry["externalReferences"] = [
            {"type": "distribution", "url": f"https://pypi.org/simple/{name}/", "hashes": digests}
        ]
    return entry


def licences() -> dict[str, str]:
    rows = re.findall(r"(?m)^\| ([\w.-]+) \| [^|]+ \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"))
    return {normal(name): terms for name, terms in rows}


def hashes_of_files() -> dict[str, list[str]]:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements/test.txt").read_text(encoding="utf-8"))
    return {normal(entry.partition("==")[0]): re.findall(r"sha256:([0-9a-f]{64})", entry) for entry in entries}


def normal(name: str) -> str:
    """The name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "sbom.json")
    arguments = parser.parse_args()
    found = bill()
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{arguments.out}: {len(found['components'])} packages")


if __name__ == "__main__":
    main()
