from __future__ import annotations

import glob
import shutil
import subprocess
from pathlib import Path

import pytest

from shardscope.config import Benchmark, ConfigError, Source
from shardscope.data import files_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is both the current one and the home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def create(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}\n")


def found(path: str) -> list[str]:
    return [str(file) for file in files_of(path)]


# A path, the files it means, and others beside them that it does not mean.
NAMES_BEFORE_PATTERNS = {
    "data/[v2]/*.jsonl": (["data/[v2]/a.jsonl", "data/[v2]/b.jsonl"], ["data/v/a.jsonl", "data/2/a.jsonl"]),
    "data/[v2]/a.jsonl": (["data/[v2]/a.jsonl"], ["data/v/a.jsonl"]),
    "data/[v2]": (["data/[v2]/a.jsonl", "data/[v2]/deep/b.txt"], ["data/v/a.jsonl"]),
    "data/[v2]/": (["data/[v2]/a.jsonl"], ["data/2/a.jsonl"]),
    "data/[v2]/**/*.txt": (["data/[v2]/a.txt", "data/[v2]/deep/b.txt"], ["data/v/a.txt"]),
    "*/[v2]/*.txt": (["x/[v2]/a.txt", "y/[v2]/a.txt"], ["x/v/a.txt"]),
    "**/[v2]/a.txt": (["[v2]/a.txt", "x/y/[v2]/a.txt"], ["x/v/a.txt"]),
    "[old] [v2]/*.txt": (["[old] [v2]/a.txt"], ["o v/a.txt"]),
    "[v2] part-*.txt": (["[v2] part-1.txt", "[v2] part-2.txt"], ["v part-1.txt", "2 part-1.txt"]),
    "[unclosed/*.txt": (["[unclosed/a.txt"], []),
    "closed]/*.txt": (["closed]/a.txt"], []),
    "[]/*.txt": (["[]/a.txt"], []),
    "[!v]/*.txt": (["[!v]/a.txt"], ["x/a.txt"]),
    "{a,b}/*.txt": (["{a,b}/x.txt"], ["a/x.txt", "b/x.txt"]),
    "{raw}/*.txt": (["{raw}/x.txt"], ["raw/x.txt"]),
    "[v2]/{a,b}.txt": (["[v2]/a.txt", "[v2]/b.txt"], ["v/a.txt", "v/b.txt"]),
    "a*b.txt": (["a*b.txt"], ["axb.txt"]),
    "*.txt": (["*.txt"], []),
    "what?/*.txt": (["what?/a.txt"], ["whats/a.txt"]),
    "really?.txt": (["really?.txt"], ["really!.txt"]),
    "my books/*.txt": (["my books/a b.txt"], ["my/books/a.txt"]),
    "  spaced  /*.txt": (["  spaced  /a.txt"], ["spaced/a.txt"]),
    r"back\slash/*.txt": ([r"back\slash/a.txt"], ["back/slash/a.txt"]),
    "~draft/*.txt": (["~draft/a.txt"], []),
    "~$lock.txt": (["~$lock.txt"], []),
    "~x*.txt": (["~x1.txt", "~x2.txt"], []),
    "for $5/*.txt": (["for $5/a.txt"], []),
    "$5*.txt": (["$5 a.txt"], []),
}


@pytest.mark.parametrize("path", NAMES_BEFORE_PATTERNS)
def test_what_is_called_so_is_meant_whatever_characters_its_name_holds(here: Path, path: str) -> None:
    meant, others = NAMES_BEFORE_PATTERNS[path]
    create(*meant, *others)
    assert found(path) == meant
    if not path.startswith("~"):
        assert found(f"./{path}") == meant
        assert found(f"{here}/{path}") == [f"{here}/{name}" for name in meant]


# What the shell would give; where nothing is called so, these are patterns.
PATTERNS = [
    "[ab].txt",
    "[a-c].txt",
    "[!a].txt",
    "?.txt",
    "*.txt",
    "sub/*.txt",
    "*/[a-c].txt",
    "{a,c}.txt",
    "{a,sub/b}.txt",
    "{a,{b,c}}.txt",
    "{1..3}.txt",
    "{3..1}.txt",
    "{08..11}.txt",
    "{b,sub/}*.txt",
    r"\[v2\]/*.txt",
    r"my\ books/a.txt",
    r"\{x\}.txt",
    r"a\*.txt",
]


@pytest.mark.parametrize("path", PATTERNS)
@pytest.mark.skipif(shutil.which("bash") is None, reason="the shell to compare with is missing")
def test_a_pattern_gives_what_the_shell_gives(here: Path, path: str) -> None:
    create("a.txt", "b.txt", "c.txt", "1.txt", "2.txt", "3.txt", "08.txt", "09.txt", "10.txt", "11.txt")
    create("sub/a.txt", "sub/b.txt", "[v2]/a.txt", "v/a.txt", "my books/a.txt", "{x}.txt", "a*.txt", "ab.txt")
    shell = subprocess.run(
        ["bash", "-O", "globstar", "-O", "failglob", "-c", f"printf '%s\\n' {path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found(path) == sorted(set(shell.stdout.splitlines()))


def test_two_stars_go_any_depth_down(here: Path) -> None:
    create("a.txt", "x/b.txt", "x/y/c.txt", "x/y/d.jsonl")
    assert found("**/*.txt") == ["a.txt", "x/b.txt", "x/y/c.txt"]
    assert found("x/**/*.txt") == ["x/b.txt", "x/y/c.txt"]
    assert found("**/y/*") == ["x/y/c.txt", "x/y/d.jsonl"]


def test_folders_that_a_pattern_matches_are_read_as_folders(here: Path) -> None:
    create("part-1/a.txt", "part-2/deep/b.txt", "part-2/notes.md", "other/c.txt")
    assert found("part-*") == found("part-*/") == found("part-{1,2}") == ["part-1/a.txt", "part-2/deep/b.txt"]


def test_a_path_as_windows_writes_it_is_found_and_so_is_one_with_spaces_around_it(here: Path) -> None:
    create("data/books/a.txt", "data/books/b.txt")
    assert found(r"data\books\*.txt") == found(r"data\books") == ["data/books/a.txt", "data/books/b.txt"]
    assert found(" data/books/a.txt ") == ["data/books/a.txt"]


def test_a_dot_is_the_current_folder_and_nothing_is_none(here: Path) -> None:
    create("a.txt", "x/b.txt")
    assert found(".") == found("./") == ["a.txt", "x/b.txt"]
    with pytest.raises(ConfigError, match=r"data.sources.s: path is empty; name a file, a folder"):
        Source(name="s", path="")
    with pytest.raises(ConfigError, match=r"data.benchmarks.s: path is empty; name a file, a folder"):
        Benchmark(name="s", path="")


def test_the_home_folder_is_meant_by_a_tilde_even_beside_a_folder_of_that_name(here: Path) -> None:
    create("~/a.txt", "a.txt", "[v2]/b.txt")
    assert found("~/a.txt") == [f"{here}/a.txt"]
    assert found("~/[v2]/*.txt") == [f"{here}/[v2]/b.txt"]


def test_a_name_that_would_also_be_a_pattern_is_said_once(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    create("*.txt", "a.txt", "b.txt")
    assert found("*.txt") == found("*.txt") == ["*.txt"]
    assert [record.message for record in caplog.records] == [
        f"{here}/*.txt is read as the one name that it is, not as a pattern; 2 others match it"
    ]
    assert found("[*].txt") == ["*.txt"], "and what is meant can be said without doubt"
    assert found("[!*].txt") == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{a,b}.txt", r"path='{a,b}.txt' stands for 'b.txt' among others, and there is no such file"),
        ("{1..1000000000}.txt", "stands for more than 10,000 paths; use \\* where"),
        ("{1..99999999999999999999999999}.txt", "stands for more than 10,000 paths"),
        ("{a,b}" * 20 + ".txt", "stands for more than 10,000 paths"),
        ("[v2]/*.txt", r"path='\[v2\]/\*.txt' names no text files"),
        ("[", "names no text files"),
        ("{", "names no text files"),
        ("{,}", "stands for '' among others"),
        ("\\", "names no text files"),
        ("~nobody-here/*.txt", "knows no home folder '~nobody-here'"),
        ("$NOWHERE_AT_ALL/*.txt", "needs an environment variable that is not set"),
        ("*" * 200, "names no text files"),
        ("/".join("*" * 60), "names no text files"),
        ("a" * 5000, "names no text files"),
        ("a" * 5000 + "/b.txt", "names no text files"),
    ],
)
def test_a_path_that_means_nothing_is_one_sentence(here: Path, path: str, message: str) -> None:
    create("a.txt") if "{a" in path else None
    with pytest.raises(ConfigError, match=message):
        files_of(path)


def test_a_deep_pattern_over_names_that_are_patterns_themselves_is_soon_read(here: Path) -> None:
    deep = "/".join(["*"] * 12)
    Path(deep).mkdir(parents=True)
    create(f"{deep}/a.txt")
    assert found(f"{deep}/a.txt") == [f"{deep}/a.txt"]
    assert glob.escape(deep) != deep
