"""The document in a row: one of its fields, or a text that several fields are put into.

A source's `text` is the name of a field (`text`, or `meta.body` for a field in a field), or a text with fields in
braces, as in `Question: {question}\\nAnswer: {answer}` (`{{` is a brace). `{choices.text[answerKey]}` is, of the lists
that stand side by side in `choices`, the entry of `text` where another list has what `answerKey` holds: the text of the
right choice of a multiple-choice question. `*` is every text in the row, a line each.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from string import Formatter
from typing import Any

from shardscope.config import ConfigError, suggest

_PATH = re.compile(r"([^\[\]{}]+)(?:\[([^\[\]{}]+)\])?")


class FieldError(ValueError):
    """A row without the document; `details` say what the row has instead."""

    def __init__(self, problem: str, details: str = "") -> None:
        super().__init__(problem)
        self.problem, self.details = problem, details


class Template:
    """How a document is made of a row. Raises ConfigError for a text with wrong braces."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.every = text == "*"
        if "{" not in text and "}" not in text:
            self._parts: list[tuple[str, str | None]] = [("", text)]
            self.single = True
            return
        self.single = False
        try:
            parts = list(_Braces().parse(text))
        except ValueError as error:
            raise ConfigError(f"data.sources: text={text!r}: {error}; write a brace itself as {{{{ or }}}}") from None
        self._parts = [(before, field) for before, field, _, _ in parts]
        wrong = next((field for _, field in self._parts if field is not None and not _PATH.fullmatch(field)), None)
        if wrong is not None or all(field is None for _, field in self._parts):
            raise ConfigError(
                f"data.sources: text={text!r} names no field in {{{wrong or ''}}}; "
                "use {field}, {field.inner} or {field.inner[key]}"
            )

    def columns(self, names: Collection[str]) -> list[str]:
        """Which of a table's columns are read. Raises FieldError if one is missing."""
        if self.every:
            return list(names)
        wanted = [path for _, field in self._parts if field for path in _paths(field)]
        columns = []
        for path in wanted:
            column = path if path in names else path.partition(".")[0]
            if column not in names:
                raise FieldError(f"no field {column!r}", f"its fields: {', '.join(names)}{_near(column, names)}")
            columns.append(column)
        return sorted(set(columns))

    def document(self, row: Mapping[str, Any]) -> str:
        """The document in a row. Raises FieldError if the row lacks a field or it holds no text."""
        if self.every:
            return "\n".join(_texts(row))
        made = []
        for before, field in self._parts:
            made.append(before)
            if field is not None:
                made.append(_as_text(_value(row, field), field, single=self.single))
        return "".join(made)


class _Braces(Formatter):
    """`str.format`'s braces without its conversions and format specifications: a field's name is all there is."""

    def parse(self, format_string: Any) -> Any:
        for before, field, specification, conversion in super().parse(format_string):
            if specification or conversion:
                raise ValueError(f"{{{field}}} may not be followed by ! or :")
            yield before, field, specification, conversion


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, in its order."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _paths(field: str) -> list[str]:
    found = _PATH.fullmatch(field)
    return [path for path in found.groups() if path] if found else [field]


def _value(row: Mapping[str, Any], field: str) -> Any:
    path, *key = _paths(field)
    if not key:
        return _inner(row, path)
    outer, _, name = path.rpartition(".")
    return _chosen(_inner(row, outer) if outer else row, name, _inner(row, key[0]), field)


def _inner(row: Mapping[str, Any], path: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            has = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            near = _near(name, [str(key) for key in value]) if isinstance(value, Mapping) else ""
            raise FieldError(f"no field {path!r}", f"its fields: {has or 'none'}{near}")
        value = value[name]
    return value


def _near(name: str, names: Collection[str]) -> str:
    hint = suggest(name, names)
    return hint if "did you mean" in hint else ""


def _chosen(choices: Any, name: str, key: Any, field: str) -> Any:
    """The entry of the list `name` at the place where a list beside it has `key`; or of the dictionary that has it."""
    if isinstance(choices, Mapping) and isinstance(choices.get(name), list):
        for other, values in choices.items():
            if other != name and isinstance(values, list) and key in values[: len(choices[name])]:
                return choices[name][values.index(key)]
    elif isinstance(choices, list):
        for choice in choices:
            if isinstance(choice, Mapping) and name in choice and key in choice.values():
                return choice[name]
    raise FieldError(f"{field!r} finds no choice {key!r}")


def _as_text(value: Any, field: str, single: bool) -> str:
    if isinstance(value, str):
        return value
    if not single and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not single and isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    raise FieldError(f"{field!r} holds a {type(value).__name__}, not a string")
