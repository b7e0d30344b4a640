"""Pretrain a Shard from nothing, or go on where a run of this recipe stopped.

examples:
  python -m shardscope.recipes.pretrain recipes/shard-pico-pretrain.toml
  python -m shardscope.recipes.pretrain recipes/shard-pico-pretrain.toml --schedule.steps 100 --run_dir runs/short
  torchrun --nproc-per-node 8 -m shardscope.recipes.pretrain recipes/shard-54m-pretrain.toml
"""

import sys

from shardscope.openmp import wait_briefly

if __name__ == "__main__":
    wait_briefly()
    from shardscope.recipes.command import run_recipe  # brings torch

    sys.exit(run_recipe("pretrain", __doc__))
