"""The failure atlas: the suite sampled at every checkpoint of a run, and how often it fails in which way."""

from shardscope.failures.atlas.rates import CHANGES, ROWS, Change, Rate, changes, rates
from shardscope.failures.atlas.records import Atlas, AtlasColumn, AtlasSample, built_in_atlas, list_atlases, read_atlas
from shardscope.failures.atlas.sampling import make_atlas, sample_prompts
from shardscope.failures.atlas.settings import AtlasError, AtlasSettings

__all__ = [
    "CHANGES",
    "ROWS",
    "Atlas",
    "AtlasColumn",
    "AtlasError",
    "AtlasSample",
    "AtlasSettings",
    "Change",
    "Rate",
    "built_in_atlas",
    "changes",
    "list_atlases",
    "make_atlas",
    "rates",
    "read_atlas",
    "sample_prompts",
]
