"""Shardscope: train a small language model, score it, and look inside it.

from shardscope import Shard, ShardConfig, load
"""

from shardscope.checkpoint import load
from shardscope.config import ShardConfig
from shardscope.model import Shard

__version__ = "0.1.0"
__all__ = ["Shard", "ShardConfig", "__version__", "load"]
