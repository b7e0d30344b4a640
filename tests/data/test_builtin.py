from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from shardscope.config import ConfigError
from shardscope.data import DataError, ReadLog
from shardscope.data import builtin as builtin_room
from shardscope.data.arithmetic import CARD_SUMS, problems
from shardscope.data.builtin import BUILTINS, builtin_documents


def read(name: str, documents: int = 0, on_malformed: str = "fail") -> list[tuple[str, str]]:
    found = builtin_documents(name, documents, ReadLog(on_malformed))  # type: ignore[arg-type]
    return [(text, origin) for text, origin, _ in found]


@pytest.mark.parametrize("name", BUILTINS)
def test_a_builtin_corpus_has_hundreds_of_documents_and_enough_text(name: str) -> None:
    found = read(name)
    assert len(found) >= 200
    least = 300_000 if name == "qa" else 1_500_000
    assert sum(len(text) for text, _ in found) > least
    assert all(text.strip() and text.encode("utf-8") for text, _ in found)


def test_code_is_the_source_file_itself() -> None:
    import textwrap

    found = {origin: text for text, origin in read("code")}
    assert found["builtin:code:textwrap"] == Path(textwrap.__file__).read_text(encoding="utf-8")


def test_prose_holds_documentation_comments_and_the_language_reference() -> None:
    import json.decoder
    import pydoc_data.topics

    found = {origin: text for text, origin in read("prose")}
    assert (json.decoder.JSONDecoder.__doc__ or "").split("\n")[0] in found["builtin:prose:json.decoder"]
    topic = "builtin:prose:pydoc_data.topics['assert']"
    assert found[topic] == pydoc_data.topics.topics["assert"].strip() + "\n"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of sixty small modules."""
    for n in range(60):
        path = tmp_path / "lib" / ("package" if n % 2 else "") / f"m{(n * 37) % 60:02}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""Module {n}. {"It does things. " * 20}"""\ndef f(): "Return the {n} most common items."\n')
    monkeypatch.setattr(builtin_room, "_library_folder", lambda: tmp_path / "lib")
    return tmp_path / "lib"


def test_prose_holds_long_comments_but_no_code_that_was_commented_out(library: Path) -> None:
    story = "# The queue keeps its smallest item first.\n# Every parent is below its children,\n# and so on down.\n"
    code = "# (x, y) = f()\n# [a.b for a in c]\n# {1: 2}.items()\n"
    (library / "m00.py").write_text(f'"""Queues. {"Words. " * 40}"""\n\n{story}\nx = 1\n\n{code}\ny = 2\n')
    prose = {origin: text for text, origin in read("prose")}["builtin:prose:m00"]
    assert "The queue keeps its smallest item first.\nEvery parent is below its children,\nand so on down." in prose
    assert "f()" not in prose
    assert "x = 1" not in prose


def test_nothing_of_the_library_is_run(library: Path) -> None:
    (library / "loud.py").write_text(f'"""{"Runs. " * 50}"""\nopen({str(library / "ran")!r}, "w").close()\n')
    for name in ("prose", "code", "qa"):
        read(name)
    assert any(origin == "builtin:prose:loud" for _, origin in read("prose"))
    assert not (library / "ran").exists()


def test_the_order_is_that_of_module_names(library: Path) -> None:
    names = [origin for _, origin in read("code")]
    assert len(names) == 60
    assert names == sorted(names)


def test_tests_and_installed_packages_are_left_out(library: Path) -> None:
    for folder in ("test", "site-packages/stranger", "package/tests"):
        (library / folder).mkdir(parents=True)
        (library / folder / "a.py").write_text("x = 1\n")
    assert len(read("code")) == 60


def test_a_module_that_does_not_parse_is_reported(library: Path) -> None:
    (library / "broken.py").write_text("def f(:\n")
    assert len(read("code")) == 61
    with pytest.raises(DataError, match="builtin:prose:broken: not readable as Python"):
        read("prose")


def test_a_question_asks_for_what_the_documentation_says(library: Path) -> None:
    assert "Question: What is m00.f in Python?\nAnswer: Return the 0 most common items.\n" in dict(read("qa"))


def test_a_partial_library_is_an_error_that_says_so(library: Path) -> None:
    shutil.rmtree(library / "package")
    with pytest.raises(
        ConfigError, match=r"holds 30 modules \(is it zipped, or a minimal install\?\); use a full Python"
    ):
        read("prose")
    shutil.rmtree(library)
    library.write_bytes(b"PK")  # python311.zip
    with pytest.raises(ConfigError, match=r"lib holds 0 modules"):
        read("code")


# ---------------------------------------------------------------------------------------------- arithmetic


def test_arithmetic_is_the_same_for_the_same_seed_and_a_longer_run_begins_like_a_shorter() -> None:
    assert list(problems(50)) == list(problems(80))[:50]
    assert list(problems(50)) != list(problems(50, seed=1))
    assert [text for text, _ in read("arithmetic", 50)] == list(problems(50))


def test_every_sum_that_is_written_out_is_right() -> None:
    statements = 0
    for text in problems(5000):
        for a, operation, b, result in re.findall(r"(?<![\d+*/-] )\b(\d+) ([+*-]) (\d+) = (\d+)", text):
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operation] == int(result), text
            statements += 1
    assert statements > 3000


def test_every_asked_question_is_answered_right() -> None:
    asked = 0
    for text in problems(5000):
        question = re.match(r"(?:Question: What is|Solve:) (\d+) ([-+*/]) (\d+)( = \?|\?)", text)
        if question:
            a, operation, b = int(question[1]), question[2], int(question[3])
            right = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operation]
            assert re.findall(r"\d+", text)[-1] == str(right), text
            asked += 1
    assert asked > 1000


def test_every_equation_is_solved_right() -> None:
    solved = [re.match(r"Solve for x: (\d+)x \+ (\d+) = (\d+)\n.* x = (\d+)\.", text) for text in problems(5000)]
    matches = [match for match in solved if match]
    assert len(matches) > 100
    assert all(int(m[1]) * int(m[4]) + int(m[2]) == int(m[3]) for m in matches)


def test_the_cards_prompts_have_their_style_but_not_their_sums() -> None:
    texts = list(problems(20_000))
    for shape in (
        r"Question: What is \d+ \+ \d+\? Answer: \d+",
        r"To compute \d+ plus \d+, we can ",
        r"Solve: \d+ \* \d+ = \?",
    ):
        assert any(re.match(shape, text) for text in texts)
    asked = [
        re.match(r"(?:Question: What is|To compute|Solve:) (\d+) (?:[+*-]|plus|minus|times) (\d+)", t) for t in texts
    ]
    assert not {(int(m[1]), int(m[2])) for m in asked if m} & CARD_SUMS
