"""Commands let OpenMP's threads wait briefly, before torch is loaded, unless somebody has chosen how they wait."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "shardscope": ["-c", "from shardscope.cli import main; main(['train', '--help'])"],
    "python -m shardscope.cli": ["-m", "shardscope.cli", "info", "--help"],
    "pretrain": ["-m", "shardscope.recipes.pretrain", "--help"],
    "anneal": ["-m", "shardscope.recipes.anneal", "--help"],
}


def spins(command: list[str], **chosen: str) -> str | None:
    """How often the library that torch brings looks before it sleeps, by its own word; None if it is another one."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = {**plain, "OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT), **chosen}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    return found[1] if found else None


@pytest.fixture(scope="module")
def unchanged() -> str:
    found = spins(["-c", "import torch"])
    if found is None:
        pytest.skip("PyTorch does not use GNU OpenMP here")
    return found


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_waits_briefly(command: list[str], unchanged: str) -> None:
    assert spins(command) == "1000" != unchanged


@pytest.mark.parametrize("chosen", [{"GOMP_SPINCOUNT": "77"}, {"OMP_WAIT_POLICY": "ACTIVE"}], ids=str)
def test_what_a_user_has_chosen_stays(chosen: dict[str, str], unchanged: str) -> None:
    plain = spins(["-c", "import torch"], **chosen)
    assert plain not in ("1000", None)
    assert spins(COMMANDS["pretrain"], **chosen) == plain


def test_a_library_leaves_the_environment_of_its_user_alone() -> None:
    code = "import os, shardscope; shardscope.load; from shardscope.recipes import pretrain; print(dict(os.environ))"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    shown = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True).stdout
    assert "GOMP_" not in shown


def test_the_name_and_the_help_of_the_command_need_no_torch() -> None:
    for word in ("--version", "--help"):
        code = (
            f"import sys\nfrom shardscope.cli import main\ntry:\n    main([{word!r}])\nexcept SystemExit:\n    pass\n"
        )
        code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
