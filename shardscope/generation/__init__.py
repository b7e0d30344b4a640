"""Continuing prompts: key-value cache, sampling, batches of unequal prompts."""

from shardscope.generation.engine import Generation, GenerationError, StopReason, TokenEvent, generate, stream
from shardscope.generation.forward import Decoder, Packed
from shardscope.generation.sampling import NotFiniteError, SamplingConfig
from shardscope.generation.scoring import ContinuationScore, score, score_groups

__all__ = [
    "ContinuationScore",
    "Decoder",
    "Generation",
    "GenerationError",
    "NotFiniteError",
    "Packed",
    "SamplingConfig",
    "StopReason",
    "TokenEvent",
    "generate",
    "score",
    "score_groups",
    "stream",
]
