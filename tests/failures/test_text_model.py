"""The model of text that a training fits on its own documents, and what becomes of files that only say they are one."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from shardscope.cli import main
from shardscope.config import ConfigError
from shardscope.failures import keep_with_run, label, text_model_of
from shardscope.failures.atlas.records import rules_digest
from shardscope.failures.text_model import BUCKETS, FILE_NAME, MOST_BYTES, TextModel, built_in
from shardscope.recipes.command import run_recipe

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


def language(seed: int, words: int = 400) -> list[str]:
    """Words of a language that nobody speaks."""
    rng = Random(seed)
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(words)]


def texts_of(words: list[str], count: int = 60, length: int = 200) -> list[str]:
    rng = Random(1)
    return [" ".join(rng.choices(words, k=length)) + "." for _ in range(count)]


def test_the_words_and_letters_of_a_runs_own_text_are_no_breakdown_after_its_training(tmp_path: Path) -> None:
    words = language(0)
    sample = " ".join(words[:60])
    own = keep_with_run(tmp_path, texts_of(words))
    assert all(own.knows(word) for word in words if len(word) > 2)

    def breaks_down(text: str, model: TextModel) -> bool:
        return "breakdown" in {flag.failure for flag in label(text, prompt="One day", text_model=model).flags}

    assert breaks_down(sample, built_in())
    assert not breaks_down(sample, own)
    assert breaks_down(" ".join(language(7, 60)), own)  # words that stand nowhere still do
    assert own.knows("clockmaker") == built_in().knows("clockmaker")
    assert np.mean(own.log_odds(sample, "prose", 128)) > np.mean(built_in().log_odds(sample, "prose", 128))


def test_a_domain_with_too_little_text_stays_as_it_ships() -> None:
    little = built_in().fitted_anew(["A sentence of prose, and no more than that, which is hardly anything."] * 3)
    np.testing.assert_array_equal(little.log_likelihood, built_in().log_likelihood)
    np.testing.assert_array_equal(little.idf, built_in().idf)
    prose = built_in().fitted_anew(texts_of(["the", "clock", "struck", "nine", "and", "they", "went", "home"]))
    changed = (prose.log_likelihood != built_in().log_likelihood).any(axis=1)
    assert changed.sum() == 1, "one domain has text of its own"


def test_it_is_fitted_once_and_no_more_text_is_read_than_it_takes(tmp_path: Path) -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield "The clock struck nine. " * 2000

    keep_with_run(tmp_path, endless())  # type: ignore[arg-type]
    assert taken == 4_000_000 // 46_000 + 1
    first = (tmp_path / FILE_NAME).read_bytes()
    assert len(first) < MOST_BYTES
    keep_with_run(tmp_path, endless())  # type: ignore[arg-type]
    assert ((tmp_path / FILE_NAME).read_bytes(), taken) == (first, 4_000_000 // 46_000 + 1)
    assert sorted(os.listdir(tmp_path)) == [FILE_NAME]


def test_a_training_leaves_its_own_and_info_says_whose_it_is(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert run_recipe("pretrain", "", [str(recipe_file), "--schedule.steps", "5"]) == 0
    written = (run / FILE_NAME).read_bytes()
    assert text_model_of(run) is not built_in()
    assert run_recipe("pretrain", "", [str(recipe_file), "--schedule.steps", "5"]) == 0  # all done before
    assert (run / FILE_NAME).read_bytes() == written
    capsys.readouterr()
    assert main(["info", str(run)]) == 0
    assert "text model     the run's own (text_model.npz)" in capsys.readouterr().out
    (run / FILE_NAME).unlink()
    assert main(["info", str(run)]) == 0
    assert "text model     the one that ships with the package" in capsys.readouterr().out
    assert text_model_of(run) is built_in()


def test_an_atlas_is_labelled_anew_when_the_runs_own_changes(tmp_path: Path) -> None:
    shipped = rules_digest(tmp_path)
    keep_with_run(tmp_path, texts_of(language(0)))
    first = rules_digest(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    keep_with_run(tmp_path, texts_of(language(1)))
    assert len({shipped, first, rules_digest(tmp_path)}) == 3


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def archive(path: Path, **entries: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(f"{name}.npy", data)


def npy(array: np.ndarray, **header: object) -> bytes:
    """The array as a file; `header` says something else about it than is true."""
    file = io.BytesIO()
    if header:
        told = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
        np.lib.format.write_array_header_1_0(file, told)
        file.write(array.tobytes())
    else:
        np.save(file, array, allow_pickle=True)
    return file.getvalue()


def parts() -> dict[str, np.ndarray]:
    model = built_in()
    return {"log_likelihood": model.log_likelihood, "idf": model.idf, "words": model.words}


@pytest.mark.parametrize(
    "kind",
    ["pickle", "bomb", "huge shape", "other type", "other shape", "by columns", "cut", "not finite", "missing", "large",
     "empty", "encrypted", "no magic"],
)  # fmt: skip
def test_a_strangers_file_is_refused_in_one_sentence_and_nothing_in_it_runs(kind: str, tmp_path: Path) -> None:
    path, mark = tmp_path / FILE_NAME, tmp_path / "ran"
    entries = {name: npy(array) for name, array in parts().items()}
    if kind == "pickle":
        entries["idf"] = npy(np.array([Trap(mark)], dtype=object))
    elif kind == "bomb":
        entries["idf"] = npy(np.zeros(2**26, dtype=np.float16))
    elif kind == "huge shape":
        entries["idf"] = npy(built_in().idf, shape=(2**50,))
    elif kind == "other type":
        entries["idf"] = npy(built_in().idf.astype(np.int16))
    elif kind == "other shape":
        entries["idf"] = npy(built_in().idf.reshape(2, -1))
    elif kind == "by columns":
        entries["log_likelihood"] = npy(np.asfortranarray(built_in().log_likelihood))
    elif kind == "cut":
        entries["idf"] = entries["idf"][:-9]
    elif kind == "not finite":
        entries["idf"] = npy(np.full(BUCKETS, np.nan, dtype=np.float16))
    elif kind == "missing":
        del entries["idf"]
    elif kind == "no magic":
        entries["idf"] = b"x" * len(entries["idf"])
    archive(path, **entries)
    if kind == "large":
        path.write_bytes(bytes(MOST_BYTES + 1))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "encrypted":
        data = bytearray(path.read_bytes())
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # every entry's header in both places
            place = data.find(signature)
            while place >= 0:
                data[place + flags] |= 1
                place = data.find(signature, place + 4)
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"{FILE_NAME}: not a text model") as error:
        text_model_of(tmp_path)
    assert "\n" not in str(error.value)
    assert not mark.exists()


def test_a_link_out_of_the_run_a_pipe_and_a_folder_are_no_text_model(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    built_in().save(elsewhere / FILE_NAME)
    for number, plant in enumerate(
        (lambda at: at.symlink_to(elsewhere / FILE_NAME), os.mkfifo, Path.mkdir, lambda at: at.symlink_to("nowhere"))
    ):
        run = tmp_path / f"run-{number}"
        run.mkdir()
        plant(run / FILE_NAME)
        with pytest.raises(ConfigError, match=FILE_NAME):
            text_model_of(run)
        with pytest.raises(ConfigError, match=FILE_NAME):
            keep_with_run(run, [])
