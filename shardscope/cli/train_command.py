"""`shardscope train`: a recipe of either phase, by its path or, if it is packaged, by its name."""

from __future__ import annotations

from shardscope.recipes.command import add_arguments, run

__all__ = ["add_arguments", "run"]
