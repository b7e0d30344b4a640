"""What people write into `--model_args` and ask of the model type `shard`: what it means, or one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from asking import asked
from rounding import nats

from shardscope import load
from shardscope.checkpoint import save_checkpoint
from shardscope.config import ConfigError
from shardscope.evals.harness import HarnessError, ShardLM
from shardscope.tokenizer import Tokenizer


@pytest.mark.parametrize("length", [40, 41, 80, 95])
def test_a_continuation_longer_than_max_length_is_the_sum_of_its_windows(
    formats: tuple[Path, Path], length: int, caplog: pytest.LogCaptureFixture
) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size="auto", max_length=40)
    context, answer = [7, 8], [(31 * pos) % 300 for pos in range(length)]
    tokens, expected = [context[-1], *answer], 0.0
    for start in range(0, length, 40):  # the first window is read after one token, every other at its full length
        stop = min(start + 40, length)
        read = tokens[max(0, stop - 40) : stop]
        with torch.no_grad():
            chances = lm.model(torch.tensor([read]))[0].double().log_softmax(dim=-1)[start - stop :]
        expected += float(chances.gather(1, torch.tensor(answer[start:stop])[:, None]).sum())
    short = (None, context, [9])
    found = lm._loglikelihood_tokens([short, (None, context, answer)], disable_tqdm=True)
    assert found[0][0] == nats(lm._loglikelihood_tokens([short], disable_tqdm=True)[0][0], 1)
    assert found[1] == (nats(expected, length), False)
    said = "continuations that do not fit max_length=40 are scored in windows"
    assert (said in [record.message for record in caplog.records]) == (length > 40)


def test_a_long_continuation_is_greedy_where_all_of_its_windows_are(formats: tuple[Path, Path]) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", max_length=40)
    tokens = [7]
    for _ in range(41):
        with torch.no_grad():
            tokens.append(int(lm.model(torch.tensor([tokens[-40:]]))[0, -1].argmax()))
    for last, greedy in ((tokens[41], True), ((tokens[41] + 1) % 360, False)):
        ((_, found),) = lm._loglikelihood_tokens([(None, [7], [*tokens[1:41], last])], disable_tqdm=True)
        assert found == greedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": "runs/nothing-here"}, "runs/nothing-here: no such checkpoint or run"),
        ({"max_length": 513}, r"max_length=513 is out of range \(the model's context is 512\); use 1 to 512"),
        ({"max_length": "long"}, "max_length='long' is not a whole number"),
        ({"max_gen_toks": 0}, "max_gen_toks=0 is out of range; use at least 1"),
        ({"dtype": "int4"}, "dtype=int4 is not supported; use auto, float32"),
        ({"device": "meta"}, "device='meta': Shardscope runs on cpu, cuda and mps"),
        ({"device": "gpu"}, "device='gpu' is not a torch device; use auto, cpu, cuda"),
        ({"max_length": 0}, "max_length=0 is out of range"),
        ({"batch_size": "auto:many"}, "batch_size='auto:many' is not a whole number"),
        ({"batch_size": "auto", "max_batch_size": 0}, "max_batch_size=0 is out of range"),
        ({"add_bos_token": "perhaps"}, "add_bos_token='perhaps' is neither true nor false; use one of true, yes"),
        ({"revision": "main"}, "revision='main' is not known; use pretrained, tokenizer"),
        ({"tokenizer": "nowhere.json"}, "nowhere.json: no such tokenizer file"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(
    formats: tuple[Path, Path], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ShardLM(**{"pretrained": str(formats[0]), "device": "cpu", **arguments})
    assert isinstance(caught.value, SystemExit)
    assert str(caught.value.code).startswith("error: ")


def test_a_tokenizer_that_does_not_fit_gets_one_sentence(formats: tuple[Path, Path], tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    large = Tokenizer.train([f"{a}{b}{c}" for a in letters for b in letters for c in letters], vocab_size=500)
    large.save(tmp_path / "large.json")
    Tokenizer.train(["abc"], vocab_size=259).save(tmp_path / "small.json")
    for name in ("large", "small"):
        with pytest.raises(
            HarnessError, match=rf"{name}\.json is not the one that .*checkpoint holds; leave tokenizer"
        ):
            ShardLM(pretrained=str(formats[0]), device="cpu", tokenizer=str(tmp_path / f"{name}.json"))
    # A checkpoint without one takes the tokenizer of its size.
    model = load(formats[0])
    model.tokenizer = None
    bare = save_checkpoint(tmp_path / "bare", model)
    with pytest.raises(HarnessError, match=r"bare holds no tokenizer\.json; pass tokenizer=FILE"):
        ShardLM(pretrained=str(bare), device="cpu")
    for name, entries in (("large", 500), ("small", 259)):
        with pytest.raises(
            HarnessError, match=rf"has {entries} entries, the model's vocabulary 360; pass the tokenizer"
        ):
            ShardLM(pretrained=str(bare), device="cpu", tokenizer=str(tmp_path / f"{name}.json"))
    own = formats[0] / "tokenizer.json"
    for folder in (bare, formats[0]):
        assert ShardLM(pretrained=str(folder), device="cpu", tokenizer=str(own)).tok_encode("42", False)


@pytest.mark.parametrize(
    ("words", "first", "size"),
    [("add_bos_token=0", 1, 2), ("add_bos_token=no,batch_size=auto:4", 1, "auto"), ("add_bos_token=True", 0, 2)],
)
def test_arguments_mean_what_the_harness_lets_people_write(
    formats: tuple[Path, Path], words: str, first: int, size: int | str
) -> None:
    given = {"device": "cpu"} if "batch_size" in words else {"device": "cpu", "batch_size": 2}
    lm = ShardLM.create_from_arg_string(f"pretrained={formats[0]},{words}", given)
    assert lm.tok_encode("What") == lm.tokens.encode("What", bos=True)[first:]
    assert lm.batch_size == size


def test_model_args_count_before_the_commands_own_defaults(formats: tuple[Path, Path]) -> None:
    flags = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    given = {"pretrained": str(formats[0]), "batch_size": 4, "max_batch_size": 8, "device": "cpu"}
    words = ",".join(f"{name}={value}" for name, value in given.items())
    for lm in (ShardLM.create_from_arg_string(words, flags), ShardLM.create_from_arg_obj(given, flags)):
        assert (lm.batch_size, lm.max_batch_size, str(lm.device)) == (4, 8, "cpu")


def test_paths_may_look_like_numbers(
    formats: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(formats[0], tmp_path / "2024")
    shutil.copy(formats[0] / "tokenizer.json", tmp_path / "5")
    monkeypatch.chdir(tmp_path)
    lm = ShardLM.create_from_arg_string("pretrained=2024,tokenizer=5", {"device": "cpu"})
    assert lm.path is not None
    assert lm.path.name == "2024"


def test_arguments_that_are_no_pairs_get_one_sentence(formats: tuple[Path, Path]) -> None:
    with pytest.raises(HarnessError, match="'here' is not key=value"):
        ShardLM.create_from_arg_string("here", {"batch_size": 1, "device": "cpu"})
    lm = ShardLM.create_from_arg_string(f"pretrained={formats[0]},max_length=100", {"batch_size": 4, "device": "cpu"})
    assert (lm.max_length, lm.batch_size) == (100, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_gen_toks": 512}, "max_gen_toks=512 leaves no room for a prompt in max_length=512"),
        ({"num_beams": 4}, "generation argument num_beams=4 is not supported; use until"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 3.0}, "top_p=3.0 is a probability"),
    ],
)
def test_an_impossible_generation_gets_one_sentence(ours: ShardLM, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        ours.generate_until(asked("generate_until", [("Question:", {"until": ["."], **kwargs})]), disable_tqdm=True)


@pytest.mark.parametrize("batch_size", [4, "auto"])
@pytest.mark.parametrize("pair", [("Hello there", ""), ("", "")])
def test_an_empty_continuation_gets_one_sentence(formats: tuple[Path, Path], batch_size: Any, pair: Any) -> None:
    lm = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size=batch_size)
    with pytest.raises(HarnessError, match="a continuation adds no token to its context"):
        lm.loglikelihood(asked("loglikelihood", [pair]), disable_tqdm=True)


def test_a_chat_template_gets_one_sentence(ours: ShardLM) -> None:
    with pytest.raises(HarnessError, match="base model without a chat template"):
        ours.apply_chat_template([{"role": "user", "content": "hello"}])
