"""Corpora that every machine has: the Python standard library's documentation and sources, and generated arithmetic.

Nothing is imported or run: sources are read as text and parsed. The order of the documents is that of module names.
"""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from shardscope.config import ConfigError
from shardscope.data.arithmetic import problems
from shardscope.data.files import ReadLog, is_unicode

VERSION = 2  # raise when the text of a built-in corpus changes, so that no stale token shard is used
BUILTINS = ("prose", "code", "qa", "arithmetic")
ARITHMETIC_DOCUMENTS = 40_000

_SHORTEST_PROSE = 200  # characters of a document worth having
_FEWEST_MODULES = 50
# Tests, installed packages, tables of character codes, and data that only looks like code.
_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "encodings",
    "__pycache__",
    "_bundled",
}
_SKIPPED_MODULES = ("pydoc_data.topics", "_sysconfigdata")


Text = tuple[str, str]  # a document and its origin; or a place and what is wrong there


def builtin_documents(name: str, documents: int, reading: ReadLog) -> Iterator[tuple[str, str, str]]:
    """(text, origin, family) of one of BUILTINS. `documents` is how much arithmetic is made; 0: ARITHMETIC_DOCUMENTS.

    A module's code, prose and questions are one family: the prose stands in the code, word for word.
    """
    if name == "arithmetic":
        for number, text in enumerate(problems(documents or ARITHMETIC_DOCUMENTS), start=1):
            reading.position += len(text)
            yield text, f"builtin:arithmetic:{number}", text
        return
    made, malformed = _from_library(name, _library_folder())
    for where, problem in malformed:
        reading.report(where, problem)
    reading.total = sum(len(text) for text, _ in made)
    for text, origin in made:
        reading.position += len(text)
        yield text, origin, origin.split(":", 2)[2]


@functools.cache
def _from_library(name: str, folder: Path) -> tuple[list[Text], list[Text]]:
    """The documents, and what was malformed and how. Kept, because a run reads its sources more than once."""
    modules, malformed = standard_library(folder)
    make = {"prose": _prose, "code": _code, "qa": _questions}[name]
    made: list[Text] = []
    for module, text in modules.items():
        try:
            made += [(document, f"builtin:{name}:{module}") for document in make(module, text)]
        except (SyntaxError, ValueError, RecursionError) as error:
            malformed.append((f"builtin:{name}:{module}", f"not readable as Python ({error})"))
    if name == "prose":
        made += [(text, f"builtin:prose:pydoc_data.topics[{topic!r}]") for topic, text in _topics(folder).items()]
    return made, malformed


def builtin_version() -> str:
    """Names the state of the built-in corpora: this code, this interpreter, its library."""
    return f"{VERSION} {sys.version} {_library_folder()}"


def standard_library(folder: Path) -> tuple[dict[str, str], list[Text]]:
    """Dotted module name to source text, sorted by name; and the files that cannot be read, with the reason.

    Raises ConfigError where the library's sources are not there, as in a zipped or a minimal install.
    """
    found: dict[str, str] = {}
    malformed: list[Text] = []
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else []:
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if _SKIPPED_FOLDERS & set(parts) or module.startswith(_SKIPPED_MODULES):
            continue
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (OSError, SyntaxError, ValueError) as error:
            malformed.append((str(path), f"not readable as Python ({error})"))
            continue
        if text.strip():
            found[module] = text
    if len(found) < _FEWEST_MODULES:
        raise ConfigError(
            f"the built-in corpora are made from the standard library's sources, but {folder} holds {len(found)} "
            "modules (is it zipped, or a minimal install?); use a full Python or name another path in data.sources"
        )
    return dict(sorted(found.items())), malformed


def _library_folder() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _parsed(text: str) -> ast.Module:
    collecting = gc.isenabled()
    gc.disable()  # a large tree is walked by every collection on the way: half the time of parsing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's strings are not this program's concern
            return ast.parse(text)
    finally:
        if collecting:
            gc.enable()


# ------------------------------------------------------------------------------------------ one module's text


def _code(module: str, text: str) -> Iterator[str]:
    yield text


def _prose(module: str, text: str) -> Iterator[str]:
    """What a module says about itself: its documentation strings, then its longer comments."""
    parts = [f"{title}\n\n{doc}" for title, doc in _documentation(module, _parsed(text))]
    parts += _long_comments(text)
    joined = "\n\n".join(parts) + "\n"
    if len(joined) >= _SHORTEST_PROSE:
        yield joined


def _questions(module: str, text: str) -> Iterator[str]:
    """A question for each public function and class whose documentation opens with a whole sentence."""
    for title, doc in _documentation(module, _parsed(text)):
        sentence = " ".join(doc.split("\n\n")[0].split())
        name = title.split("(")[0]
        private = any(part.startswith("_") for part in name.split("."))
        if not private and name != module and len(sentence) >= 30 and sentence.endswith("."):
            yield f"Question: What is {name} in Python?\nAnswer: {sentence}\n"


def _documentation(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(qualified name with its arguments, documentation string) of a module and everything in it."""
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop(0)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = (
                f"({ast.unparse(node.args)})" if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else ""
            )
            doc = ast.get_docstring(node)
            if doc and is_unicode(doc):
                yield name + arguments, doc
            waiting += [
                (f"{name}.{child.name}", child)
                for child in node.body
                if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            ]


def _long_comments(text: str) -> Iterator[str]:
    """Blocks of at least three comment lines on their own, without rulers and commented-out code."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        stripped = line.strip()
        if stripped.startswith("#"):
            block.append(stripped.lstrip("#").removeprefix(" ").rstrip())
            continue
        words = [line for line in block if any(character.isalpha() for character in line)]
        if len(words) >= 3 and sum(line[:1].isalpha() for line in words) > len(words) / 2 and "." in " ".join(words):
            yield inspect.cleandoc("\n".join(words))
        block = []


def _topics(folder: Path) -> dict[str, str]:
    """pydoc's help topics, which are chapters of the language reference; none where they are not installed."""
    path = folder / "pydoc_data" / "topics.py"
    if not path.is_file():
        return {}
    tree = _parsed(path.read_text(encoding="utf-8"))
    assigned = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    topics = ast.literal_eval(assigned[0]) if assigned else {}
    return {str(topic): str(text).strip() + "\n" for topic, text in sorted(topics.items())}
