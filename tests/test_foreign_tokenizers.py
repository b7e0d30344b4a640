"""Tokenizers that others made: read as they are, made lossless, or refused with the reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from shardscope import tokenizer as module
from shardscope.interop.original import read_tokenizer
from shardscope.tokenizer import END_OF_TEXT, Tokenizer, TokenizerError

DOCUMENTS = [
    "The quick brown fox, 23 + 19 = 42; it's naïve é e\u0301 漢字 🙂\n\n    indented  text\r\n" + END_OF_TEXT
] * 3
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def made(cut: Any = GPT2, added: list[AddedToken] | None = None) -> tokenizers.Tokenizer:
    """A small byte-level BPE as others make them, `<|endoftext|>` and `<|padding|>` first, as in GPT-NeoX's."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = cut
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        DOCUMENTS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=[END_OF_TEXT, "<|padding|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.add_tokens(added or [])
    return backend


def written(folder: Path, backend: tokenizers.Tokenizer, **changes: Any) -> Path:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(backend.to_str()) | changes), encoding="utf-8")
    return file


READERS: list[Callable[[Path], Tokenizer]] = [Tokenizer.load, read_tokenizer]


@pytest.mark.parametrize("read", READERS)
def test_truncation_padding_dropout_and_post_processors_are_switched_off(
    tmp_path: Path, read: Callable[[Path], Tokenizer]
) -> None:
    plain = made()
    expected = plain.encode(DOCUMENTS[0].removesuffix(END_OF_TEXT) * 9).ids
    changed = made()
    changed.enable_truncation(4)
    changed.enable_padding(length=4096)
    changed.post_processor = processors.TemplateProcessing(f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)])
    changed.model.dropout = 0.7
    tokenizer = read(written(tmp_path, changed))
    text = DOCUMENTS[0].removesuffix(END_OF_TEXT) * 9
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode_batch([text])[0].tolist() == expected
    assert tokenizer.backend.truncation is tokenizer.backend.padding is None
    assert tokenizer.fingerprint == Tokenizer(plain).fingerprint


@pytest.mark.parametrize("read", READERS)
def test_nfc_is_left_out_and_text_of_any_form_comes_back(tmp_path: Path, read: Callable[[Path], Tokenizer]) -> None:
    normalizing = made()
    normalizing.normalizer = normalizers.Sequence([normalizers.NFC()])
    tokenizer = read(written(tmp_path, normalizing))
    for text in ("e\u0301", "é", "\u212b \u1100\u1161", *DOCUMENTS):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert sum(len(tokenizer.token_bytes(id)) for id in ids) == len(text.encode())
    assert tokenizer.encode("naïve é") == normalizing.encode("naïve é").ids


REFUSED_NORMALIZERS = [
    normalizers.NFD(),
    normalizers.NFKC(),
    normalizers.NFKD(),
    normalizers.Lowercase(),
    normalizers.Strip(),
    normalizers.StripAccents(),
    normalizers.Prepend("\u2581"),
    normalizers.Replace(" ", "\u2581"),
    normalizers.Replace(Regex(r"(x+x+)+y"), ""),
    normalizers.Nmt(),
    normalizers.BertNormalizer(),
    normalizers.Sequence([normalizers.NFC(), normalizers.Sequence([normalizers.Lowercase()])]),
]


@pytest.mark.parametrize("normalizer", REFUSED_NORMALIZERS, ids=str)
def test_a_tokenizer_that_changes_the_text_is_refused(tmp_path: Path, normalizer: Any) -> None:
    changed = made()
    changed.normalizer = normalizer
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json: it changes the text before cutting it \(normalizer \w+"
    ):
        Tokenizer.load(written(tmp_path, changed))


CUTS = {
    "GPT-2": GPT2,
    "Llama 3": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    ),
    "digits, then GPT-2": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "a pattern of its own": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    ),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_every_byte_level_way_of_cutting_is_read_with_the_librarys_own_ids(tmp_path: Path, cut: Any) -> None:
    backend = made(cut)
    tokenizer = Tokenizer.load(written(tmp_path, backend))
    text = DOCUMENTS[0].removesuffix(END_OF_TEXT) + " don't 12345"
    assert tokenizer.encode(text) == backend.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(DOCUMENTS[0])) == DOCUMENTS[0]


ADDED = ["café", "漢字 here", "  ", "     ", "Ġodd", "naïve\n", "<|im_start|>"]


@pytest.mark.parametrize("single_word", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_added_tokens_are_plain_text(tmp_path: Path, normalized: bool, single_word: bool) -> None:
    added = [AddedToken(text, normalized=normalized, single_word=single_word) for text in ADDED]
    backend = made(added=added)
    backend.normalizer = normalizers.NFC()  # as GPT-NeoX's
    tokenizer = Tokenizer.load(written(tmp_path, backend))
    assert tokenizer.vocab_size == backend.get_vocab_size()
    for text in ADDED:
        id = tokenizer.backend.token_to_id(text)
        assert tokenizer.token_bytes(id) == text.encode()
        assert tokenizer.token_text(id) == text
        assert tokenizer.encode(text) == [id]
        around = f"un{text}un, {text} and {text}{text}."
        assert tokenizer.decode(tokenizer.encode(around)) == around


def test_a_special_token_in_a_text_is_text(tmp_path: Path) -> None:
    values = json.loads(made().to_str())
    for special in (True, False):  # some files do not say that their <|endoftext|> is special
        values["added_tokens"][0]["special"] = special
        tokenizer = Tokenizer.load(written(tmp_path, made(), added_tokens=values["added_tokens"]))
        for text in (f"a{END_OF_TEXT}b", "<|padding|>"):
            assert tokenizer.decode(tokenizer.encode(text)) == text
            assert tokenizer.bos_id not in tokenizer.encode(text)


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_an_added_token_that_removes_spaces_is_refused_by_name(tmp_path: Path, side: str) -> None:
    backend = made(added=[AddedToken("café", **{side: True})])
    with pytest.raises(TokenizerError, match="its added token 'café' removes the space beside it"):
        Tokenizer.load(written(tmp_path, backend))
    special = made()
    special.add_special_tokens([AddedToken("<mask>", **{side: True})])  # never found in a text
    assert Tokenizer.load(written(tmp_path, special)).decode(special.encode("a ").ids) == "a "


def spelled(values: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's file without one of its 256 bytes."""
    lacking = copy.deepcopy(values)
    del lacking["model"]["vocab"]["Ġ"]
    lacking["model"]["merges"] = [pair for pair in lacking["model"]["merges"] if "Ġ" not in "".join(pair)]
    return lacking


def doubled(values: dict[str, Any]) -> dict[str, Any]:
    twice = copy.deepcopy(values)
    twice["model"]["vocab"]["a"] = twice["model"]["vocab"]["b"]
    return twice


REFUSED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "its model is WordLevel": lambda v: (
        v | {"model": {"type": "WordLevel", "vocab": {END_OF_TEXT: 0}, "unk_token": "a"}}
    ),
    "its model is Unigram": lambda v: v | {"model": {"type": "Unigram", "vocab": [[END_OF_TEXT, 0.0]], "unk_id": 0}},
    "its model is WordPiece": lambda v: (
        v
        | {
            "model": {
                "type": "WordPiece",
                "vocab": {END_OF_TEXT: 0},
                "unk_token": "a",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
            }
        }
    ),
    "SentencePiece-style": lambda v: (
        v | {"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}}
    ),
    "it puts a space before every text": lambda v: (
        v | {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
    ),
    "it does not cut text into bytes": lambda v: v | {"pre_tokenizer": {"type": "WhitespaceSplit"}},
    "text does not come back unchanged: ' ": lambda v: (
        v | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, v["pre_tokenizer"]]}}
    ),
    "1 bytes have no token, the first is 0x20": spelled,
    "share an id": doubled,
    "token ids are 16-bit": lambda v: v | {"model": {**v["model"], "vocab": {**v["model"]["vocab"], "far": 2**31}}},
    r"the vocabulary has no <\|endoftext\|>.*'<\|padding\|>'": lambda v: json.loads(
        json.dumps(v).replace(END_OF_TEXT, "<|begin|>")
    ),
    "its token 'ab cd' is not byte-level": lambda v: (
        v | {"model": {**v["model"], "vocab": {**v["model"]["vocab"], "ab cd": len(v["model"]["vocab"])}}}
    ),
}


@pytest.mark.parametrize(("reason", "change"), REFUSED.items(), ids=REFUSED)
def test_a_tokenizer_that_cannot_be_read_is_refused_with_its_reason(
    tmp_path: Path, reason: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(change(json.loads(made().to_str()))), encoding="utf-8")
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json: .*{reason}"):
        Tokenizer.load(file)


@pytest.mark.parametrize("pattern", [r"(a+)+$|.", r"(\s|\s)*x|.", r"(?:a|aa)+b|[\s\S]", r"(.*)*!\d|."])
def test_a_pattern_that_never_ends_is_refused(tmp_path: Path, pattern: str) -> None:
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), GPT2])
    file = written(tmp_path, made(), pre_tokenizer=json.loads(cut.__getstate__()))
    with pytest.raises(TokenizerError, match=r"its pattern .* (gives up on|takes more than)"):
        Tokenizer.load(file)


HOSTILE = {
    "nested lists": '{"version": "1.0", "model": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested pre-tokenizers": None,
    "cut short": None,
    "NULs": "\0" * 1000,
    "half a surrogate": '{"version": "\\ud800"}',
    "a long number": '{"version": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_sentence(tmp_path: Path, kind: str) -> None:
    file, content = tmp_path / "tokenizer.json", HOSTILE[kind]
    whole = made().to_str()
    if kind == "nested pre-tokenizers":
        nested = '{"type": "Sequence", "pretokenizers": [' * 5000 + "]}" * 5000
        content = whole.replace('"pre_tokenizer":', f'"pre_tokenizer": {nested}, "was":', 1)
    file.write_text(content or whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer\.json of the tokenizers library"):
        Tokenizer.load(file)


def test_a_file_too_large_for_a_tokenizer_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2 * module.LARGEST_FILE)
    with pytest.raises(TokenizerError, match=r"are too many for a tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_long_text_has_the_ids_it_has_at_once(cut: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = made(cut, [AddedToken("brown fox, 23 + 19 = 42; it's naïve")])
    tokenizer = Tokenizer(backend)
    text = "".join(f"{document}   I'll {n * 7919}\n" for n, document in enumerate(DOCUMENTS * 8))
    expected = tokenizer.encode(text)
    for size in (101, 512):
        monkeypatch.setattr(module, "_PIECE", size)
        assert tokenizer.encode(text) == expected
        assert tokenizer.encode_batch([text, "a", text])[2].tolist() == expected


def test_a_word_longer_than_a_piece_is_cut_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(made())
    monkeypatch.setattr(module, "_PIECE", 64)
    for text in ("a" * 1000, "é" * 500 + " " + "漢" * 500, "\0" * 999, " " * 300):
        assert tokenizer.decode(tokenizer.encode(text)) == text
