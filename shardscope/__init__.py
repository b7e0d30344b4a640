"""Shardscope: train a small language model, score it, and look inside it.

from shardscope import generate, label, load, read, score
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardscope.checkpoint import load
    from shardscope.config import ShardConfig
    from shardscope.failures import label
    from shardscope.generation import generate, score, stream
    from shardscope.microscope import read
    from shardscope.model import Shard

__version__ = "0.1.0"
__all__ = ["Shard", "ShardConfig", "__version__", "generate", "label", "load", "read", "score", "stream"]

# Imported when it is first asked for: nobody waits for what they do not use, and a command can prepare for torch.
_LATER = {
    "Shard": "shardscope.model",
    "ShardConfig": "shardscope.config",
    "load": "shardscope.checkpoint",
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
