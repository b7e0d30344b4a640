"""The transformer, its attention, its hook points, and what counts as a prompt."""

from shardscope.model.activation_cache import Cache
from shardscope.model.hooks import HookPoint
from shardscope.model.prompts import Prompt, PromptError, Prompts
from shardscope.model.shard import Shard

__all__ = ["Cache", "HookPoint", "Prompt", "PromptError", "Prompts", "Shard"]
