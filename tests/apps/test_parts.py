"""What the pages are made of, without a page: addresses, maps on the way to the browser, what is cached."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from threading import Lock
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("streamlit", reason="the explorer needs the [app] extra")


from apps.parts.address import PACKED, pack, unpack
from apps.parts.caching import PartialReading
from apps.parts.checkpoints import Opened
from apps.parts.continuing import Continuation
from apps.parts.exports import table_svg
from apps.parts.flags import COLORS, evidence, judge, trust
from apps.parts.heatmap import CODES, Side, spans, visible_squares
from apps.parts.heatmap import pack as pack_weights
from apps.parts.text import plain
from apps.parts.tokens import furthest, pieces
from shardscope import load
from shardscope.failures import ORDER, SuitePrompt
from shardscope.microscope import read
from shardscope.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("words", "failure", "marked"),
    [
        (" a b" * 12, "loop", " a b" * 12),
        ("fine then ?????????? and on", "breakdown", "??????????"),
        ("Fine.", "no flag", ""),
    ],
)
def test_the_evidence_is_the_span_that_the_label_names(
    tiny_tokenizer: Tokenizer, words: str, failure: str, marked: str
) -> None:
    sample = Continuation(tuple(tiny_tokenizer.encode(words)), words, "length")
    labels = judge(SuitePrompt(text="So", domain="prose"), sample, tiny_tokenizer)
    assert labels.primary == failure
    spans = evidence(sample, labels, tiny_tokenizer)
    cut = pieces(words, spans)
    assert "".join(text for _, text, *_ in cut) == words
    assert [words[start:end].strip() for start, end, *_ in spans[:1]] == [marked.strip()] * bool(marked)
    assert all(trust(flag, labels).endswith("%)") for flag in labels.flags)


def test_overlapping_spans_keep_the_first_ones_colour_and_all_words() -> None:
    assert pieces("abcdef", [(2, 4, "red", "breakdown"), (1, 9, "blue", "drift?")]) == [
        ("output", "a", "", ""),
        ("mark", "b", "blue", "drift?"),
        ("mark", "cd", "red", "breakdown, drift?"),
        ("mark", "ef", "blue", "drift?"),
    ]


def test_no_label_is_green_and_each_has_a_colour() -> None:
    assert set(COLORS) == {"no flag", *ORDER}
    assert "green" not in COLORS.values()


def test_markdown_in_a_sentence_is_escaped() -> None:
    assert plain("*a* <b>\n[c](d)") == "\\*a\\* \\<b\\> \\[c\\]\\(d\\)"


def test_a_map_sends_only_the_squares_that_its_head_can_see() -> None:
    for window, cell in ((None, 1), (3, 1), (None, 2), (3, 2)):
        side = Side("", 0, 7, cell)
        squares = {(int(q), int(k)) for q, k in np.argwhere(visible_squares(side, side, window, distance=False))}
        pairs = {(q, k) for q in range(7) for k in range(q + 1) if window is None or q - k < window}
        assert squares == {(q // cell, k // cell) for q, k in pairs}
        rows = visible_squares(side, Side("", 2, 7, cell), window, distance=False)
        for row, (first, end) in zip(rows, spans(rows), strict=True):
            assert np.flatnonzero(row).tolist() == list(range(first, end))
    band = visible_squares(Side("", 0, 5), Side("", 0, 3), 3, distance=True)
    assert band.sum(axis=1).tolist() == [1, 2, 3, 3, 3]


def test_a_weight_survives_the_way_to_the_browser() -> None:
    weights = np.linspace(0, 1, 4001).reshape(1, -1).astype(np.float32)
    seen = np.ones_like(weights, dtype=bool)
    seen[0, 7] = False
    sent = np.frombuffer(base64.b64decode(pack_weights(weights, seen)), dtype="<u2")
    back = (sent / CODES) ** 2
    np.testing.assert_allclose(back, np.delete(weights, 7), atol=2e-5)


@pytest.mark.parametrize("prompt", ["a" * 50_000, "שלום <script>\x00" * 400, PACKED + "not packed"])
def test_a_long_prompt_is_packed_into_the_address_and_comes_back(prompt: str) -> None:
    assert len(pack(prompt)) < len(prompt) or len(prompt) < 100
    assert unpack(pack(prompt)) == prompt


LONE_SURROGATE = PACKED + base64.urlsafe_b64encode(zlib.compress("a\ud800b".encode("utf-8", "surrogatepass"))).decode()


@pytest.mark.parametrize("text", [PACKED, PACKED + "@@@@", PACKED + "AAAA", PACKED + "שלום", LONE_SURROGATE])
def test_a_damaged_packed_prompt_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        unpack(text)


def test_a_packed_prompt_cannot_unfold_without_end() -> None:
    with pytest.raises(ValueError, match="longer than any context"):
        unpack(pack("a" * 20_000_000))


def test_a_table_that_is_saved_as_a_picture_is_well_formed_and_holds_no_markup() -> None:
    table = pd.DataFrame({"token": ["<script>alert(1)</script>", "a\x00\nb & c"], "share": [0.125, 1e-9]})
    texts = [element.text for element in ElementTree.fromstring(table_svg(table)).iter() if element.text]
    assert texts == ["token", "share", "<script>alert(1)</script>", "0.125", "a␀↵b & c", "1e-09"]
    assert "and 40 more rows" in table_svg(pd.DataFrame({"row": range(240)}))


def test_the_strongest_tokens_outside_the_strip_are_named_first() -> None:
    tint = np.array([0.1, 0.0, 0.9, 0.9, 0.5, 0.0001])
    assert furthest(tint, range(2, 4), 3) == [4, 0]
    assert furthest(tint, range(2, 4), 1) == [4]
    assert furthest(tint, range(6), 3) == []


def test_a_prompt_is_read_as_far_as_the_layer_that_is_shown_and_goes_on_from_there(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    opened = Opened("tiny", tiny_checkpoint, "fingerprint", None, model, Lock())
    partial = PartialReading(opened, tuple(range(20)))
    whole = read(model, torch.arange(20))
    assert torch.equal(partial.upto(1).q, whole.layers[1].q)
    assert len(partial.layers) == 2
    with model.hooks([("blocks.2.hook_resid_pre", lambda x, hook: 1 / 0)]), pytest.raises(ZeroDivisionError):
        partial.upto(3)
    assert torch.equal(partial.upto(3).k, whole.layers[3].k), "what broke off is begun anew"


def test_the_table_of_the_pages_speed_is_the_one_that_the_json_gives() -> None:
    from page_speed import table

    docs = Path(__file__).parents[2] / "docs"
    report = json.loads((docs / "benchmarks" / "explorer-cpu.json").read_text(encoding="utf-8"))
    assert f"\n{table(report)}\n" in (docs / "explorer.md").read_text(encoding="utf-8")
