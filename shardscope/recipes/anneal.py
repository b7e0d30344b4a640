"""Anneal: fork a run's stable phase and let the learning rate fall to zero over a mixture of its own.

examples:
  python -m shardscope.recipes.anneal recipes/shard-pico-anneal.toml
  python -m shardscope.recipes.anneal recipes/shard-pico-anneal.toml --schedule.steps 100
"""

import sys

from shardscope.openmp import wait_briefly

if __name__ == "__main__":
    wait_briefly()
    from shardscope.recipes.command import run_recipe  # brings torch

    sys.exit(run_recipe("anneal", __doc__))
