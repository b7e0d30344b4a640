"""Write requirements/demo.txt and requirements/test.txt: every package that make installs, with the hash of every file
that the registry has of its version, so that any platform and any Python from 3.11 on finds its own.

    pip install uv && python scripts/lock.py

Versions come from constraints.txt. PyTorch and what only its GPU builds need are left out: their builds differ by index
(TORCH_INDEX), so make pins their versions by constraints.txt and takes the hashes of the index that was asked.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILDS = ("hatchling", "editables", "pip")  # what the editable installation itself takes
BY_INDEX = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
# Of Pythons that PyTorch does not exist for.
ELSEWHERE = re.compile(r"[^\n]*(implementation_name == 'pypy'|and sys_platform == 'emscripten')")
GROUPS = {"demo": ["--extra", "app"], "test": ["--extra", "all", "--group", "dev"]}


def compiled(*choice: str) -> str:
    """Every package with its hashes, as uv resolves it for all platforms at once."""
    uv = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "-", *choice]
    uv += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header"]
    uv += ["--constraint", "constraints.txt"]
    done = subprocess.run(uv, cwd=ROOT, input="\n".join(BUILDS), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def main() -> None:
    for name, choice in GROUPS.items():
        packages = re.split(r"\n(?=\S)", compiled(*choice).strip())
        kept = [package for package in packages if not BY_INDEX.match(package) and not ELSEWHERE.match(package)]
        file = ROOT / "requirements" / f"{name}.txt"
        file.write_text("# Written by scripts/lock.py.\n" + "\n".join(kept) + "\n", encoding="utf-8")
        print(f"{file.relative_to(ROOT)}: {len(kept)} packages")


if __name__ == "__main__":
    main()
