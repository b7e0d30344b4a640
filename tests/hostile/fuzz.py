"""Coverage-guided fuzzing of the entry points in targets.py: `make fuzz SECONDS=28800` for a night.

    pip install atheris && python tests/hostile/fuzz.py --seconds 600 [--target NAME ...] [--corpus FOLDER]

Each target runs in a process of its own for its share of the time; what it found lies in FOLDER (default runs/fuzz) and
is where the next night begins. Prints how many inputs were tried. An input that breaks a target is written to
FOLDER/NAME/crash-…, and the exit status is 1: correct the target, and put the input into tests/hostile/test_fuzz.py.
With SHARDSCOPE_FIGURES=FILE the executions are added to those that FILE has of earlier nights.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # elsewhere only after the imports that are watched for coverage
    from attacks import Count

HERE = Path(__file__).parent


def one(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["shardscope", "apps"]):
        import targets
    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds()[name]):
        (folder / f"seed-{number}").write_bytes(seed)
    options = ["-print_final_stats=1", f"-max_total_time={seconds}", f"-max_len={targets.LONGEST}", "-timeout=60"]
    options += ["-rss_limit_mb=4096", "-verbosity=0", f"-artifact_prefix={folder}/", str(folder)]
    atheris.Setup([sys.argv[0], *options], lambda data: targets.run(name, data))
    atheris.Fuzz()


def add_earlier_nights(count: Count, file: Path) -> float:
    """Add the executions that `file` has; the seconds they took. What broke a target then is a regression test now."""
    earlier = json.loads(file.read_text(encoding="utf-8")).get("fuzzed") if file.exists() else None
    if earlier is None:
        return 0.0
    executions = count.measured["executions"]
    for name, number in earlier["executions"].items():
        executions[name] = executions.get(name, 0) + number
    count.add(sum(earlier["executions"].values()), 0, [])
    return float(earlier["seconds"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="of all targets together")
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument("--corpus", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--only-here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_here:
        one(arguments.target[0], arguments.seconds, arguments.corpus)
        return 0
    import targets
    from attacks import Count, record

    count, began, names = Count(), time.monotonic(), arguments.target or list(targets.TARGETS)
    count.measured["executions"] = {}
    for name in names:
        words = [sys.executable, __file__, "--only-here", "--target", name, "--corpus", str(arguments.corpus)]
        words += ["--seconds", str(max(1, arguments.seconds // len(names)))]
        paths = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        # libFuzzer ends its process without its exit handlers: what was written there is removed here.
        with tempfile.TemporaryDirectory(prefix="shardscope-fuzz-", dir=targets.MEMORY) as scratch:
            done = subprocess.run(
                words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", targets.SCRATCH: scratch},
            )  # fmt: skip
        found = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stdout)
        executions = int(found[1]) if found else 0
        lost = []
        if done.returncode:
            said = [
                line
                for line in done.stdout.splitlines()
                if re.match(r"\w*(Error|Exception)\b|==\d+== ERROR|ALARM", line)
            ]
            lost.append(f"{name}: {'; '.join(said[:3])[:500] or done.stdout[-500:]}")
        count.add(max(executions, len(lost)), 0, lost)
        count.measured["executions"][name] = executions
        print(f"{name:24} {executions:>12,} executions  {lost[0] if lost else 'held'}", flush=True)
    print(f"{count.tried:,} executions in {time.monotonic() - began:,.0f} s")
    if file := os.environ.get("SHARDSCOPE_FIGURES"):
        seconds = time.monotonic() - began + add_earlier_nights(count, Path(file))
        record(Path(file), {"fuzzed": count}, seconds)
    return 1 if count.lost else 0


if __name__ == "__main__":
    sys.exit(main())
