from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardscope.config import ConfigError
from shardscope.data import DataError, Mixture, TokenShard, document_starts, format_plan
from shardscope.data.permute import permuted

Shards = Callable[..., dict[str, TokenShard]]


@pytest.fixture
def counting_shards(tmp_path: Path) -> Shards:
    """Shards of ids that count up, so that a window tells where it was cut; documents of ten tokens."""

    def build(**lengths: int) -> dict[str, TokenShard]:
        for name, length in lengths.items():
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            np.arange(length, dtype=np.uint16).tofile(folder / "train.tokens")
            np.save(folder / "train.starts.npy", np.arange(0, length, 10))
            (folder / "train.origins.txt").write_text("".join(f"{name}:{n}\n" for n in range(0, length, 10)))
        return {name: TokenShard(tmp_path / name, "train") for name in lengths}

    return build


def mixture(shards: dict[str, TokenShard], batch_size: int = 8, seed: int = 0, **weights: float) -> Mixture:
    weights = weights or dict.fromkeys(shards, 1.0)
    return Mixture(shards, weights, seq_len=16, batch_size=batch_size, seed=seed)


@given(st.integers(1, 400), st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=60)
def test_a_permutation_visits_everything_once(n: int, key: int) -> None:
    assert sorted(permuted(place, n, key) for place in range(n)) == list(range(n))


def test_permutations_of_many_keys_put_every_number_everywhere() -> None:
    counts = np.zeros((7, 7))
    for key in range(2000):
        for place in range(7):
            counts[place, permuted(place, 7, key)] += 1
    # Each of the 49 counts is 286 in the mean, with a deviation of about 16.
    assert abs(counts - 2000 / 7).max() < 80


def test_a_batch_has_windows_of_seq_len_plus_one_and_their_sources(counting_shards: Shards) -> None:
    batch = mixture(counting_shards(a=500, b=300)).batch(3)
    assert batch.tokens.shape == (8, 17)
    assert batch.tokens.dtype == batch.sources.dtype == torch.int64
    assert (batch.tokens.diff(dim=1) == 1).all()  # a window is a stretch of its source
    assert batch.sources.tolist().count(0) == 4


def test_a_batch_depends_on_seed_and_step_alone(counting_shards: Shards) -> None:
    shards = counting_shards(a=500, b=300)
    straight = mixture(shards)
    in_order = [straight.batch(step).tokens for step in range(20)]
    for step in (19, 3, 11, 3):
        assert torch.equal(mixture(shards).batch(step).tokens, in_order[step])
    assert not torch.equal(mixture(shards, seed=1).batch(3).tokens, in_order[3])


def test_the_order_is_the_same_on_every_machine(counting_shards: Shards) -> None:
    batches = mixture(counting_shards(a=5000, b=3000), a=2.0, b=1.0)
    seen = np.concatenate([batches.batch(step).tokens[:, 0].numpy() for step in range(40)]).astype("<i8").tobytes()
    assert hashlib.sha256(seen).hexdigest()[:16] == "07b779dbb3a39271"


def test_a_step_far_away_takes_as_few_calls_as_the_first(counting_shards: Shards) -> None:
    batches = mixture(counting_shards(a=60_000, b=60_000))

    def calls(step: int) -> int:
        count = 0

        def counted(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(counted)
        try:
            batches.batch(step)
        finally:
            sys.setprofile(before)
        return count

    batches.batch(0)
    assert calls(10**12) < 3 * calls(1)


@pytest.mark.parametrize("length", [17, 18, 31, 32, 33, 47, 48, 500, 1000])
def test_an_epoch_visits_each_window_once_and_no_token_is_a_target_twice(counting_shards: Shards, length: int) -> None:
    batches = mixture(counting_shards(a=length), batch_size=1)
    windows = max(1, (length - 16) // 16)
    orders = []
    for epoch in range(3):
        rows = [batches.batch(epoch * windows + n).tokens[0].tolist() for n in range(windows)]
        targets = [token for row in rows for token in row[1:]]
        assert len(set(targets)) == len(targets) == 16 * windows
        assert len(targets) > length - 1 - 2 * 16
        orders.append([row[0] for row in rows])
    if length >= 500:
        assert orders[0] != sorted(orders[0])
        assert len({order[0] % 16 for order in orders}) > 1  # another offset in another epoch
        assert [start // 16 for start in orders[0]] != [start // 16 for start in orders[1]]


def test_over_the_epochs_every_token_is_a_target(counting_shards: Shards) -> None:
    batches = mixture(counting_shards(a=203), batch_size=11)
    seen = {token for step in range(200) for row in batches.batch(step).tokens.tolist() for token in row[1:]}
    assert seen == set(range(1, 203))


@pytest.mark.parametrize(
    "weights",
    [(1.0,), (0.5, 0.5), (0.7, 0.2, 0.1), (1e-3, 1.0), (3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0), (1.0, 1e-3, 0.4)],
)
def test_shares_converge_to_the_weights(counting_shards: Shards, weights: tuple[float, ...]) -> None:
    names = [f"s{n}" for n in range(len(weights))]
    batches = mixture(counting_shards(**dict.fromkeys(names, 400)), **dict(zip(names, weights, strict=True)))
    counts: Counter[int] = Counter()
    for step in range(300):
        counts.update(batches.batch(step).sources.tolist())
        for source, weight in enumerate(weights):
            assert abs(counts[source] - (step + 1) * 8 * weight / sum(weights)) <= len(weights)
    assert [plan.sequences for plan in batches.plan(300)] == [counts[source] for source in range(len(weights))]


def test_a_source_of_weight_zero_is_never_drawn(counting_shards: Shards) -> None:
    batches = mixture(counting_shards(a=400, b=5, c=400), a=1.0, b=0.0, c=1.0)
    assert batches.names == ("a", "c")
    assert {source for step in range(20) for source in batches.batch(step).sources.tolist()} == {0, 1}


def test_another_source_does_not_change_the_order_within_a_source(counting_shards: Shards) -> None:
    shards = counting_shards(a=500, b=300)
    alone, mixed = mixture({"a": shards["a"]}), mixture(shards)
    first = [row for step in range(4) for row in alone.batch(step).tokens.tolist()]
    of_a = [
        row
        for step in range(8)
        for row, source in zip(mixed.batch(step).tokens.tolist(), mixed.batch(step).sources.tolist(), strict=True)
        if mixed.names[source] == "a"
    ]
    assert of_a == first


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_ranks_together_have_the_batch_of_one_process(counting_shards: Shards, ranks: int) -> None:
    batches = mixture(counting_shards(a=500, b=300))
    whole = batches.batch(5)
    parts = [batches.batch(5, rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.sources for part in parts]), whole.sources)
    described = [row for rank in range(ranks) for row in batches.describe(5, rank, ranks)]
    assert described == batches.describe(5)


def test_a_batch_that_cannot_be_dealt_evenly_is_an_error(counting_shards: Shards) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size=8 cannot be divided among 3 devices"):
        mixture(counting_shards(a=500)).batch(0, 0, 3)


def test_a_step_is_described_by_the_documents_in_its_windows(counting_shards: Shards) -> None:
    batches = mixture(counting_shards(a=500, b=300))
    rows = zip(batches.batch(7).tokens.tolist(), batches.batch(7).sources.tolist(), batches.describe(7), strict=True)
    for row, source, (name, origins) in rows:
        assert name == batches.names[source]
        assert origins == tuple(f"{name}:{n}" for n in range(row[0] // 10 * 10, row[-1] + 1, 10))


def test_a_source_too_short_for_one_window_is_an_error(counting_shards: Shards) -> None:
    with pytest.raises(DataError, match=r"data\.sources\.b: 16 tokens .* needs data\.seq_len \+ 1 = 17"):
        mixture(counting_shards(a=500, b=16))


def test_a_plan_counts_tokens_sequences_and_epochs(counting_shards: Shards) -> None:
    plan = mixture(counting_shards(prose=500, code=176), prose=3.0, code=1.0).plan(10)
    assert [(p.name, p.tokens, p.sequences, p.share) for p in plan] == [
        ("prose", 500, 60, 0.75),
        ("code", 176, 20, 0.25),
    ]
    assert [p.epochs for p in plan] == [60 / 30, 20 / 10]
    assert "prose" in format_plan(plan)
    assert "75.0%" in format_plan(plan)


def test_document_starts_are_the_last_end_of_text_at_or_before_a_position() -> None:
    tokens = torch.tensor([[5, 0, 6, 7, 0, 0, 8], [0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
    assert document_starts(tokens, bos_id=0).tolist() == [
        [0, 1, 1, 1, 4, 5, 5],
        [0, 0, 0, 0, 0, 0, 6],
        [0, 0, 0, 0, 0, 0, 0],
    ]
