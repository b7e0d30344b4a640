"""How much arithmetic a token takes, and what a device could do."""

from __future__ import annotations

import re

import torch

from shardscope.config import ShardConfig

# Dense bf16 matmul rate in FLOP/s by the vendors' data sheets (with float32 accumulation, without sparsity), by a
# pattern for the whole name that the driver gives. The forms of one chip differ: a name that is not here has no rate.
DATASHEET = {
    r"B200": 2250e12,
    r"GH200 .*|H200|H100 80GB HBM3": 989.5e12,
    r"H200 NVL|H100 NVL": 835.5e12,
    r"H100 PCIe": 756.5e12,
    r"A[18]00[- ].*": 312e12,
    r"L40S": 362e12,
    r"L40": 181e12,
    r"L4": 121e12,
    r"A40": 149.7e12,
    r"A30": 165e12,
    r"A10": 125e12,
    r"RTX 6000 Ada Generation": 364.2e12,
    r"RTX A6000": 154.8e12,
    r"GeForce RTX 5090": 209.5e12,
    r"GeForce RTX 4090": 165.2e12,
    r"GeForce RTX 3090": 71e12,
}


def flops_per_token(config: ShardConfig, seq_len: int) -> float:
    """Forward and backward: 6 per matmul weight, 12 · heads · d_head per key that a query sees on average.

    The convention of PaLM (arXiv:2204.02311, appendix B), but a sliding layer counts its window alone and a
    global one the causal half.
    """
    matmuls = config.n_params - (2 * config.n_layers + 1) * config.d_model
    keys = sum(mean_visible_keys(seq_len, window) for window in config.windows)
    return 6 * matmuls + 12 * config.n_heads * config.d_head * keys


def mean_visible_keys(seq_len: int, window: int | None) -> float:
    """Keys a query sees, averaged over the positions of a sequence."""
    window = min(window or seq_len, seq_len)
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len


def datasheet_flops(device: torch.device) -> float | None:
    """FLOP/s that the data sheet promises for dense bf16 matmuls; None for devices that are not listed."""
    return sheet_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def sheet_of(name: str) -> float | None:
    """The rate by a device's name; None where the name is not one of the table's, or is that of a part (MIG)."""
    bare = name.removeprefix("NVIDIA ")
    if "MIG" in bare:
        return None
    return next((flops for pattern, flops in DATASHEET.items() if re.fullmatch(pattern, bare)), None)
