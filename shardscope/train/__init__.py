"""The trainer: loop, Muon + AdamW, schedule, sentinel, held-out loss."""

from shardscope.train.interrupt import Interrupted
from shardscope.train.loop import Outcome, train
from shardscope.train.step_monitor import TrainingError

__all__ = ["Interrupted", "Outcome", "TrainingError", "train"]
