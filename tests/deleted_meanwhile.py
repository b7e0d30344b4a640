"""A run that saves its next checkpoint and deletes the one before, while somebody reads it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

Answer = TypeVar("Answer")
QUESTIONS = ((Path, "exists"), (Path, "stat"), (Path, "open"), (os.path, "lexists"))


def at_every_question(only: Path, successor: Path, ask: Callable[[], Answer]) -> Iterator[Answer]:
    """What `ask()` gives if a run replaces its checkpoint `only` by `successor`, which lies elsewhere, in between.

    First before the first question about `only` or what is in it, then before the second, and so on to the last.
    """
    deleted, there = successor.with_name("deleted"), only.with_name(successor.name)
    for moment in count(1):
        replace = _Replacing(only, moment, lambda: (shutil.copytree(successor, there), os.rename(only, deleted)))
        with ExitStack() as patches:
            for where, name in QUESTIONS:
                patches.enter_context(mock.patch.object(where, name, replace.before(getattr(where, name))))
            answer = ask()
        if not deleted.exists():
            return
        shutil.rmtree(there)
        os.rename(deleted, only)
        yield answer


class _Replacing:
    """Counts the questions below a folder, and acts before the one of a number."""

    def __init__(self, folder: Path, moment: int, act: Callable[[], object]) -> None:
        self.folder, self.moment, self.act, self.asked = folder, moment, act, 0

    def before(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def question(path: Any, *more: Any, **settings: Any) -> Any:
            if Path(path).is_relative_to(self.folder):
                self.asked += 1
                if self.asked == self.moment:
                    self.act()
            return original(path, *more, **settings)

        return question
