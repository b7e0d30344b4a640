"""What `--use_cache FILE` may answer: only what these weights, read in this way, have answered before.

lm-evaluation-harness looks answers up by the texts of the request alone. So the file also holds what its answers depend
on, and a model that differs from it is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import MutableMapping
from typing import Any

import torch

from shardscope.config import ConfigError
from shardscope.model import Shard

ORIGIN = "shardscope: where the answers come from"  # no key of the harness: those are SHA-256 digests


class CacheError(ConfigError):
    """A file of answers that are not this model's."""


def weights_fingerprint(model: Shard) -> str:
    """SHA-256 of the configuration and of every weight: its name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_origin(answers: MutableMapping[str, Any], file: str, model: Shard, settings: dict[str, Any]) -> None:
    """Compare where the answers in `file` come from with this model and these settings; an empty file is given both.

    Raises CacheError when they differ, when the file does not say, or while hooks change what the model computes.
    """
    other = "name another file in use_cache, or make a new ShardLM without it"
    if model.watched:
        raise CacheError(
            f"{file}: hooks are attached to the model, and a cache cannot tell what they change; "
            "evaluate a new ShardLM without use_cache"
        )
    now = {"weights": weights_fingerprint(model), **settings}
    if not answers:
        answers[ORIGIN] = now
        return
    before = answers.get(ORIGIN)
    if before is None:
        raise CacheError(f"{file} holds answers but does not say of which model; {other}")
    if before.get("weights") != now["weights"]:
        raise CacheError(f"{file} holds the answers of other weights than this model's; {other}")
    for name, value in now.items():
        if before.get(name) != value:
            raise CacheError(f"{file} holds answers with {name}={before.get(name)}, now it is {value}; {other}")
