"""Continuing prompts: key-value cache, sampling, batches of unequal prompts."""

from shardscope.generate.engine import Generation, GenerationError, StopReason, TokenEvent, generate, stream
from shardscope.generate.forward import Decoder
from shardscope.generate.sampling import SamplingConfig

__all__ = [
    "Decoder",
    "Generation",
    "GenerationError",
    "SamplingConfig",
    "StopReason",
    "TokenEvent",
    "generate",
    "stream",
]
