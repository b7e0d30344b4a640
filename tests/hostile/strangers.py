"""Reads files of strangers, each in a process of its own, and says how it ended and what it took.

Run as a program on a JSON list of [name, command line of `shardscope`]; prints a JSON object for each. It imports
everything once and forks, because importing takes longer than most attempts. It never computes anything itself.
The command `documents FILE` reads a corpus, and no more.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

ENDS = {0: "done", 1: "sentence", 2: "sentence"}  # what `main` returns, and the parser's own exit
CPU_SECONDS, WALL_SECONDS = 30, 300  # on a busy machine thirty seconds of work may take minutes


def attempt(words: list[str], folder: Path) -> dict[str, object]:
    """How the command ended: done, sentence, or what it said and should not have."""
    said = folder / "said.txt"
    child = os.fork()
    if not child:
        status = 99
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(WALL_SECONDS)
            with said.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            status = run(words)
        finally:
            os._exit(status)
    _, ended, used = os.wait4(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    text = said.read_text(errors="backslashreplace")
    how = ENDS.get(status, f"status {status}: {text[-600:]}")
    if how == "sentence":
        lines = text.strip().splitlines()
        if not lines or "error: " not in lines[-1] or len(lines[-1]) > 2000 or "Traceback" in text:
            how = f"no sentence: {text[-600:]}"
    # The child begins with the pages of its parent.
    return {"how": how, "megabytes": used.ru_maxrss // 1024, "seconds": round(used.ru_utime + used.ru_stime, 2)}


def run(words: list[str]) -> int:
    from shardscope.cli import main

    try:
        return read_documents(words[1]) if words[0] == "documents" else main(words)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 98
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def read_documents(path: str) -> int:
    from shardscope.config import ConfigError, Source
    from shardscope.data import ReadLog, documents

    try:
        for _ in documents(Source(name="s", path=path), ReadLog("fail")):
            pass
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def import_everything() -> None:
    import pandas
    import pyarrow.parquet
    import torch._dynamo  # a second's work, which the first hook asks for
    import transformers
    import zstandard

    import shardscope.cli.import_command
    import shardscope.cli.report_command
    import shardscope.train
    from shardscope.cli import main

    assert all((pandas, pyarrow, shardscope, torch, transformers, zstandard))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["--help"])


def main() -> None:
    import_everything()
    folder = Path(sys.argv[1])
    for name, words in json.loads(sys.stdin.read()):
        began = time.monotonic()
        ended = attempt(words, folder)
        print(json.dumps({"name": name, **ended, "wall": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
