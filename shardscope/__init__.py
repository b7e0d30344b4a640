"""Shardscope: train a small language model, score it, and look inside it.

from shardscope import generate, label, load, read, score
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# OpenMP reads this when PyTorch is first imported, so it stands before that. By default PyTorch's threads wait for each
# other by spinning, and where another program takes a core, small steps like a token's become 20 to 50 times slower.
# Whoever has chosen how threads wait is left alone (`shardscope bench threads` compares).
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from shardscope.checkpoint import load
from shardscope.config import ShardConfig
from shardscope.model import Shard

if TYPE_CHECKING:
    from shardscope.failures import label
    from shardscope.generation import generate, score, stream
    from shardscope.microscope import read

__version__ = "0.1.0"
__all__ = ["Shard", "ShardConfig", "__version__", "generate", "label", "load", "read", "score", "stream"]

# What a trainer does not need is imported when it is first asked for.
_LATER = {
    **dict.fromkeys(("generate", "score", "stream"), "shardscope.generation"),
    "read": "shardscope.microscope",
    "label": "shardscope.failures",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
