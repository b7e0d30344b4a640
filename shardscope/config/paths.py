"""Paths as people write them."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from shardscope.config.errors import require


def require_no_control_characters(field_name: str, path: str) -> None:
    require(
        not re.search(r"[\x00-\x1f\x7f]", path),
        f"{field_name}={path!r} holds a control character; TOML reads \\t and \\n in double quotes as tab and newline, "
        "so write a path with backslashes in 'single quotes'",
    )


def user_path(text: str, field_name: str) -> Path:
    """The path that a person wrote, `~` and $VARIABLES replaced; `~x` and `$x` that are no such thing may be names.

    Raises ConfigError where they are neither.
    """
    expanded = os.path.expandvars(text)
    require("\0" not in expanded, f"{field_name}={text!r} holds a NUL, which no file name can")
    unset = re.search(r"\$(\w+|\{\w+\})[^/]*", expanded)
    require(
        unset is None or _exists(expanded[: unset.end()]),
        f"{field_name}={text!r} needs an environment variable that is not set; export it, or write the folder itself",
    )
    try:
        return Path(expanded).expanduser()
    except RuntimeError:
        home = expanded.partition("/")[0]
        require(
            _exists(home),
            f"{field_name}={text!r}: this machine knows no home folder {home!r}; write the folder itself",
        )
        return Path(expanded)


def _exists(path: str) -> bool:
    return os.path.lexists(path) or next(glob.iglob(path), None) is not None
