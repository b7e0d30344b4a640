from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from shardscope.train.flops import datasheet_flops, sheet_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_device_has_the_rate_of_its_own_data_sheet(name: str, teraflops: float) -> None:
    assert sheet_of(name) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H20",  # an H200's name in part, not its rate
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA A10G",
        "NVIDIA A1000",
        "NVIDIA RTX A1000 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA RTX 4000 Ada Generation",
        "NVIDIA L400",
        "Tesla T4",  # multiplies no bfloat16
        "Tesla V100-SXM2-16GB",
        "AMD Instinct MI300X",
    ],
)
def test_a_device_without_a_listed_sheet_has_none(name: str) -> None:
    assert sheet_of(name) is None


def test_a_cpu_has_no_sheet() -> None:
    assert datasheet_flops(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_at_hand_is_looked_up_by_its_name() -> None:
    assert datasheet_flops(torch.device("cuda")) == sheet_of(torch.cuda.get_device_name())


def test_speeds_quoted_in_recipes_are_those_of_the_committed_measurements() -> None:
    measured = {
        f"{round(row['tokens_per_second']):,}"
        for path in (ROOT / "docs" / "benchmarks").glob("train-*.json")
        for row in json.loads(path.read_text())["rows"]
    }
    quoted = {
        (path.name, number)
        for path in (ROOT / "recipes").glob("*.toml")
        for number in re.findall(r"([\d,]+)\s+tokens/s", path.read_text().replace("\n# ", " "))
    }
    assert ("shard-54m-pretrain.toml", "734,026") in quoted
    assert {number for _, number in quoted} <= measured
