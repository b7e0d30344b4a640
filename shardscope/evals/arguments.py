"""What `--model_args` and the command's flags mean, and what is wrong with them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch

from shardscope.device import pick_device
from shardscope.evals.errors import HarnessError
from shardscope.model import Shard
from shardscope.processes import Processes
from shardscope.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ARGUMENTS = (
    "pretrained, tokenizer, device, dtype, batch_size, max_batch_size, max_length, max_gen_toks, add_bos_token, seed"
)

logger = logging.getLogger(__name__)


def device_of(name: str | None, processes: Processes) -> torch.device:
    """The device asked for. The harness itself asks for cuda:0 when nobody does, so without CUDA that means the CPU."""
    if re.fullmatch(r"cuda(:\d+)?", name or "") and not torch.cuda.is_available():
        logger.warning(f"device={name}: this machine has no CUDA device; the CPU is used")
        return torch.device("cpu")
    device = pick_device(name or "auto", processes.local_rank)
    return torch.device("cuda", processes.local_rank) if device.type == "cuda" and processes.size > 1 else device


def as_it_is(model: Shard, device: str | None, dtype: str | None) -> Shard:
    """A model of the caller's, which is neither moved nor converted."""
    if device is not None and pick_device(device) != pick_device(model.device):
        raise HarnessError(f"device={device}, but the Shard is on {model.device}; move it before, or leave device out")
    stored = model.embed.W_E.dtype
    if dtype not in (None, "auto") and dtype_of(dtype, model.device) != stored:
        raise HarnessError(f"dtype={dtype}, but the Shard has {stored}; convert it before, or leave dtype out")
    return model


def dtype_of(name: str | None, device: torch.device) -> torch.dtype | None:
    if name in (None, "auto"):
        return torch.float32 if device.type == "cpu" else None
    if name not in DTYPES:
        raise HarnessError(f"model_args: dtype={name} is not supported; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def tokenizer_of(file: str | None, model: Shard, path: Path | None) -> Tokenizer:
    """The one that the model was trained with: the checkpoint's own, or `file` if the checkpoint holds none."""
    own, checkpoint = model.tokenizer, path or "the Shard"
    if file is None:
        if own is None and path is None:
            raise HarnessError("the Shard has no tokenizer; set model.tokenizer, or pass tokenizer=FILE")
        if own is None:
            raise HarnessError(f"{checkpoint} holds no tokenizer.json; pass tokenizer=FILE in model_args")
        return own
    given, wanted = Tokenizer.load(file), model.config.vocab_size
    if own is not None and given.fingerprint != own.fingerprint:
        raise HarnessError(f"tokenizer={file} is not the one that {checkpoint} holds; leave tokenizer out")
    if own is None and given.vocab_size != wanted:
        raise HarnessError(
            f"tokenizer={file} has {given.vocab_size} entries, the model's vocabulary {wanted}; "
            "pass the tokenizer that it was trained with"
        )
    return given


def flag(name: str, value: bool | int | str | None, default: bool) -> bool:
    if value is None:
        return default
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in words:
        raise HarnessError(f"model_args: {name}={value!r} is neither true nor false; use one of {', '.join(words)}")
    return words[str(value).lower()]


def batch_size_of(value: int | str) -> int | str:
    """A number, or "auto"; with auto:N the harness means that the size be found N times, which is not needed here."""
    return "auto" if re.fullmatch(r"auto(:\d+)?", str(value)) else whole("batch_size", value)


def whole(name: str, value: Any, least: int = 1, most: int | None = None, why: str = "") -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise HarnessError(f"model_args: {name}={value!r} is not a whole number") from None
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise HarnessError(f"model_args: {name}={number} is out of range{f' ({why})' if why else ''}; use {limits}")
    return number
