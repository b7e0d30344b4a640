"""An address holds every choice, and finds its checkpoint again under another name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from opening import says, start

from apps.parts.address import CHOICES, FIRST_PROMPT, PACKED, pack, write
from apps.parts.checkpoints import fingerprint
from shardscope import Shard, load
from shardscope.checkpoint import save_checkpoint
from shardscope.microscope import head_scores, read
from shardscope.tokenizer import Tokenizer


def test_an_address_that_names_half_a_head_means_number_0_of_the_other_half(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="one two one two", tokens=0, head=2)
    assert "Layer 0 · sliding, window 8 · head 2" in says(app)


def test_an_address_restores_checkpoint_prompt_layer_head_and_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    for name in ("old", "new"):
        save_checkpoint(tmp_path / name, tiny_model, tokenizer=tiny_tokenizer)
    address = {"checkpoint": f"{tmp_path.name}/old", "prompt": "12 plus 7", "layer": 3, "head": 2, "seed": 11}
    app = start(monkeypatch, tmp_path, **address)
    assert app.selectbox(key="checkpoint").value == f"{tmp_path.name}/old"
    assert app.text_area(key="prompt").value == "12 plus 7"
    assert app.number_input(key="seed").value == 11
    assert "Layer 3 · global · head 2" in says(app)
    assert {name: app.query_params[name] for name in address} == {name: str(value) for name, value in address.items()}


def test_an_address_with_nonsense_opens_the_defaults(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    app = start(
        monkeypatch,
        tiny_checkpoint,
        prompt="Once",
        layer="first",
        head=99,
        seed=-5,
        top_p="nan",
        measure="<b>",
        query="x",
        rectangle="1-2",
    )
    assert not app.exception
    assert "Layer 0 · sliding, window 8 · head 3" in says(app)


def test_only_a_prompt_is_unpacked(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    app = start(monkeypatch, tiny_checkpoint, **dict.fromkeys(CHOICES, pack("3")))
    assert not app.exception
    assert {name for name in CHOICES if app.session_state[name] == "3"} == {"prompt"}


def test_what_an_address_says_and_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt=PACKED + "@@@@", layer="first", seed="3")
    assert not app.exception
    assert app.text_area(key="prompt").value == FIRST_PROMPT
    assert "says prompt, layer in a way that cannot be read" in app.warning[0].value
    assert app.number_input(key="seed").value == 3


def test_every_choice_that_an_address_holds_is_read_back_as_it_was_written() -> None:
    for name, value in {"rectangle": (1, 20, 3, 40), "ablate": ((3, 1), (0, 2)), "runs": ["a b", "c"]}.items():
        assert CHOICES[name][1](write(value)) == value


def test_an_address_made_with_another_checkpoint_says_so(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once", checkpoint="tiny", fingerprint="0123456789ab")
    assert not app.exception
    assert "made with another checkpoint" in app.warning[0].value


@pytest.mark.parametrize("reused", [False, True])
def test_a_checkpoint_that_was_renamed_is_found_also_when_another_has_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer, reused: bool
) -> None:
    for name in ("before", "newest"):
        save_checkpoint(tmp_path / name, tiny_model, tokenizer=tiny_tokenizer)
        with torch.no_grad():
            tiny_model.embed.W_E.mul_(1.5)
    made_with = fingerprint(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    if reused:
        (tmp_path / "newest").rename(tmp_path / "before")
    app = start(monkeypatch, tmp_path, prompt="Once", checkpoint=f"{tmp_path.name}/before", fingerprint=made_with)
    assert not app.warning
    assert app.selectbox(key="checkpoint").value == f"{tmp_path.name}/after"
    assert any("holds another checkpoint now" in info.value for info in app.info) == reused
    # What somebody picks afterwards is theirs.
    other = f"{tmp_path.name}/{'before' if reused else 'newest'}"
    app.selectbox(key="checkpoint").select(other).run()
    assert app.selectbox(key="checkpoint").value == other
    assert app.query_params["fingerprint"] != made_with


def test_the_same_weights_with_another_window_are_another_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    """One explorer, one prompt, two configs: what the second shows is computed with the second."""
    prompt = "Once upon a time, in a small village"
    for window in (8, 32):
        config = replace(tiny_model.config, window=window)
        save_checkpoint(tmp_path / f"w{window}", tiny_model.state_dict(), config=config, tokenizer=tiny_tokenizer)
    for window in (8, 32):
        name = f"{tmp_path.name}/w{window}"
        app = start(monkeypatch, tmp_path, prompt=prompt, checkpoint=name, tokens=0, layer=0)
        model = load(tmp_path / f"w{window}")
        score = head_scores(read(model, torch.tensor(tiny_tokenizer.encode(prompt, bos=True))))[0]
        assert f"entropy **{score.entropy:.4f}**" in says(app)
        assert app.query_params["fingerprint"] == fingerprint(tmp_path / f"w{window}")


def test_a_config_that_is_rewritten_beside_an_open_checkpoint_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    app = start(monkeypatch, tiny_checkpoint, prompt="Once upon a time", tokens=0)
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config["model"]["window"] = 32
    (tiny_checkpoint / "config.json").write_text(json.dumps(config))
    app = app.run()
    assert not app.exception
    assert re.search(r"tiny cannot be opened: .*config.*is not as it was saved", says(app))
    # Taken as it is, without its sums, it is another checkpoint.
    (tiny_checkpoint / "manifest.json").unlink()
    app = app.run()
    assert "sliding, window 32" in says(app)
    assert "made with another checkpoint" in app.warning[0].value
