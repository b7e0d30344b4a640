"""Continuing prompts: key-value cache, sampling, batches of unequal prompts."""

from shardscope.generate.engine import Generation, GenerationError, StopReason, TokenEvent, generate, stream
from shardscope.generate.forward import Decoder, Packed
from shardscope.generate.sampling import SamplingConfig
from shardscope.generate.scoring import Score, score

__all__ = [
    "Decoder",
    "Generation",
    "GenerationError",
    "Packed",
    "SamplingConfig",
    "Score",
    "StopReason",
    "TokenEvent",
    "generate",
    "score",
    "stream",
]
