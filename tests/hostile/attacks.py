"""What is tried against Shardscope, and the figures of it: docs/reliability.json and the table of docs/reliability.md.

    python tests/hostile/attacks.py     writes the table of the page from the figures

A test counts its tries with the fixture `attack`. With SHARDSCOPE_FIGURES=FILE they are written there, an entry for
each attack; attacks that were not run keep the entry that they have.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock  # which PyTorch depends on

from shardscope.config import ConfigError
from shardscope.files import write_json, write_text

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made by tests/hostile/attacks.py -->\n", "<!-- end -->\n"
LONGEST_SENTENCE = 2000

PLANTED = "pickles, nests, pipes, endless and foreign files in the place"
# Name: what is attacked, how, and what an attempt has to end in to count as unharmed.
ATTACKS = {
    "kills_at_changes": ("a training run", "SIGKILL at each change of a file, and once more while it starts again"),
    "kills_at_calls": ("a training run", "SIGKILL at a random system call that changes a file (strace), twice"),
    "kills_at_moments": ("a training run", "SIGKILL at random moments, up to three times"),
    "signals": ("a training run", "SIGTERM or SIGINT at a random moment, half of them followed by a second"),
    "full_disk": ("a training run", "no room on the disk from each change of a file on"),
    "small_disks": ("a training run", "a disk of 4 kB to 1 MB, which then grows"),
    "read_only": ("a training run", "a file system that is read-only from each change of a file on"),
    "two_trainers": ("a training run", "two processes that train in one folder"),
    "forks_of_a_run_that_deletes": ("a training run", "anneals from a run that deletes its old checkpoints meanwhile"),
    "evaluations_at_calls": ("an evaluation", "SIGKILL at a call of the model"),
    "evaluations_at_moments": ("an evaluation", "SIGKILL at moments from its first call of the model to its end"),
    "evaluations_of_two": ("an evaluation", "SIGKILL of one of two processes at a call of the model"),
    "flips": ("a checkpoint", "a bit flipped, in each of its files"),
    "cuts": ("a checkpoint", "a file cut short, lengthened, or gone"),
    "lost_blocks": ("a checkpoint", "512 or 4096 bytes replaced by zeros, or by those of another place"),
    "mixed_files": ("a checkpoint", "a file of another checkpoint in its place"),
    "rotten_tokens": ("a cache of tokens", "a bit flipped or a file cut short, in each of its files"),
    "planted_in_checkpoints": ("what commands read", f"{PLANTED} of a checkpoint's files"),
    "planted_in_runs": ("what commands read", f"{PLANTED} of a run's recipe or log"),
    "planted_in_inputs": ("what commands read", f"{PLANTED} of a recipe, a corpus or a prompt"),
    "planted_in_imports": ("what commands read", f"{PLANTED} of what is imported"),
    "bombs": ("corpora", "archives of gigabytes of NULs, line ends, brackets or one line, in every format"),
    "forged_parquet": ("corpora", "Parquet files whose metadata lies about their pages, rows or sizes"),
    "hostile_headers": ("tensors", "safetensors headers that promise what the file has not"),
    "hostile_pickles": ("the original format", "pickles that would run code, by every instruction that calls"),
    "numbers": ("generating", "prompts at the ends of the context, odd ids, extreme temperatures, cuts and penalties"),
    "scores": ("scoring", "contexts and continuations at the ends of the context, empty, or of odd ids"),
    "addresses": ("the explorer", "odd values for random choices of an address, on all five pages"),
    "sessions": ("the explorer", "20 browser sessions at once that change views; a try is a change of one of them"),
    "fuzzed": ("every entry point", "inputs grown by a coverage-guided fuzzer (atheris)"),
}


@dataclass
class Count:
    """How the tries of one attack ended."""

    tried: int = 0
    unharmed: int = 0  # the result was that of an undisturbed run, or of a harmless input
    refused: int = 0  # one sentence said what is wrong
    lost: list[str] = field(default_factory=list)  # anything else
    measured: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def attempt(self, case: str) -> Iterator[None]:
        """One try, which is unharmed if the block ends well and refused if it raises one sentence."""
        self.tried += 1
        try:
            yield
        except ConfigError as error:
            sentence = str(error)
            if "\n" in sentence or not 0 < len(sentence) < LONGEST_SENTENCE:
                self.lost.append(f"{case}: not one sentence: {sentence[:300]}")
            else:
                self.refused += 1
        except Exception as error:
            self.lost.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
        else:
            self.unharmed += 1

    def add(self, tried: int, refused: int, lost: list[str]) -> None:
        """Tries that another program counted."""
        self.tried += tried
        self.refused += refused
        self.unharmed += tried - refused - len(lost)
        self.lost += lost


def record(file: Path, counts: dict[str, Count], seconds: float) -> None:
    """Write the figures of these attacks into `file`, among those of others. Several processes may do so at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for name, count in counts.items():
            what, how = ATTACKS[name]
            figures[name] = {
                "attacked": what, "by": how, "tried": count.tried, "unharmed": count.unharmed, "refused": count.refused,
                "lost": count.lost, **count.measured, "seconds": round(seconds), "date": time.strftime("%Y-%m-%d"),
                "python": platform.python_version(), "torch": torch.__version__,
            }  # fmt: skip
        write_json(file, {name: figures[name] for name in ATTACKS if name in figures})


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The table of the page, in Markdown."""
    lines = ["| attacked | by | tried | unharmed | refused | lost |", "|---|---|--:|--:|--:|--:|"]
    for name, (what, how) in ATTACKS.items():
        one = figures.get(name)
        numbers = [one["tried"], one["unharmed"], one["refused"], len(one["lost"])] if one else []
        lines.append(f"| {what} | {how} | {' | '.join(f'{n:,}' for n in numbers) or 'not run yet | | | '} |")
    total = [sum(one[key] for one in figures.values()) for key in ("tried", "unharmed", "refused")]
    lost = sum(len(one["lost"]) for one in figures.values())
    lines.append(f"| **all** | | {' | '.join(f'**{n:,}**' for n in (*total, lost))} |")
    return "\n".join(lines) + "\n"


def page_with(text: str, figures: dict[str, dict[str, Any]]) -> str:
    """The page with the table of these figures."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table(figures)}{END}{after}"


if __name__ == "__main__":
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    write_text(PAGE, page_with(PAGE.read_text(encoding="utf-8"), figures))
