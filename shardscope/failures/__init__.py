"""What goes wrong in samples and how often: loops, repetition, breakdown, echoes, wrong answers; and why they loop."""

from shardscope.failures.atlas import Atlas, AtlasError, AtlasSettings, make_atlas, read_atlas
from shardscope.failures.calibration import FalseAlarms, false_alarm_rate
from shardscope.failures.card import CardSample, card_table, describe, sample_card
from shardscope.failures.labels import ORDER, Failure, Flag, Labels, label
from shardscope.failures.loop_xray import Xray, XrayError, xray
from shardscope.failures.loops import Loop, find_loop
from shardscope.failures.prompts import CARD_PROMPTS, Domain, SuitePrompt, for_model, load_suite
from shardscope.failures.retrieval import LongContext, long_context
from shardscope.failures.text_model import keep_with_run, text_model_of

__all__ = [
    "CARD_PROMPTS",
    "ORDER",
    "Atlas",
    "AtlasError",
    "AtlasSettings",
    "CardSample",
    "Domain",
    "Failure",
    "FalseAlarms",
    "Flag",
    "Labels",
    "LongContext",
    "Loop",
    "SuitePrompt",
    "Xray",
    "XrayError",
    "card_table",
    "describe",
    "false_alarm_rate",
    "find_loop",
    "for_model",
    "keep_with_run",
    "label",
    "load_suite",
    "long_context",
    "make_atlas",
    "read_atlas",
    "sample_card",
    "text_model_of",
    "xray",
]
