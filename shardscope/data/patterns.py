"""The files and folders that a written path means, whatever stands in it.

A name comes before a pattern: where a file or folder is called `[v2]`, `a*b` or `{x,y}`, that is what is meant. What
names nothing is read as a shell would read it: `*`, `?`, `**` and `[…]` match names (Python's `glob`), `{a,b}` and
`{00..12}` stand for each of their alternatives, and a backslash makes the next character an ordinary one. What then
still names nothing is tried without the spaces around it, and with backslashes between folders, as Windows writes them.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from functools import cache
from pathlib import Path

from shardscope.config import ConfigError

log = logging.getLogger("shardscope.data")

_MOST_ALTERNATIVES = 10_000
_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")  # innermost ones that hold a choice


def named(path: str) -> list[Path]:
    """The files and folders that `path` names, sorted; none of them if it names nothing.

    Raises ConfigError if one of its alternatives in braces names nothing, or if there are more than ten thousand.
    """
    as_windows = path.replace("\\", "/") if path.strip("\\") else path
    for spelling in dict.fromkeys((path, path.strip(), as_windows)):
        if found := _matched("", _parts(spelling), exact=True):
            return sorted(found)
        if _BRACES.search(spelling):
            return sorted({place for one in _alternatives(spelling) for place in _required(one, path)})
    return []


def _parts(path: str) -> list[str]:
    return list(Path(path).parts) or ["."] * bool(path)


def _matched(before: str, parts: list[str], exact: bool) -> list[Path]:
    """What `parts` name below the pattern `before`, which holds no wildcard as long as it is `exact`."""
    if not parts:
        return []
    part, *rest = parts
    for form in _forms(part, exact):
        pattern = os.path.join(before, form)
        if rest:
            there = next(glob.iglob(pattern, recursive=True), None) is not None
            found = _matched(pattern, rest, exact and form == glob.escape(part)) if there else []
        else:
            found = [Path(name) for name in glob.glob(pattern, recursive=True)]
        if found:
            if form == glob.escape(part) and re.search(r"[*?]", part):
                _say_what_is_left_out(os.path.abspath(os.path.join(before, part)), os.path.abspath(pattern))
            return found
    return []


def _forms(part: str, exact: bool) -> list[str]:
    """The ways in which a part of a path may be meant, as patterns of `glob`, the likeliest first."""
    if part == "**" or not re.search(r"[*?[\\]", part):
        return [part]
    # Below a wildcard it would take a walk through the whole tree to find that nothing is called `*.jsonl`.
    name = [glob.escape(part)] if exact or "[" in part else []
    unescaped = re.sub(r"\\(.)", lambda found: glob.escape(found[1]), part)
    return list(dict.fromkeys([*name, part.replace("[", "[[]"), part, unescaped]))


def _alternatives(path: str) -> list[str]:
    """The paths that one with alternatives in braces stands for."""
    done: dict[str, None] = {}
    open_ones = [path]
    while open_ones:
        one = open_ones.pop()
        braces = _BRACES.search(one)
        if braces is None:
            done[one] = None
        else:
            open_ones += [f"{one[: braces.start()]}{word}{one[braces.end() :]}" for word in _words(braces[1], path)]
        if len(done) + len(open_ones) > _MOST_ALTERNATIVES:
            raise _too_many(path)
    return list(done)


def _words(inside: str, path: str) -> list[str]:
    """The alternatives inside a pair of braces: words between commas, or the numbers from one to another."""
    if "," in inside:
        return inside.split(",")
    first, last = inside.split("..")
    if max(len(first), len(last)) > 18 or abs(int(last) - int(first)) > _MOST_ALTERNATIVES:
        raise _too_many(path)
    step = 1 if int(first) <= int(last) else -1
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
    return [f"{number:0{width}}" for number in range(int(first), int(last) + step, step)]


def _too_many(path: str) -> ConfigError:
    return ConfigError(
        f"data.sources: path={path!r} stands for more than {_MOST_ALTERNATIVES:,} paths; use * where any name will do"
    )


def _required(one: str, path: str) -> list[Path]:
    found = _matched("", _parts(one), exact=True)
    if not found:
        raise ConfigError(f"data.sources: path={path!r} stands for {one!r} among others, and there is no such file")
    return found


@cache  # once is enough: a source is looked up several times before its first document is read
def _say_what_is_left_out(pattern: str, exact: str) -> None:
    others = len(set(glob.glob(pattern, recursive=True)) - set(glob.glob(exact, recursive=True)))
    if others:
        log.warning("%s is read as the one name that it is, not as a pattern; %d others match it", pattern, others)
