"""Every choice of a model or a run, as frozen dataclasses that cannot exist in a wrong state.

`ShardConfig` (model.py) describes a model, `Recipe` (recipe.py, of data.py and training.py) a training run. Recipes are
TOML files that state only their choices; `load_recipe` merges a file with overrides given as dotted keys and validates
the result once.
"""

from shardscope.config.data import Benchmark, DataConfig, Source, TokenizerConfig
from shardscope.config.errors import ConfigError, suggest, suggest_close
from shardscope.config.fields import choice
from shardscope.config.loading import load_recipe, recipe_fields
from shardscope.config.model import PRESETS, LayerKind, ShardConfig
from shardscope.config.paths import user_path
from shardscope.config.recipe import Recipe
from shardscope.config.training import InitConfig, OptimizerConfig, ProbeConfig, ScheduleConfig, TrainConfig

__all__ = [
    "PRESETS",
    "Benchmark",
    "ConfigError",
    "DataConfig",
    "InitConfig",
    "LayerKind",
    "OptimizerConfig",
    "ProbeConfig",
    "Recipe",
    "ScheduleConfig",
    "ShardConfig",
    "Source",
    "TokenizerConfig",
    "TrainConfig",
    "choice",
    "load_recipe",
    "recipe_fields",
    "suggest",
    "suggest_close",
    "user_path",
]
