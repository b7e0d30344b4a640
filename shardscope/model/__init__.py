"""The transformer, its attention, and its hook points."""

from shardscope.model.hooks import Cache, HookPoint
from shardscope.model.shard import Shard

__all__ = ["Cache", "HookPoint", "Shard"]
