"""Where tensors live: the one place that reads a device's name and says what `auto` means."""

from __future__ import annotations

import torch

from shardscope.config import ConfigError


def pick_device(device: str | torch.device = "auto", local_rank: int = 0) -> torch.device:
    """The torch device that a recipe, a command line or a caller means; `auto` is CUDA, else MPS, else the CPU.

    `local_rank` is the card of a CUDA device that names none. Raises ConfigError for a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device={device!r} is not a torch device; use auto, cpu, cuda, cuda:1, or mps") from None
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device={str(device)!r}: this torch sees no CUDA device; use auto or cpu")
        place = torch.device("cuda", local_rank if place.index is None else place.index)
        if place.index is not None and place.index >= torch.cuda.device_count():
            raise ConfigError(f"device={str(device)!r}: there are {torch.cuda.device_count()} CUDA devices, from 0 on")
    elif place.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device={str(device)!r}: this torch sees no Apple GPU; use auto or cpu")
    elif place.type not in ("cpu", "mps"):
        raise ConfigError(f"device={str(device)!r}: Shardscope runs on cpu, cuda and mps; use one of them, or auto")
    return place
