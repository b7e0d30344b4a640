"""Paths as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from shardscope.config.errors import ConfigError, require


def require_no_control_characters(field_name: str, path: str) -> None:
    require(
        not re.search(r"[\x00-\x1f\x7f]", path),
        f"{field_name}={path!r} holds a control character; TOML reads \\t and \\n in double quotes as tab and newline, "
        "so write a path with backslashes in 'single quotes'",
    )


def user_path(text: str, field_name: str) -> Path:
    """The path that a person wrote, `~` and $VARIABLES replaced. Raises ConfigError where they mean nothing here."""
    expanded = os.path.expandvars(text)
    require(
        not re.search(r"\$(\w+|\{\w+\})", expanded) or os.path.exists(expanded),
        f"{field_name}={text!r} needs an environment variable that is not set; export it, or write the folder itself",
    )
    require("\0" not in expanded, f"{field_name}={text!r} holds a NUL, which no file name can")
    try:
        return Path(expanded).expanduser()
    except RuntimeError:
        home = expanded.partition("/")[0]
        raise ConfigError(
            f"{field_name}={text!r}: this machine knows no home folder {home!r}; write the folder itself"
        ) from None
