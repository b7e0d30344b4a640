"""The files of `shardscope attention`: the library's numbers, small enough, and nothing in them runs."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from shardscope import Shard, ShardConfig
from shardscope.checkpoint import save_checkpoint
from shardscope.cli import main
from shardscope.microscope import MicroscopeError, PooledMap, head_scores, read
from shardscope.microscope import export as room
from shardscope.microscope.picture import HIDDEN_PIXEL, palette, pixels, png
from shardscope.model import PromptError
from shardscope.tokenizer import Tokenizer

NASTY = (
    "<script>alert('x')</script> &amp; <img src=x onerror=alert(1)> \u202edlrow\u2069 \x07\x1b[31m سلام </pre></style>"
)
PROMPT = f"Once upon a time {NASTY} in a small village, there lived a clockmaker. " * 2


@pytest.fixture(scope="module")
def model() -> Shard:
    """More tokens than a page has cells, and markup in the vocabulary."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([NASTY] * 50, vocab_size=300)
    assert any("script" in tokenizer.token_text(id) for id in range(300))
    config = ShardConfig(vocab_size=300, n_ctx=512, d_model=32, n_layers=4, n_heads=4, d_head=8, d_mlp=48, window=40)
    return Shard(config, tokenizer).eval()


@pytest.fixture(scope="module")
def folder(model: Shard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("looking")
    written = room.export(model, PROMPT, out, "runs/<b>bold</b>")
    assert all(path.stat().st_size > 0 for path in written)
    return out


class Page(HTMLParser):
    """The tags, attributes and text that a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.inside: list[str] = []
        self.prompt = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.inside.append(tag)

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] == "pre":
            self.prompt += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre":
            self.inside.append("after")


def test_nothing_of_the_prompt_or_the_vocabulary_becomes_markup(folder: Path) -> None:
    page = Page((folder / "attention.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.tags.count("pre") == page.tags.count("style") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.prompt == PROMPT.replace("\u202e", "\\u202e").replace("\u2069", "\\u2069").replace("\x07", "␇").replace(
        "\x1b", "␛"
    )


def test_the_page_loads_nothing_and_its_policy_forbids_scripts(folder: Path) -> None:
    page = (folder / "attention.html").read_text(encoding="utf-8")
    policy = dict(Page(page).attributes)["content"]
    assert "default-src 'none'" in page
    assert policy is not None
    assert "script-src" not in page
    assert not re.findall(r"url\((?!data:image/png;base64,)", page)
    assert {
        value for name, value in Page(page).attributes if name in ("src", "href") and not value.startswith("#")
    } == set()  # type: ignore[union-attr]


def test_the_page_stays_under_two_megabytes_with_all_heads_of_the_published_shape(tmp_path: Path) -> None:
    """Noise is what PNG compresses worst; 96 heads of it, at twice the cells of the page."""
    torch.manual_seed(0)
    config = ShardConfig(vocab_size=300, n_ctx=600, d_model=32, d_head=32, d_mlp=16, window=100)
    model = Shard(config, Tokenizer.train([NASTY] * 50, vocab_size=300)).eval()
    with torch.no_grad():
        model.embed.W_E.mul_(20)
        for block in model.blocks:
            block.attn.W_Q.mul_(4)
    room.export(model, "".join(chr(33 + i * i % 90) for i in range(560)), tmp_path)
    page = tmp_path / "attention.html"
    assert 500_000 < page.stat().st_size <= 2_000_000
    assert page.read_text(encoding="utf-8").count("<section") == 96


def test_the_head_table_holds_the_librarys_scores(model: Shard, folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(folder / "heads.parquet")
    ids = torch.tensor(model.tokenizer.encode(PROMPT, bos=True))  # type: ignore[union-attr]
    scores = head_scores(read(model, ids))
    for row, score in zip(table.to_pylist(), scores, strict=True):
        assert (row["layer"], row["head"], row["kind"]) == (score.layer, score.head, score.kind)
        for name in room.SCORES:
            assert row[name] == pytest.approx(getattr(score, name), rel=1e-6)
        np.testing.assert_allclose(row["mass_by_distance"], score.mass_by_distance)
    assert table.schema.metadata[b"tokens"] == str(len(ids)).encode()
    tokens = parquet.read_table(folder / "tokens.parquet").to_pydict()
    assert tokens["id"] == ids.tolist()


def test_the_map_table_holds_every_visible_cell(model: Shard, folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(folder / "maps.parquet").to_pydict()
    ids = torch.tensor(model.tokenizer.encode(PROMPT, bos=True))  # type: ignore[union-attr]
    layers = read(model, ids).layers
    assert len(ids) > room.TABLE_CELLS
    for layer, head in ((0, 1), (3, 2)):
        chosen = (np.array(table["layer"]) == layer) & (np.array(table["head"]) == head)
        pooled = layers[layer].pooled(head, room.TABLE_CELLS)
        rebuilt = np.zeros_like(pooled.mean)
        rebuilt[np.array(table["query_cell"])[chosen], np.array(table["key_cell"])[chosen]] = np.array(table["mean"])[
            chosen
        ]
        np.testing.assert_allclose(rebuilt, pooled.mean, atol=1e-6)


def test_a_map_png_is_read_back_pixel_by_pixel(model: Shard, folder: Path) -> None:
    image_room = pytest.importorskip("PIL.Image")
    ids = torch.tensor(model.tokenizer.encode(PROMPT, bos=True))  # type: ignore[union-attr]
    layer = read(model, ids).layers[2]
    image = np.asarray(image_room.open(folder / "maps" / "L02H3.png").convert("RGB"))
    pooled = layer.pooled(3)
    np.testing.assert_array_equal(image, palette()[pixels(pooled, 40)])
    grey = (image == palette()[HIDDEN_PIXEL]).all(axis=-1)
    np.testing.assert_array_equal(grey, pooled.max == 0)
    assert len(list((folder / "maps").glob("*.png"))) == 16
    overview = np.asarray(image_room.open(folder / "overview.png"))
    assert overview.shape[0] == overview.shape[1]


def test_any_picture_survives_the_png(tmp_path: Path) -> None:
    image_room = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 256, (37, 91)).astype(np.uint8)
    opened = image_room.open(io.BytesIO(png(picture)))
    opened.load()
    np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), palette()[picture])


def test_a_tenfold_weight_is_always_as_much_brighter() -> None:
    mass = np.array([[1.0, 0.0], [0.1, 0.9], [0.01, 0.001], [1e-4, 1e-9]], dtype=np.float32)
    image = pixels(PooledMap(range(4), range(2), 1, mass, mass), window=None)
    assert image[:, 0].tolist() == pytest.approx([254, 190.5, 127, 0], abs=1)
    assert image[0, 1] == HIDDEN_PIXEL  # the future
    assert image[3, 1] == 0  # seen, but hardly read
    assert pixels(PooledMap(range(4), range(2), 1, mass, mass), window=2)[3, 1] == HIDDEN_PIXEL  # outside the window


def test_the_command_writes_the_files_and_says_which(
    model: Shard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "checkpoint", model)
    (tmp_path / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    words = [str(tmp_path / "checkpoint"), "--prompt-file", str(tmp_path / "prompt.txt"), "--out", str(tmp_path / "o")]
    assert main(["attention", *words]) == 0
    said = capsys.readouterr().out
    for name in ("attention.html", "overview.png", "heads.parquet", "maps.parquet", "tokens.parquet"):
        assert name in said
        assert (tmp_path / "o" / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--out", "taken.txt"), "--out taken.txt: .*taken.txt is not a folder"),
        (("--out", "taken.txt/below"), "--out taken.txt/below: .*taken.txt is not a folder"),
        (("--device", "foo"), "device='foo' is not a torch device"),
        (("--device", "cuda:99"), "device='cuda:99': "),
        (("--device", "meta"), "device='meta': Shardscope runs on cpu, cuda and mps"),
        (("--device", "hpu"), "device='hpu': Shardscope runs on cpu, cuda and mps"),
        (("--prompt-file", "none.txt"), "none.txt: cannot be read"),
        (("--prompt-file", "empty.txt"), "empty.txt: the file is empty"),
        (("--prompt-file", "binary.txt"), "binary.txt: cannot be read as UTF-8 text"),
    ],
)
def test_what_the_command_cannot_use_is_one_sentence(
    model: Shard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "checkpoint", model)
    (tmp_path / "taken.txt").write_text(PROMPT, encoding="utf-8")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    asked = {"--prompt-file": "taken.txt", "--out": "o", words[0]: words[1]}
    assert main(["attention", "checkpoint", *(part for pair in asked.items() for part in pair)]) == 1
    error = capsys.readouterr().err
    assert re.match(f"error: {says}", error)
    assert len(error.splitlines()) == 1


def test_a_prompt_that_cannot_be_exported_is_refused_in_one_sentence(model: Shard, tmp_path: Path) -> None:
    for call, says in (
        (lambda: room.export(model, "", tmp_path / "out"), "the prompt is empty"),
        (
            lambda: room.export(model, "word " * 100_000, tmp_path / "out"),
            "tokens do not fit this model's context of 512",
        ),
        (lambda: room.export(Shard(model.config), "text", tmp_path / "out"), "the checkpoint has no tokenizer"),
    ):
        with pytest.raises((MicroscopeError, PromptError), match=says):
            call()
    assert not (tmp_path / "out").exists()
