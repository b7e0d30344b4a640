"""What goes wrong in a sample: loops, symbol breakdown, echoes, stray numbers, early ends; and why it loops."""

from shardscope.failures.card import CardSample, card_table, describe, sample_card
from shardscope.failures.labels import Failure, Flag, Labels, label
from shardscope.failures.loop_xray import Xray, XrayError, xray
from shardscope.failures.loops import Loop, find_loop
from shardscope.failures.prompts import CARD_PROMPTS, CardPrompt, Domain
from shardscope.failures.retrieval import LongContext, long_context

__all__ = [
    "CARD_PROMPTS",
    "CardPrompt",
    "CardSample",
    "Domain",
    "Failure",
    "Flag",
    "Labels",
    "LongContext",
    "Loop",
    "Xray",
    "XrayError",
    "card_table",
    "describe",
    "find_loop",
    "label",
    "long_context",
    "sample_card",
    "xray",
]
