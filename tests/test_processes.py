"""What processes under torchrun tell each other, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shardscope.processes import Processes, is_main_process

ROOT = Path(__file__).parents[1]


def run(rank: int, port: int, code: str) -> subprocess.Popen[str]:
    """One of two processes, started without an agent that would end the other one."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = {**os.environ, **place, **meeting, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


HEAD = """
import os, signal, torch
from shardscope.config import ConfigError
from shardscope.processes import Processes
us = Processes.of_torchrun()
us.connect()
"""
TALK = """
with us:
    assert us.any(us.rank == 1) and not us.any(False)
    assert us.gather(torch.tensor(us.rank + 5)).tolist() == [5, 6]
    assert us.gather_objects({"from": us.rank}) == ([{"from": 0}, {"from": 1}] if us.main else None)
    assert us.main_first(lambda: us.rank) == us.rank
    us.wait()
print("heard", us.rank)
"""
DEATH = """
us.wait()
if us.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    EXCHANGE
except ConfigError as error:
    print(error)
"""


def test_two_processes_hear_each_other() -> None:
    port = free_port()
    both = [run(rank, port, HEAD + TALK) for rank in (0, 1)]
    for rank, process in enumerate(both):
        out, err = process.communicate(timeout=120)
        assert out == f"heard {rank}\n", err


@pytest.mark.parametrize("exchange", ["us.wait()", "us.gather(torch.ones(()))", "us.gather_objects(1)", "us.any(True)"])
def test_a_process_that_loses_another_says_so_and_ends(exchange: str) -> None:
    port = free_port()
    both = [run(rank, port, HEAD + DEATH.replace("EXCHANGE", exchange)) for rank in (0, 1)]
    out, err = both[0].communicate(timeout=120)
    both[1].communicate(timeout=120)
    assert out.startswith("process 0 of 2 has lost another one"), err
    assert both[0].returncode == 0


def test_the_group_ends_before_a_process_that_left_it_open() -> None:
    code = f"""
import atexit
import torch.distributed as dist
atexit.register(lambda: print("open" if dist.is_initialized() else "ended"))  # runs after what is registered later
{HEAD}
us.wait()
"""
    port = free_port()
    processes = [run(rank, port, code) for rank in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "ended\n"), err


def test_a_single_process_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    us = Processes.of_torchrun()
    us.connect()
    us.wait()
    assert us == Processes()
    assert us.main
    assert is_main_process()
    assert us.gather(torch.tensor(3)).tolist() == [3]
    assert us.gather_objects("own") == ["own"]
