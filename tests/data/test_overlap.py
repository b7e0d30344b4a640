"""Held-out text and benchmark questions do not come into training unnoticed."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardscope.config import Benchmark, ConfigError, DataConfig, Source
from shardscope.data import DataError, TokenShard, overlap, prepare
from shardscope.data.prints import prints_of
from shardscope.data.shards import WORDS_IN_COMMON, Overlap
from shardscope.tokenizer import Tokenizer

Write = Callable[..., Path]
DataOf = Callable[..., DataConfig]


def essays(count: int, seed: int, length: int = 60) -> list[str]:
    """Texts of words that no two of them share thirteen of in a row."""
    chance = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "s")]
    return [" ".join(chance.choice(words) for _ in range(length)).capitalize() + "." for _ in range(count)]


def shards(data: DataConfig, tokenizer: Tokenizer):  # type: ignore[no-untyped-def]
    return prepare(data, tokenizer, batch_size=2, seed=0, eval_tokens=1000, progress=False)


def texts(shard: TokenShard, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(shard.ids(number)) for number in range(len(shard.starts))]


def test_a_source_that_repeats_documents_of_another_is_noticed_and_cleaned(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    held, repeated = essays(6, 1), essays(5, 2)
    data = data_of(
        Source(
            name="a",
            path=str(write_jsonl("a.jsonl", essays(40, 3))),
            holdout=str(write_jsonl("h.jsonl", held + repeated)),
        ),
        Source(name="b", path=str(write_jsonl("b.jsonl", essays(60, 4) + repeated))),
    )
    found = shards(data, small_tokenizer)
    counted = found.shards["b"].overlap
    assert counted is not None
    assert (counted.documents, counted.exact, counted.of_documents) == (5, 5, len(found.shards["b"].train.starts))
    assert counted.with_texts == {"a (held out)": 5}
    assert found.overlap["a"]["documents"] == 0
    assert "data.sources.b: 5 of 6" in caplog.text
    assert "data.overlap = 'drop' leaves them out" in caplog.text
    cleaned = shards(replace(data, overlap="drop"), small_tokenizer)
    kept = texts(cleaned.shards["b"].train, small_tokenizer)
    assert kept == [text for text in texts(found.shards["b"].train, small_tokenizer) if text not in repeated]
    assert texts(cleaned.shards["b"].holdout, small_tokenizer) == texts(found.shards["b"].holdout, small_tokenizer)
    assert cleaned.shards["b"].overlap == replace(counted, dropped=True)
    assert cleaned.fingerprints["a"] == found.fingerprints["a"]
    assert cleaned.fingerprints["b"] != found.fingerprints["b"]
    origins = {cleaned.shards["b"].train.origin(n) for n in range(len(kept))}
    assert not {f"{data.sources[1].path}:{line}" for line in range(61, 66)} & origins
    assert shards(replace(data, overlap="ignore"), small_tokenizer).overlap == {}


def test_a_holdout_file_that_repeats_training_documents_is_noticed(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer
) -> None:
    training = essays(40, 5)
    held = write_jsonl("h.jsonl", [*essays(3, 6), training[7], training[7], training[7], training[7], training[30]])
    data = data_of(Source(name="a", path=str(write_jsonl("a.jsonl", training)), holdout=str(held)))
    counted = shards(data, small_tokenizer).shards["a"].overlap
    assert counted is not None
    assert (counted.documents, counted.exact) == (2, 2)


def test_thirteen_words_in_a_row_are_an_overlap_whatever_stands_between_them_and_twelve_are_none(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer
) -> None:
    held = essays(5, 7)
    words = [text.rstrip(".").split() for text in held]
    twelve = "Begin " + " ".join(words[0][10:22]) + " end " + " ".join(words[1][0:12])
    thirteen = "Begin: " + ",\n\t".join(words[2][10:23]).upper() + "! End"
    across = [" ".join(words[3][:7]), " ".join(words[3][7:14])]  # two documents have no words in common to both
    data = data_of(
        Source(
            name="a",
            path=str(write_jsonl("a.jsonl", [*essays(30, 8), twelve, thirteen, *across])),
            holdout=str(write_jsonl("h.jsonl", held)),
        ),
        overlap="drop",
    )
    found = shards(data, small_tokenizer).shards["a"]
    assert found.overlap is not None
    assert (found.overlap.documents, found.overlap.exact) == (1, 0)
    kept = texts(found.train, small_tokenizer)
    assert thirteen not in kept
    assert {twelve, *across} <= set(kept)


SPOKEN = "“Don’t ask,” said Zoë—the coöperative’s re-elected chair—“why ﬁve naïve façades fell…”"


@pytest.mark.parametrize(
    "written",
    [
        SPOKEN.upper(),
        unicodedata.normalize("NFD", SPOKEN),
        unicodedata.normalize("NFKC", SPOKEN),
        SPOKEN.translate(str.maketrans("“”’—", '""\'-')),
        SPOKEN.replace(" ", "\u00a0"),
        SPOKEN.replace(" ", "\r\n\u3000"),
        SPOKEN.replace("e", "e\u00ad"),
        SPOKEN.replace("o", "\u200bo\u2060"),
        "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in SPOKEN),  # full width
    ],
    ids=["upper", "decomposed", "composed", "ascii", "no-break", "wide", "soft-hyphens", "zero-width", "full-width"],
)
def test_words_are_the_same_however_unicode_spells_them(
    written: str, write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer
) -> None:
    data = data_of(
        Source(
            name="a",
            path=str(write_jsonl("a.jsonl", [*essays(20, 21), f"He wrote: {written} Nobody knew.", written])),
            holdout=str(write_jsonl("h.jsonl", [*essays(3, 22), SPOKEN])),
        )
    )
    counted = shards(data, small_tokenizer).shards["a"].overlap
    assert counted is not None
    assert (counted.documents, counted.exact) == (2, 1)


def test_a_short_text_counts_in_any_case_and_space_and_not_with_another_sign(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer
) -> None:
    same = ["What is  12 − 7?\n", "WHAT IS 12 - 7?", "\ufeffwhat is\t12 – 7?"]
    others = ["What is 12 + 7?", "What is 1 2 - 7?", "What is 12 - 7", "12 - 7", "What is 12 - 7? 5"]
    data = data_of(
        Source(
            name="a",
            path=str(write_jsonl("a.jsonl", [*essays(20, 23), *same, *others])),
            holdout=str(write_jsonl("h.jsonl", [*essays(3, 24), "What is 12 - 7?", " \n", ""])),
        ),
        overlap="drop",
    )
    found = shards(data, small_tokenizer).shards["a"]
    assert found.overlap is not None
    assert (found.overlap.documents, found.overlap.exact) == (3, 3)
    kept = texts(found.train, small_tokenizer)
    assert set(others) <= set(kept)
    assert not set(same) & set(kept)


def test_what_many_held_out_texts_have_in_common_is_no_overlap(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer
) -> None:
    licence = essays(1, 9, 20)[0]
    for copies, expected in ((3, 10), (4, 0)):
        data = data_of(
            Source(
                name="a",
                path=str(write_jsonl("a.jsonl", [f"{text} {licence}" for text in essays(10, 10)])),
                holdout=str(write_jsonl(f"h{copies}.jsonl", [f"{licence} {t}" for t in essays(copies, 11)])),
            ),
        )
        counted = shards(data, small_tokenizer).shards["a"].overlap
        assert counted is not None
        assert counted.documents == expected


def test_what_many_training_documents_have_in_common_is_no_overlap_unless_a_benchmark_asks_it(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Brown et al. ignore words that more than ten training documents have."""
    licence, *held = essays(4, 9, 20)
    (tmp_path / "asked.jsonl").write_text(json.dumps({"question": licence}) + "\n")
    for copies, expected in ((10, 10), (11, 0)):
        data = data_of(
            Source(
                name="a",
                path=str(write_jsonl(f"a{copies}.jsonl", [f"{text} {licence}" for text in essays(copies, 10, 60)])),
                holdout=str(write_jsonl("h.jsonl", [f"{licence} {held[0]}", *held[1:]])),
            ),
        )
        counted = shards(data, small_tokenizer).overlap["a"]
        assert (counted["documents"], counted["formulas"]) == (expected, copies - expected)
        assert (counted["held_out_share"] > 0) == (expected > 0)
        asked = replace(data, benchmarks=(Benchmark(name="asked", path=str(tmp_path / "asked.jsonl")),))
        assert shards(asked, small_tokenizer).overlap["a"]["documents"] == copies


def test_a_document_of_held_out_text_for_the_most_part_overlaps_however_often_it_is_there(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer
) -> None:
    held, *rest = essays(21, 31, 60)
    copies = [f"{held} {' '.join(text.split()[:20])}" for text in rest]
    data = data_of(
        Source(
            name="a", path=str(write_jsonl("a.jsonl", [*copies, *essays(30, 32)])),
            holdout=str(write_jsonl("h.jsonl", [held])),
        ),
        overlap="drop",
    )  # fmt: skip
    found = shards(data, small_tokenizer)
    counted = found.overlap["a"]
    assert (counted["documents"], counted["mostly"], counted["exact"]) == (20, 20, 0)
    assert counted["held_out_share"] == 1.0
    assert len(found.shards["a"].train.starts) == 30
    assert "20 half of it or more" in str(found.shards["a"].overlap)
    assert "which is 100.0% of the source's own held-out text" in str(found.shards["a"].overlap)


def test_a_log_of_a_run_that_counted_less_can_still_be_told() -> None:
    told = str(Overlap(documents=3, exact=1, tokens=9, of_documents=50, with_texts={"arc": 3}, dropped=True))
    assert told == (
        "3 of 50 training documents repeat held-out or scored text (1 all of it, the others 13 words or more; of arc 3)"
    )


def test_benchmark_questions_are_kept_out(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    questions = [text.replace(".", "?") for text in essays(20, 12, 16)]
    rows = [
        {"id": n, "question": q, "choices": {"text": ["yes", "no"], "label": ["A", "B"]}}
        for n, q in enumerate(questions)
    ]
    (tmp_path / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    leaked = [f"Exam. Q: {questions[3]}\nA: yes", f"{questions[11]} Who knows."]
    data = data_of(
        Source(name="web", path=str(write_jsonl("web.jsonl", essays(50, 13) + leaked))),
        benchmarks=(Benchmark(name="arc", path=str(tmp_path / "arc.jsonl")),),
        overlap="drop",
    )
    found = shards(data, small_tokenizer)
    assert found.overlap["web"]["with_texts"] == {"arc": 2}
    assert not set(leaked) & set(texts(found.shards["web"].train, small_tokenizer))
    one_field = replace(data, benchmarks=(Benchmark(name="arc", path=str(tmp_path / "arc.jsonl"), text="question"),))
    assert shards(one_field, small_tokenizer).overlap["web"]["documents"] == 2
    missing = replace(data, benchmarks=(Benchmark(name="arc", path=str(tmp_path / "ark.jsonl")),))
    with pytest.raises(ConfigError, match=r"ark\.jsonl' names no text files; did you mean '.*arc\.jsonl'"):
        shards(missing, small_tokenizer)


def test_a_source_of_nothing_but_held_out_text_cannot_be_cleaned(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer
) -> None:
    same = essays(10, 14)
    source = Source(name="a", path=str(write_jsonl("a.jsonl", same)), holdout=str(write_jsonl("h.jsonl", same)))
    with pytest.raises(DataError, match=r"data\.sources\.a: every training document repeats held-out or scored text"):
        shards(data_of(source, overlap="drop"), small_tokenizer)


def test_what_is_only_evaluated_is_held_out_text_and_has_no_training_documents(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer
) -> None:
    """A source of weight 0: training draws nothing from it, so nothing of it is counted or left out."""
    held, leaked = essays(6, 28), essays(2, 29)
    copies = str(write_jsonl("copies.jsonl", held + leaked))
    data = data_of(
        Source(name="a", path=str(write_jsonl("a.jsonl", [*essays(30, 30), *leaked])), holdout=copies),
        Source(name="only scored", path=str(write_jsonl("b.jsonl", held)), holdout=copies, weight=0),
        overlap="drop",
    )
    found = shards(data, small_tokenizer)
    assert found.overlap["a"]["with_texts"] == {"a (held out)": 2, "only scored (held out)": 2}
    assert found.shards["only scored"].overlap is None
    again = replace(data, sources=(data.sources[0], replace(data.sources[1], weight=1.0)))
    with pytest.raises(DataError, match=r"data\.sources\.only scored: every training document repeats"):
        shards(again, small_tokenizer)


def test_it_is_counted_once_and_again_when_something_changed(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(Source(name="a", path=str(write_jsonl("a.jsonl", essays(40, 15)))))
    first = shards(data, small_tokenizer)
    calls: list[str] = []
    real = overlap._count
    monkeypatch.setattr(overlap, "_count", lambda *rest: calls.append("counted") or real(*rest))
    assert shards(data, small_tokenizer).overlap == first.overlap
    assert calls == []
    write_jsonl("a.jsonl", essays(41, 15))
    shards(data, small_tokenizer)
    assert calls == ["counted"]


def test_what_is_kept_of_a_cleaned_source_is_compared_when_it_is_opened(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer
) -> None:
    same, more = essays(10, 16), essays(30, 17)
    source = Source(name="a", path=str(write_jsonl("a.jsonl", same + more)), holdout=str(write_jsonl("h.jsonl", same)))
    data = data_of(source, overlap="drop")
    path = shards(data, small_tokenizer).shards["a"].train.path
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.unlink()  # the other is mapped
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged \(.*0\.tokens is not as it was saved.*delete the folder to make it"):
        shards(data, small_tokenizer)


def plain(text: str) -> str:
    """The same by Python's own strings: what `pieces` holds, spelt in one way."""
    for one, other in (("\u00ad", ""), ("\u200b", ""), ("´", "'"), ("’", "'"), ("—", "-")):
        text = text.replace(one, other)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def slow_grams(text: str) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in plain(text)).split()
    return {tuple(words[n : n + WORDS_IN_COMMON]) for n in range(len(words) - WORDS_IN_COMMON + 1)}


SPELLINGS = ["a", "b", "é", "É", "e\u0301", "漢", "，", "\ufb01", "ß", "İ", "’", "'", "´", "—", "-", "7", "A", "🙂"]
SPACES = [" ", "  ", "\n", ", ", "\u00a0", "\u3000", "\u00ad", "\u200b"]
pieces = st.lists(st.sampled_from(SPELLINGS + SPACES), max_size=80).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(pieces, min_size=1, max_size=6), st.lists(pieces, min_size=1, max_size=6))
def test_hashes_agree_with_words(some: list[str], others: list[str]) -> None:
    prints = [prints_of(next(overlap._of_texts(texts))) for texts in (some, others)]
    for n, text in enumerate(some):
        mine = set(prints[0].grams[prints[0].gram_documents == n].tolist())
        for m, other in enumerate(others):
            theirs = set(prints[1].grams[prints[1].gram_documents == m].tolist())
            assert len(mine & theirs) == len(slow_grams(text) & slow_grams(other))
            assert bool(prints[0].texts[n]) == bool(plain(text))
            assert (prints[0].texts[n] == prints[1].texts[m]) == (plain(text) == plain(other))


def test_a_document_longer_than_a_chunk_is_looked_at_in_parts(
    write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = essays(3, 16)
    long = " ".join([*essays(20, 17), held[1], *essays(20, 18)])
    data = data_of(
        Source(
            name="a",
            path=str(write_jsonl("a.jsonl", [*essays(20, 19), long, *essays(20, 20)])),
            holdout=str(write_jsonl("h.jsonl", held)),
        ),
        overlap="drop",
    )
    monkeypatch.setattr(overlap, "_TOKENS_AT_ONCE", 500)
    found = shards(data, small_tokenizer).shards["a"]
    assert found.overlap is not None
    assert found.overlap.documents == 1
    assert long not in texts(found.train, small_tokenizer)
    assert len(found.train.starts) == 40


@pytest.mark.parametrize("side", ["training", "held out", "scored"])
def test_thirteen_words_at_any_place_of_a_long_text_are_found(
    side: str, write_jsonl: Write, data_of: DataOf, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one part ends and the next begins."""
    monkeypatch.setattr(overlap, "_TOKENS_AT_ONCE", 500)
    monkeypatch.setattr(overlap, "_CHARACTERS_AT_ONCE", 1500)
    monkeypatch.setattr(overlap, "_TOKENS_AGAIN", 250)
    quotes = [" ".join(text.split()[5:18]) for text in essays(12, 25)]
    filler = essays(40, 26)
    long = " ".join([f"{' '.join(filler[n].split()[: 20 + 3 * n])} {quote}." for n, quote in enumerate(quotes)])
    alone = [f"It says: {quote} (end)" for quote in quotes]
    training, other = ([*filler[20:], long], alone) if side == "training" else ([*filler[20:], *alone], [long])
    held = other if side != "scored" else essays(2, 27)
    data = data_of(
        Source(name="a", path=str(write_jsonl("a.jsonl", training)), holdout=str(write_jsonl("h.jsonl", held))),
        benchmarks=(Benchmark(name="b", path=str(write_jsonl("b.jsonl", other))),) if side == "scored" else (),
    )
    counted = shards(data, small_tokenizer).shards["a"].overlap
    assert counted is not None
    assert counted.documents == (1 if side == "training" else len(alone))
