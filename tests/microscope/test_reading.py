"""Every view of a reading, against the dense pattern that the model's own hook writes out, or that numpy does."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shardscope import Shard, ShardConfig
from shardscope.interop import to_transformer_lens
from shardscope.microscope import LayerReading, MicroscopeError, Reading, ablated, forward, read, read_layers
from shardscope.microscope.reading import BLOCK_ROWS, MAX_TILE, cell_sizes
from shardscope.model import PromptError, shard

IDS = torch.arange(50) * 7 % 300
LONG = 700


def dense(layer: LayerReading, head: int) -> np.ndarray:
    """Softmax of the scaled, masked scores in numpy's float64."""
    q, k = layer.q[:, head].double().numpy(), layer.k[:, head].double().numpy()
    distance = np.arange(len(q))[:, None] - np.arange(len(q))
    visible = (distance >= 0) & (distance < (layer.window or len(q)))
    scores = np.where(visible, q @ k.T / q.shape[1] ** 0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def long_layers() -> dict[str, LayerReading]:
    """Peaked attention over more tokens than a block holds, with a window that no block or cell divides."""
    torch.manual_seed(0)
    q, k = (2 * torch.randn(LONG, 2, 16) for _ in range(2))
    assert 4 * BLOCK_ROWS["cpu"] < LONG
    return {"sliding": LayerReading(0, 203, q, k), "global": LayerReading(1, None, q, k)}


KINDS = pytest.mark.parametrize("kind", ["sliding", "global"])


def test_tiles_equal_the_pattern_of_the_models_own_hook(tiny_model: Shard) -> None:
    reading = read(tiny_model, IDS)
    _, cache = tiny_model.run_with_cache(IDS[None], names_filter=lambda name: name.endswith("hook_pattern"))
    for layer in reading.layers:
        for head in range(layer.n_heads):
            tile = layer.tile(head, range(50), range(50))
            np.testing.assert_allclose(tile, cache["pattern", layer.layer][0, head].numpy(), atol=1e-5)


def test_tiles_equal_what_transformer_lens_caches(trained_model: Shard) -> None:
    pytest.importorskip("transformer_lens")
    ids = torch.randint(300, (200,), generator=torch.Generator().manual_seed(1))
    _, cache = to_transformer_lens(trained_model).run_with_cache(ids[None])
    for layer in read(trained_model, ids).layers:
        for head in range(layer.n_heads):
            theirs = cache["pattern", layer.layer][0, head].detach().numpy()
            np.testing.assert_allclose(layer.tile(head, range(150, 200), range(200)), theirs[150:], atol=1e-5)


def test_a_block_in_pieces_is_the_models_own_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a piece of the band and than a piece of the MLP, and by no multiple of either."""
    monkeypatch.setattr(shard, "MLP_POSITIONS", 200)
    config = ShardConfig(vocab_size=64, n_ctx=900, d_model=32, n_layers=2, n_heads=2, d_head=16, d_mlp=48, window=300)
    torch.manual_seed(0)
    model = Shard(config).eval()
    for block in model.blocks:
        for pos in (900, 257, 31):
            x = torch.randn(1, pos, 32)
            whole = block(x)
            with torch.no_grad():
                torch.testing.assert_close(block(x, attend=forward.attend_in_bands), whole)


def test_a_reading_tells_sliding_layers_from_global_ones(tiny_model: Shard) -> None:
    kinds = [(layer.layer, layer.kind, layer.window) for layer in read(tiny_model, IDS).layers]
    assert kinds == [(0, "sliding", 8), (1, "global", None), (2, "sliding", 8), (3, "global", None)]


@KINDS
def test_any_rectangle_is_exact(long_layers: dict[str, LayerReading], kind: str) -> None:
    layer, exact = long_layers[kind], dense(long_layers[kind], 1)
    for queries, keys in (
        (range(LONG), range(LONG)),
        (range(100, 430), range(90, 350)),
        (range(699, 700), range(LONG)),
        (range(0, 1), range(0, 1)),
        (range(10, 20), range(500, 700)),
        (range(600, 700), range(0, 100)),
    ):
        part = exact[queries.start : queries.stop, keys.start : keys.stop]
        np.testing.assert_allclose(layer.tile(1, queries, keys), part, atol=1e-5)


@KINDS
def test_rows_and_columns_are_those_of_the_dense_pattern(long_layers: dict[str, LayerReading], kind: str) -> None:
    layer, exact = long_layers[kind], dense(long_layers[kind], 0)
    for token in (0, 1, 202, 203, 511, LONG - 1):
        np.testing.assert_allclose(layer.row(0, token), exact[token], atol=1e-5)
        np.testing.assert_allclose(layer.column(0, token), exact[:, token], atol=1e-5)


def test_a_sliding_head_never_reads_past_its_window(long_layers: dict[str, LayerReading]) -> None:
    pattern = long_layers["sliding"].tile(0, range(LONG), range(LONG))
    distance = np.arange(LONG)[:, None] - np.arange(LONG)
    assert (pattern[(distance < 0) | (distance >= 203)] == 0).all()
    assert pattern[400, 198] > 0
    assert pattern[400, 197] == 0
    assert long_layers["sliding"].column(0, 100)[303:].max() == 0


@KINDS
def test_a_band_is_the_pattern_by_distance(long_layers: dict[str, LayerReading], kind: str) -> None:
    layer, exact = long_layers[kind], dense(long_layers[kind], 1)
    queries, distances = range(150, 450), range(5, 203)
    band = layer.band(1, queries, distances)
    assert band.shape == (300, 198)
    query, distance = np.ogrid[150:450, 5:203]
    expected = np.where(query >= distance, exact[query, query - distance], 0)
    np.testing.assert_allclose(band, expected, atol=1e-5)


@KINDS
@pytest.mark.parametrize("max_cells", [1, 32, 90, 512, 700])
def test_a_pooled_map_is_the_mean_and_maximum_of_the_dense_pattern(
    long_layers: dict[str, LayerReading], kind: str, max_cells: int
) -> None:
    exact = dense(long_layers[kind], 0)
    pooled = long_layers[kind].pooled(0, max_cells)
    starts = np.arange(0, LONG, pooled.cell)
    sizes = cell_sizes(LONG, pooled.cell)
    sums = np.add.reduceat(np.add.reduceat(exact, starts, axis=0), starts, axis=1)
    largest = np.maximum.reduceat(np.maximum.reduceat(exact, starts, axis=0), starts, axis=1)
    assert len(pooled.mean) <= max_cells
    assert sizes.sum() == LONG
    np.testing.assert_allclose(pooled.mean, sums / sizes[:, None] / sizes, atol=1e-6)
    np.testing.assert_allclose(pooled.max, largest, atol=1e-5)
    np.testing.assert_allclose(pooled.mass.sum(axis=1), 1, atol=1e-4)


@KINDS
@pytest.mark.parametrize("max_cells", [1, 7, 64, 512])
def test_a_pooled_rectangle_is_the_mean_and_maximum_of_the_tile(
    long_layers: dict[str, LayerReading], kind: str, max_cells: int
) -> None:
    """Also where the rectangle lies partly or wholly outside what its queries see."""
    layer = long_layers[kind]
    for queries, keys in (
        (range(100, 513), range(90, 351)),
        (range(10, 20), range(500, 700)),
        (range(3, 698), range(5)),
    ):
        pooled, tile = layer.pooled(1, max_cells, queries, keys), layer.tile(1, queries, keys)
        rows, columns = (np.arange(0, len(side), pooled.cell) for side in (queries, keys))
        sizes = cell_sizes(len(queries), pooled.cell)[:, None] * cell_sizes(len(keys), pooled.cell)
        sums = np.add.reduceat(np.add.reduceat(tile, rows, axis=0), columns, axis=1)
        largest = np.maximum.reduceat(np.maximum.reduceat(tile, rows, axis=0), columns, axis=1)
        assert (pooled.queries, pooled.keys, max(pooled.mean.shape) <= max_cells) == (queries, keys, True)
        np.testing.assert_allclose(pooled.mean, sums / sizes, atol=1e-6)
        np.testing.assert_allclose(pooled.max, largest, atol=1e-6)
        if pooled.cell == 1:
            np.testing.assert_allclose(pooled.mean, tile, atol=1e-7)


@pytest.mark.parametrize("max_cells", [1, 17, 100, 512])
def test_a_pooled_band_spends_no_square_outside_the_window(
    long_layers: dict[str, LayerReading], max_cells: int
) -> None:
    layer = long_layers["sliding"]
    band, pooled = layer.band(1, range(LONG), range(203)), layer.pooled_band(1, max_cells)
    rows, columns = np.arange(0, LONG, pooled.cell), np.arange(0, 203, pooled.distance_cell)
    assert pooled.mean.shape == (len(rows), len(columns))
    assert max(pooled.mean.shape) <= max_cells
    sizes = cell_sizes(LONG, pooled.cell)[:, None] * cell_sizes(203, pooled.distance_cell)
    sums = np.add.reduceat(np.add.reduceat(band, rows, axis=0), columns, axis=1)
    np.testing.assert_allclose(pooled.mean, sums / sizes, atol=1e-6)
    largest = np.maximum.reduceat(np.maximum.reduceat(band, rows, axis=0), columns, axis=1)
    np.testing.assert_allclose(pooled.max, largest, atol=1e-6)


@KINDS
def test_a_coarser_map_is_the_one_that_pooling_further_gives(long_layers: dict[str, LayerReading], kind: str) -> None:
    coarser, direct = long_layers[kind].pooled(1, 350).coarser(88), long_layers[kind].pooled(1, 88)
    assert coarser.cell == direct.cell == 8
    np.testing.assert_allclose(coarser.mean, direct.mean, atol=1e-6)
    np.testing.assert_array_equal(coarser.max, direct.max)


@KINDS
def test_the_row_logsumexp_is_that_of_the_scores(long_layers: dict[str, LayerReading], kind: str) -> None:
    layer = long_layers[kind]
    scores = torch.einsum("qhd,khd->hqk", layer.q, layer.k) / 4
    distance = torch.arange(LONG)[:, None] - torch.arange(LONG)
    hidden = (distance < 0) | (distance >= (layer.window or LONG))
    expected = scores.double().masked_fill(hidden, -torch.inf).logsumexp(dim=-1)
    torch.testing.assert_close(layer.logsumexp.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_view_of_a_long_prompt_holds_its_dense_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    n = 5000
    largest = {"softmax": 0, "log_softmax": 0}

    def watch(name: str, real: Callable[..., torch.Tensor]) -> None:
        def watched(scores: torch.Tensor, dim: int) -> torch.Tensor:
            largest[name] = max(largest[name], scores.numel())
            return real(scores, dim=dim)

        monkeypatch.setattr(torch.Tensor, name, watched)

    for name in largest:
        watch(name, getattr(torch.Tensor, name))
    layer = LayerReading(0, None, torch.randn(n, 1, 4), torch.randn(n, 1, 4))
    layer.pooled(0)
    layer.column(0, 17)
    layer.tile(0, range(4000, 4500), range(300))
    assert all(0 < numbers <= BLOCK_ROWS["cpu"] * n for numbers in largest.values())


def test_reading_reports_its_progress_and_leaves_no_hook_behind(tiny_model: Shard) -> None:
    told: list[tuple[float, str]] = []
    read(tiny_model, IDS, progress=lambda share, words: told.append((share, words)))
    assert [share for share, _ in told] == [0.25, 0.5, 0.75, 1.0]
    assert told[-1][1] == "read layer 4 of 4"
    assert not any(point.watched for point in tiny_model.hook_dict.values())


def test_a_layer_is_read_without_those_after_it(tiny_model: Shard) -> None:
    whole = read(tiny_model, IDS)
    ran: list[int] = []
    hooks = [(f"blocks.{layer}.hook_resid_post", lambda x, hook: ran.append(hook.layer())) for layer in range(4)]
    with tiny_model.hooks(hooks):
        layers = read_layers(tiny_model, IDS)
        assert [next(layers).layer, next(layers).layer] == [0, 1]
        assert ran == [0, 1]
        last = list(layers)[-1]
    assert ran == [0, 1, 2], "of the last layer only queries and keys are computed"
    assert torch.equal(last.q, whole.layers[3].q)
    assert torch.equal(last.k, whole.layers[3].k)


def test_a_reading_within_an_ablation_is_of_the_ablated_model(tiny_model: Shard) -> None:
    whole = read(tiny_model, IDS)
    with ablated(tiny_model, [(1, 2)]):
        without = read(tiny_model, IDS)
    assert torch.equal(whole.layers[1].q, without.layers[1].q)
    assert not torch.allclose(whole.layers[2].q, without.layers[2].q)


def test_a_bfloat16_model_is_read_in_its_own_queries_and_weighed_in_float32(tiny_model: Shard) -> None:
    layer = read(tiny_model.bfloat16(), IDS).layers[3]
    assert layer.q.dtype == torch.bfloat16
    np.testing.assert_allclose(layer.tile(2, range(50), range(50)), dense(layer, 2), atol=1e-5)


def test_a_single_token_reads_itself(tiny_model: Shard) -> None:
    for layer in read(tiny_model, IDS[:1]).layers:
        assert layer.tile(0, range(1), range(1)).tolist() == [[1.0]]
        assert layer.pooled(0).mean.tolist() == [[1.0]]
        assert layer.column(0, 0).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (IDS[:0], "the prompt is empty: it holds no token"),
        (torch.zeros(65, dtype=torch.long), "65 tokens do not fit this model's context of 64; pass at least 1 fewer"),
        (torch.tensor([5, 300]), "token id 300 is outside the vocabulary of 300"),
        (torch.tensor([-1]), "token id -1 is outside"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused_in_one_sentence(
    tiny_model: Shard, ids: torch.Tensor, says: str
) -> None:
    with pytest.raises(PromptError, match=says):
        read(tiny_model, ids)


def test_what_is_not_there_is_refused_in_one_sentence(tiny_model: Shard) -> None:
    reading = read(tiny_model, IDS)
    layers, some = reading.layers, range(10)
    assert reading.layer(3) is layers[3]
    for call, says in (
        (lambda: reading.layer(4), "there is no layer 4; this model has layers 0 to 3"),
        (lambda: reading.layer(-1), "there is no layer -1"),
        (lambda: layers[0].tile(4, some, some), "there is no head 4; layer 0 has heads 0 to 3"),
        (lambda: layers[0].pooled(-1), "there is no head -1"),
        (lambda: layers[1].row(0, 50), "there is no token 50; this prompt has tokens 0 to 49"),
        (lambda: layers[1].column(0, -1), "there is no token -1"),
        (lambda: layers[1].tile(0, range(40, 51), some), "queries=range.40, 51. is not a stretch of what is there"),
        (lambda: layers[1].tile(0, some, range(5, 5)), "keys=range.5, 5. is not a stretch"),
        (lambda: layers[1].tile(0, range(0, 10, 2), some), "queries=range.0, 10, 2. is not a stretch"),
        (lambda: layers[0].band(0, some, range(9)), "distances=range.0, 9. .* layer 0 sees distances 0 to 7"),
        (lambda: layers[1].pooled_band(0), "layer 1 is global and has no window"),
        (lambda: layers[0].pooled(0, 0), "max_cells=0 leaves nothing to draw"),
        (lambda: layers[0].pooled(0, queries=range(9, 9)), "queries=range.9, 9. is not a stretch"),
        (lambda: layers[0].pooled(0, keys=range(40, 51)), "keys=range.40, 51. is not a stretch"),
    ):
        with pytest.raises(MicroscopeError, match=says):
            call()


def test_a_tile_too_large_to_hold_is_refused() -> None:
    n = int(MAX_TILE**0.5) + 1
    layer = LayerReading(0, None, torch.zeros(n, 1, 2), torch.zeros(n, 1, 2))
    with pytest.raises(MicroscopeError, match="a tile of 2049 × 2049 tokens is too large"):
        layer.tile(0, range(n), range(n))
    with pytest.raises(MicroscopeError, match="a band of 2049 × 2049 is too large"):
        layer.band(0, range(n), range(n))


def test_a_reading_knows_its_prompt(tiny_model: Shard, tiny_config: ShardConfig) -> None:
    reading = read(tiny_model, IDS)
    assert isinstance(reading, Reading)
    assert (reading.n_tokens, reading.config, len(reading.layers)) == (50, tiny_config, 4)
    assert torch.equal(reading.ids, IDS)


# ------------------------------------------------------------------------------------------------ one head


def test_a_head_s_map_is_that_of_its_layer(tiny_model: Shard) -> None:
    reading = read(tiny_model, IDS)
    for layer, head in ((0, 3), (1, 0)):
        found, whole = reading.head(layer, head), dense(reading.layer(layer), head)
        np.testing.assert_allclose(found.tile(), whole, atol=1e-6)
        np.testing.assert_allclose(found.tile(range(5, 20), range(9)), whole[5:20, :9], atol=1e-6)
        np.testing.assert_allclose(found.row(7), whole[7], atol=1e-6)
        np.testing.assert_allclose(found.column(3), whole[:, 3], atol=1e-6)
        reach = 50 if layer else 8
        by_distance = [[whole[q, q - d] if d <= q else 0 for d in range(reach)] for q in range(50)]
        np.testing.assert_allclose(found.band(), by_distance, atol=1e-6)
        np.testing.assert_array_equal(found.pooled(10).mean, reading.layer(layer).pooled(head, 10).mean)


def test_a_head_shows_as_its_picture(tiny_model: Shard, tmp_path: Path) -> None:
    """Pillow, which wrote none of it, reads the picture: bright where weight is, grey where nothing can be seen."""
    image = pytest.importorskip("PIL.Image")
    found = read(tiny_model, IDS).head(0, 2)
    whole = found.tile()
    with image.open(found.save(tmp_path / "head.png")) as opened:
        drawn = np.array(opened.convert("RGB"))
    assert drawn.shape[:2] == (300, 300)  # six pixels a token
    drawn = drawn[::6, ::6].astype(int)
    hidden = np.triu(np.ones((50, 50), bool), 1) | np.tril(np.ones((50, 50), bool), -8)
    assert (drawn[hidden] == (200, 200, 200)).all()
    seen = ~hidden & (whole > 0.002)
    order = np.argsort(whole[seen])
    assert (np.diff(drawn[..., 1][seen][order]) >= 0).all()  # viridis's green grows with the weight
    html = found._repr_html_()
    assert b64encode((tmp_path / "head.png").read_bytes()).decode() in html
    assert "layer 0, head 2 (sliding, window 8): 50 tokens" in html


def test_a_head_that_is_not_there_is_refused_in_one_sentence(tiny_model: Shard) -> None:
    reading = read(tiny_model, IDS)
    with pytest.raises(MicroscopeError, match="there is no head 4; layer 1 has heads 0 to 3"):
        reading.head(1, 4)
    with pytest.raises(MicroscopeError, match="there is no layer 9"):
        reading.head(9, 0)
