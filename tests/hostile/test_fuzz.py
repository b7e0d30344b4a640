"""The short seeded form of `make fuzz`, part of `make test`, and every input that ever broke a target."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

import pytest
import targets
from attacks import Count, record
from fuzz import add_earlier_nights

EXECUTIONS = {"labeller": 60, "tokenizer_file": 150}  # of the slow ones; of the others 400

# What fuzzing found, by target.
FOUND: list[tuple[str, bytes]] = [("recipe", b'name = "x"\nphase = "pretrain"\n[model]\npreset = 312\n')]


@pytest.fixture(scope="module")
def seeds() -> dict[str, list[bytes]]:
    return targets.seeds()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_whatever_is_made_of_good_inputs_is_read_or_refused(name: str, seeds: dict[str, list[bytes]]) -> None:
    rng = random.Random(zlib.crc32(name.encode()))
    for data in seeds[name]:
        targets.run(name, data)
    for _ in range(EXECUTIONS.get(name, 400)):
        data = targets.mutated(rng.choice(seeds[name]), rng)
        try:
            targets.run(name, data)
        except Exception as error:
            error.add_note(f"the input was {data!r}")
            raise


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_target_has_good_inputs_to_begin_with(name: str, seeds: dict[str, list[bytes]]) -> None:
    assert seeds[name]
    if name not in ("original", "settings", "corpus"):  # some of whose seeds are meant to be refused
        for data in seeds[name]:
            targets.TARGETS[name](data)


@pytest.mark.parametrize(("name", "data"), FOUND, ids=[f"{name} {n}" for n, (name, _) in enumerate(FOUND)])
def test_what_once_broke_is_read_or_refused(name: str, data: bytes) -> None:
    targets.run(name, data)


def test_nights_add_up(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    for night in (1, 2):
        count = Count(measured={"executions": {"corpus": 10 * night, "recipe": 5}})
        count.add(10 * night + 5, 0, [])
        record(file, {"fuzzed": count}, 60 + add_earlier_nights(count, file))
    figures = json.loads(file.read_text())["fuzzed"]
    assert (figures["tried"], figures["unharmed"], figures["seconds"]) == (40, 40, 120)
    assert figures["executions"] == {"corpus": 30, "recipe": 10}
