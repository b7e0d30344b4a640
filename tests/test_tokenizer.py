from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardscope.tokenizer import END_OF_TEXT, Tokenizer, TokenizerError

DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Question: What is 23 + 19? Answer: 42. To compute 12 plus 7, we can add.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Ein naïver Café-Besuch: 漢字 und 🙂, and then the quick brown fox again.",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 320)


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("   two  leading, trailing  ")
@example("\x00\x01\x1f\x7f\x85\u2028\u2029\ufeff\r\n\t")
@example("\u0301 alone, a\u0301 and \u200d\ufe0f")
@example("👩‍👩‍👧‍👦🏳️‍🌈🇫🇷")
@example(f"{END_OF_TEXT} and a<|endoftext|>b <|endof")
@example("½²٣१𝟘 1234567890")
@example("")
def test_every_string_comes_back_unchanged(text: str) -> None:
    tokenizer = _trained()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, bos=True)) == text
    assert [ids.tolist() for ids in tokenizer.encode_batch([text, "x"])] == [tokenizer.encode(t) for t in (text, "x")]


_CACHE: list[Tokenizer] = []


def _trained() -> Tokenizer:
    """One tokenizer for all of hypothesis's examples."""
    if not _CACHE:
        _CACHE.append(Tokenizer.train(DOCUMENTS, 320))
    return _CACHE[0]


@given(st.text(min_size=1))
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(text: str) -> None:
    tokenizer = _trained()
    assert b"".join(tokenizer.token_bytes(id) for id in tokenizer.encode(text)) == text.encode("utf-8")


def test_decoding_agrees_with_the_tokenizers_library(tokenizer: Tokenizer) -> None:
    ids = list(range(1, tokenizer.vocab_size))
    assert tokenizer.decode(ids) == tokenizer.backend.decode(ids)


def test_the_vocabulary_has_the_asked_size_and_every_byte(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 320
    assert {tokenizer.token_bytes(id) for id in range(320)} >= {bytes([byte]) for byte in range(256)}


def test_end_of_text_is_id_0_and_only_bos_gives_it(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_id == tokenizer.eos_id == 0
    assert tokenizer.encode("fox", bos=True) == [0, *tokenizer.encode("fox")]
    assert 0 not in tokenizer.encode(f"{END_OF_TEXT}{END_OF_TEXT}")
    assert tokenizer.token_text(0) == END_OF_TEXT


def test_a_digit_is_a_token_of_its_own_with_or_without_a_space_before() -> None:
    tokenizer = Tokenizer.train(["10 100 1000 and 12 = 10 100 1000 or 12"] * 50, 261)
    pieces = [tokenizer.token_text(id) for id in tokenizer.encode("1000 12=1000")]
    assert pieces == ["1", "0", "0", "0", " ", "1", "2", "=", "1", "0", "0", "0"]


def test_a_piece_of_a_character_is_shown_by_its_bytes(tokenizer: Tokenizer) -> None:
    first = next(id for id in range(320) if tokenizer.token_bytes(id) == b"\xe2")
    assert tokenizer.token_text(first) == "\\xe2"


def many_words() -> list[str]:
    """Documents with many pairs that are equally frequent, so that ties must be broken."""
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
    return [" ".join(words[n % 7 :: 7]) + f" {n}" for n in range(700)]


def test_the_same_documents_give_the_same_file_whatever_the_threads(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.json" for n in range(3)]
    for file in files[:2]:
        Tokenizer.train(many_words(), 600).save(file)
    program = "import sys, test_tokenizer as t; t.Tokenizer.train(t.many_words(), 600).save(sys.argv[1])"
    alone = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "7"}
    environment = {**os.environ, **alone, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, files[2]], check=True, env=environment)
    assert len({file.read_bytes() for file in files}) == 1


def test_a_saved_tokenizer_is_the_same_one_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tokenizer.save(tmp_path)
    assert file == tmp_path / "tokenizer.json"
    for again in (Tokenizer.load(tmp_path), Tokenizer.load(file)):
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode(DOCUMENTS[3] + END_OF_TEXT) == tokenizer.encode(DOCUMENTS[3] + END_OF_TEXT)


def test_another_vocabulary_has_another_fingerprint(tokenizer: Tokenizer) -> None:
    assert Tokenizer.train(DOCUMENTS, 319).fingerprint != tokenizer.fingerprint


def test_the_file_loads_in_tokenizers_and_transformers_with_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    file = str(tokenizer.save(tmp_path))
    plain = tokenizers.Tokenizer.from_file(file)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=file, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)
    for text in [*DOCUMENTS[:4], "  x\t\r\n 1729", "\u0301🙂"]:
        ids = tokenizer.encode(text)
        assert plain.encode(text).ids == ids
        assert fast(text)["input_ids"] == ids
        assert fast.decode(ids, clean_up_tokenization_spaces=False) == text
    assert fast.eos_token_id == tokenizer.eos_id
    assert len(fast) == tokenizer.vocab_size


def test_too_little_text_for_the_vocabulary_is_an_error_that_says_how_much_there_is() -> None:
    with pytest.raises(TokenizerError, match=r"yields \d+ entries, not vocab_size=5000; train on more text"):
        Tokenizer.train(["too short"], 5000)


@pytest.mark.parametrize("size", [0, 256, 65537])
def test_an_impossible_vocabulary_size_is_an_error(size: int) -> None:
    with pytest.raises(TokenizerError, match=f"vocab_size={size}: use 257 to 65536 entries"):
        Tokenizer.train(DOCUMENTS, size)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such tokenizer file"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": {"type": "magic"}}', b"[]", b"\xff\xfe\x00"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer\.json of the tokenizers library"):
        Tokenizer.load(tmp_path)


def test_an_id_outside_the_vocabulary_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="token id 320 is outside the vocabulary of 320"):
        tokenizer.decode([320])
