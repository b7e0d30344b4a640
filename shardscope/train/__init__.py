"""The trainer: loop, Muon + AdamW, schedule, sentinel, held-out loss."""

from shardscope.train.loop import Outcome, TrainingError, train

__all__ = ["Outcome", "TrainingError", "train"]
