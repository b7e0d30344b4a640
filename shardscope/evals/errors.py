"""What cannot be carried out is said in one sentence that names the request, in `lm_eval` as in Python."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lm_eval.api.instance import Instance

from shardscope.config import ConfigError
from shardscope.processes import ProcessError

R = TypeVar("R")


class HarnessError(ConfigError, SystemExit):
    """A request that cannot be carried out.

    It is a SystemExit, too: uncaught, as in the `lm_eval` command, it prints its sentence, not a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"error: {message}"


def or_one_sentence(exchange: Callable[..., R], *arguments: Any) -> R:
    """What `exchange` returns; when another process has ended, a HarnessError."""
    try:
        return exchange(*arguments)
    except ProcessError as error:
        raise HarnessError(str(error)) from None


@contextmanager
def naming(request: Instance, index: int) -> Iterator[None]:
    """Errors within get the document and the request that they are about."""
    try:
        yield
    except ConfigError as error:
        task = "" if request.task_name is None else f"task {request.task_name}, document {request.doc_id}, "
        shown = ", ".join(textwrap.shorten(repr(text), 60) for text in request.args if isinstance(text, str))
        raise HarnessError(f"{task}request {index if not task else request.idx} ({shown}): {error}") from None
