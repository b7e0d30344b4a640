"""PyTorch's threads keep to the cores that other programs leave free, unless somebody has chosen their number."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest
import torch

from shardscope.threads import FreeCores, Use, use_so_far


@dataclass
class Machine:
    """Eight cores and a clock; `others` cores are taken, and our threads wait `waiting` of their time."""

    others: float = 0.0
    waiting: float = 0.0
    seconds: float = 1000.0
    past: Use = field(default_factory=lambda: Use(500.0, 100.0, 7.0))

    def go_on(self, seconds: float) -> None:
        own = torch.get_num_threads() * seconds
        everyone, so_far, waited = self.past
        self.past = Use(everyone + own + self.others * seconds, so_far + own, waited + self.waiting * seconds)
        self.seconds += seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def cores(machine: Machine) -> Iterator[FreeCores]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield FreeCores(8, 8, use=lambda: machine.past, clock=lambda: machine.seconds)
    torch.set_num_threads(before)


def after(machine: Machine, cores: FreeCores, seconds: float) -> int:
    """The number of threads after so many seconds of small operations."""
    for _ in range(round(seconds * 100)):
        machine.go_on(0.01)
        cores.look()
    return torch.get_num_threads()


@pytest.mark.parametrize(
    ("others", "threads"), [(0.0, 8), (0.25, 8), (0.5, 7), (1.0, 7), (2.0, 6), (3.6, 4), (7.0, 1), (8.0, 1), (40.0, 1)]
)
def test_threads_are_the_cores_that_are_free(machine: Machine, cores: FreeCores, others: float, threads: int) -> None:
    machine.others = others
    assert after(machine, cores, 1) == threads


def test_cores_that_become_free_are_taken_back(machine: Machine, cores: FreeCores) -> None:
    machine.others = 3
    assert after(machine, cores, 1) == 5
    machine.others = 0
    assert after(machine, cores, 1) == 8


def test_a_program_that_gives_way_and_still_keeps_us_waiting_gets_a_core(machine: Machine, cores: FreeCores) -> None:
    """At nice 10 it takes only a tenth of a core, but our threads wait for the one that it interrupts."""
    machine.others, machine.waiting = 0.1, 0.1
    assert after(machine, cores, 0.12) == 8  # once, as threads that have just begun
    assert after(machine, cores, 0.25) == 7
    machine.others, machine.waiting = 1.0, 0.0  # and now it has a core for itself
    assert after(machine, cores, 2) == 7


def test_what_happened_long_ago_does_not_count(machine: Machine, cores: FreeCores) -> None:
    machine.others = 7
    machine.go_on(3600)
    machine.others = 0
    assert after(machine, cores, 0.05) == 8
    assert after(machine, cores, 2) == 8


def test_a_number_that_somebody_sets_stays(machine: Machine, cores: FreeCores) -> None:
    machine.others = 3
    assert after(machine, cores, 1) == 5
    torch.set_num_threads(6)
    assert after(machine, cores, 1) == 6
    machine.others = 0
    assert after(machine, cores, 1) == 6


def test_every_thread_of_python_follows(machine: Machine, cores: FreeCores) -> None:
    """OpenMP keeps the number for each thread by itself; Streamlit answers each click in one of its own."""
    machine.others = 3
    assert after(machine, cores, 1) == 5
    found: list[int] = []

    def another_thread() -> None:
        found.append(torch.get_num_threads())
        machine.others = 5
        found.append(after(machine, cores, 1))

    thread = threading.Thread(target=another_thread)
    thread.start()
    thread.join()
    assert found == [5, 3]
    assert after(machine, cores, 1) == 3


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_in_the_environment_is_left_alone(name: str) -> None:
    code = "import shardscope.threads as t; assert t._free_cores is None; print(t.torch.get_num_threads())"
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "MKL_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**plain, name: "2"}, capture_output=True, text=True, check=True
    )
    assert name != "OMP_NUM_THREADS" or done.stdout.split() == ["2"]


def test_use_grows_with_work_and_counts_ours_as_ours() -> None:
    before = use_so_far()
    start = psutil.Process().cpu_times().user
    while psutil.Process().cpu_times().user < start + 0.3:
        sum(range(100_000))
    after = use_so_far()
    own = after.own - before.own
    assert own >= 0.25
    assert after.everyone - before.everyone >= own - 0.1  # both move in steps of 10 ms
    assert after.waited >= before.waited
