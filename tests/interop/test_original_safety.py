"""Nothing in an original file runs: what would is refused before, and what is no such file is one sentence."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from original_files import Runs, meta_llama, saved

from shardscope import Shard
from shardscope.interop.restricted import OriginalError, read_original


def test_its_config_object_is_rebuilt_as_data_and_its_module_is_never_imported(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("original_training_code")
    exec("class Config:\n    def __init__(self, **values):\n        self.__dict__.update(values)", module.__dict__)
    monkeypatch.setitem(sys.modules, "original_training_code", module)
    path = saved(tmp_path / "model.pt", module.Config(**published), meta_llama(trained_model))  # type: ignore[attr-defined]
    (tmp_path / "original_training_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    monkeypatch.delitem(sys.modules, "original_training_code")
    monkeypatch.syspath_prepend(str(tmp_path))

    values, weights = read_original(path)
    assert values == published
    assert weights.keys() == meta_llama(trained_model).keys()
    assert "original_training_code" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_an_argparse_namespace_is_read_too(trained_model: Shard, published: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", argparse.Namespace(**published), meta_llama(trained_model))
    assert read_original(path)[0] == published


class RunsOnState:
    """Unpickling this calls `function` on the state, by the way that ordinary objects are restored."""

    def __reduce__(self) -> tuple[object, ...]:
        return (dict, (), {"x": 1}, None, iter([("y", Runs(os.system, "true"))]))


def hostile(mark: Path) -> dict[str, object]:
    touch = f"touch {mark}"
    return {
        "os.system": Runs(os.system, touch),
        "eval": Runs(eval, f"__import__('os').system({touch!r})"),
        "exec": Runs(exec, f"open({str(mark)!r}, 'w')"),
        "getattr": Runs(getattr, dict, "fromkeys"),
        "torch.load": Runs(torch.load, str(mark)),
        "nested in state": RunsOnState(),
        "a module": Runs(__import__, "antigravity"),
    }


@pytest.mark.parametrize("attack", hostile(Path("unused")))
@pytest.mark.parametrize("place", ["cfg", "model", "beside"])
def test_a_pickle_that_would_run_something_is_refused_before_anything_runs(
    tmp_path: Path, attack: str, place: str
) -> None:
    mark = tmp_path / "ran"
    contents: dict[str, Any] = {"cfg": {"dim": 64}, "model": {"norm.weight": torch.ones(4)}}
    torch.save(contents | {"beside": {}}, tmp_path / "harmless.pt")
    torch.save(contents | {place: hostile(mark)[attack]}, tmp_path / "model.pt")
    assert read_original(tmp_path / "harmless.pt")[0] == {"dim": 64}
    with pytest.raises(OriginalError, match="refused"):
        read_original(tmp_path / "model.pt")
    assert not mark.exists()
    assert "antigravity" not in sys.modules


def test_the_attacks_do_run_where_nothing_restrains_them(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for attack in ("os.system", "eval", "exec"):
        torch.save({"cfg": hostile(mark)[attack]}, tmp_path / "model.pt")
        torch.load(tmp_path / "model.pt", weights_only=False)
        assert mark.exists(), attack
        mark.unlink()


@pytest.mark.parametrize("layout", ["before torch 1.6", "plain pickle"])
def test_only_the_zip_layout_is_read_and_others_are_told_how_to_become_one(tmp_path: Path, layout: str) -> None:
    """These layouts cannot be scanned before they are unpickled, so even a harmless one is refused."""
    path, contents = tmp_path / "model.pt", {"cfg": {"dim": 64}, "model": {}}
    if layout == "plain pickle":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        OriginalError, match=r"not in torch.save's zip layout .* one with torch.save\(torch.load\(.*weights_only=True"
    ):
        read_original(path)


def test_the_refusal_names_what_the_file_would_call(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", Runs(os.system, "true"), {})
    with pytest.raises(OriginalError, match=r"refused, nothing was run: the file would call (posix|nt|os)\.system"):
        read_original(path)


def test_a_class_that_only_calls_itself_config_runs_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config class is known by its name alone, and a name is easily taken: what it stands for must stay unused."""
    module = types.ModuleType("evil")
    exec(f"def Config(*arguments):\n    open({str(tmp_path / 'ran')!r}, 'w')", module.__dict__)
    module.Config.__module__, module.Config.__qualname__ = "evil", "Config"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "evil", module)
    path = saved(tmp_path / "model.pt", Runs(module.Config, "argument"), {})  # type: ignore[attr-defined]
    with pytest.raises(OriginalError, match="restricted unpickler"):
        read_original(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "not in torch.save's zip layout"),
        (b"not a pickle at all", "not in torch.save's zip layout"),
        (b"PK\x03\x04 and then nothing", "not in torch.save's zip layout"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path: Path, contents: bytes, message: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(contents)
    with pytest.raises(OriginalError, match=message):
        read_original(path)
    with pytest.raises(OriginalError, match="No such file"):
        read_original(tmp_path / "other.pt")


def test_a_cut_off_file_is_one_sentence(trained_model: Shard, published: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", published, meta_llama(trained_model))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OriginalError, match=r"not in torch.save's zip layout"):
        read_original(path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"weights": {}}, "none of the keys model, state_dict, model_state_dict; found weights"),
        ({"cfg": 3, "model": {"a": torch.ones(1)}}, "its config is a int"),
        ({"cfg": {}, "model": {"a": 1}}, "the weight 'a' is a int, not a plain tensor"),
        ({"cfg": {}, "model": {"a": torch.ones(2, 2).to_sparse()}}, "not a plain tensor|refused"),
    ],
)
def test_a_table_without_the_two_parts_is_refused(tmp_path: Path, contents: dict[str, Any], message: str) -> None:
    torch.save(contents, tmp_path / "model.pt")
    with pytest.raises(OriginalError, match=message):
        read_original(tmp_path / "model.pt")


def test_every_part_of_a_zip_is_read_by_the_restricted_unpickler(
    trained_model: Shard, published: dict[str, Any], tmp_path: Path
) -> None:
    """torch reads data.pkl; a second pickle smuggled into the archive is never opened."""
    path = saved(tmp_path / "model.pt", published, meta_llama(trained_model))
    buffer = io.BytesIO(pickle.dumps(Runs(os.system, f"touch {tmp_path / 'ran'}")))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/constants.pkl", buffer.getvalue())
    with contextlib.suppress(OriginalError):
        read_original(path)
    assert not (tmp_path / "ran").exists()
