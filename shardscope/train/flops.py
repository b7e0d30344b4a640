"""How much arithmetic a token takes, and what a device could do."""

from __future__ import annotations

import torch

from shardscope.config import ShardConfig

# Dense bf16 matmul rate in FLOP/s by the vendors' data sheets, by a part of the device's name.
DATASHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "T4": 65e12}


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
    """FLOP/s that the data sheet promises for bf16 matmuls; None for devices not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in DATASHEET.items() if part in name), None)
