"""Continuing prompts: key-value cache, sampling, batches of unequal prompts."""

from shardscope.generation.engine import Generation, GenerationError, StopReason, TokenEvent, generate, stream
from shardscope.generation.forward import Decoder, Packed
from shardscope.generation.sampling import SamplingConfig
from shardscope.generation.scoring import Score, score

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
