"""Runs started from the command line: `python -m shardscope.recipes.pretrain RECIPE` and `….anneal RECIPE`."""
