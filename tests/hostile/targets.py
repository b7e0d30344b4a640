"""The entry points that take what strangers wrote, each as a function of bytes, and inputs to begin with.

A target returns, or raises a ConfigError; anything else that it raises is an error of ours. `fuzz.py` drives them by
coverage, `test_fuzz.py` by a short seeded run.
"""

from __future__ import annotations

import atexit
import io
import json
import math
import os
import pickle
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from shardscope.checkpoint import BUILT_IN
from shardscope.config import ConfigError, Source, load_recipe
from shardscope.data import ReadLog, documents
from shardscope.failures import label
from shardscope.interop.name_mapping import read_spelling
from shardscope.interop.restricted import read_original
from shardscope.interop.settings import Seen, read_settings
from shardscope.manifest import read_manifest, write_manifest
from shardscope.tensors import read_tensors, write_tensors
from shardscope.tokenizer import Tokenizer
from shardscope.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
KINDS = ("a.txt", "a.jsonl", "a.json", "a.txt.gz", "a.jsonl.xz", "a.jsonl.bz2", "a.json.zip", "a.jsonl.zst")
CUTS = ("auto", "marker", "line", "paragraph", "file")
SCRATCH = "SHARDSCOPE_FUZZ_FOLDER"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # in memory where the system has that
LONGEST = 4096  # bytes of an input: enough for every branch, and a thousand executions a second


@cache
def folder() -> Path:
    """A folder of this process, gone with it; inside the one that SCRATCH names, where no exit handler runs."""
    made = tempfile.mkdtemp(prefix="shardscope-fuzz-", dir=os.environ.get(SCRATCH) or MEMORY)
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


@cache
def built_in_tokenizer() -> Tokenizer:
    return Tokenizer.load(BUILT_IN)


def written(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


def tokenizer_round_trip(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    tokenizer = built_in_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def tokenizer_file(data: bytes) -> None:
    Tokenizer.load(written("tokenizer.json", data)).encode("the cat")


def corpus(data: bytes) -> None:
    kind, cut = data[0] % len(KINDS), data[1] % len(CUTS) if len(data) > 1 else 0
    source = Source(name="s", path=str(written(KINDS[kind], data[2:])), cut=CUTS[cut])  # type: ignore[arg-type]
    reading = ReadLog("skip", quiet=True, longest=1000)
    for document in documents(source, reading):
        assert len(document.text.encode()) <= 1000


def recipe(data: bytes) -> None:
    load_recipe(written("recipe.toml", data))


def tensors(data: bytes) -> None:
    read_tensors(written("a.safetensors", data))


def manifest(data: bytes) -> None:
    written("manifest.json", data)
    read_manifest(folder())


def log(data: bytes) -> None:
    written("metrics.jsonl", data)
    assert all(isinstance(line["step"], int) for line in read_metrics(folder()))


def original(data: bytes) -> None:
    """The instructions of a pickle, in torch's archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": data, "version": b"3\n", "data/0": bytes(64)}.items():
            archive.writestr(f"model/{name}", content)
    read_original(written("model.pt", buffer.getvalue()))


def settings(data: bytes) -> None:
    with suppress(ValueError, RecursionError):  # no JSON
        values = json.loads(data)
        if isinstance(values, dict):
            read_settings(values, Seen(vocab_size=300, d_model=64, n_layers=4, d_mlp=96, attention=64))


def spelling(data: bytes) -> None:
    """Names of weights a line, each with its shape, as in `blocks.0.attn.wq 64,64`."""
    weights = {}
    for line in data.decode("utf-8", "replace").split("\n")[:100]:
        name, _, shape = line.rpartition(" ")
        with suppress(ValueError):
            sizes = [int(size) for size in shape.split(",")]
            if len(sizes) < 5 and math.prod(map(abs, sizes)) <= 2**16:
                weights[name] = torch.zeros([abs(size) for size in sizes])
    read_spelling(weights)


def labeller(data: bytes) -> None:
    prompt, _, text = data.decode("utf-8", "replace").partition("\x00")
    for flag in label(text, prompt=prompt).flags:
        assert 0 <= flag.start <= flag.end


def answers(data: bytes) -> None:
    from shardscope.evals.math_answers import equivalent

    answer, _, gold = data.decode("utf-8", "replace").partition("\x00")
    assert equivalent(answer, answer) in (True, False)
    assert equivalent(answer, gold) in (True, False)


def address(data: bytes) -> None:
    """The choices of an address, which are read or are not, and read again as they were written."""
    from apps.parts.address import CHOICES, _read, write

    name, _, text = data.decode("utf-8", "replace").partition("=")
    if name in CHOICES:
        value = _read(text, CHOICES[name][1])
        if value is not None:
            assert _read(write(value), CHOICES[name][1]) == value


def _original_seed() -> bytes:
    buffer = io.BytesIO()
    torch.save({"cfg": {"dim": 4}, "model": {"a": torch.ones(4), "b": torch.ones(2, 2)}}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _names() -> bytes:
    parts = ("attn.wq", "attn.wk", "attn.wv", "attn.wo", "mlp.gate", "mlp.up", "mlp.down", "ln1", "ln2")
    shapes = dict(zip(parts, ("64,64",) * 4 + ("96,64", "96,64", "64,96", "64", "64"), strict=True))
    blocks = [f"blocks.{layer}.{part}.weight {shapes[part]}" for layer in range(2) for part in parts]
    return "\n".join(["tok_emb.weight 300,64", *blocks, "norm.weight 64", "lm_head.weight 300,64"]).encode()


def seeds() -> dict[str, list[bytes]]:
    """Good inputs of each target, from which others are grown."""
    weights = write_tensors(folder() / "seed.safetensors", {"a": torch.ones(3), "b": torch.ones(2, 2)}).read_bytes()
    small = Tokenizer.train(["the cat sees the dog and the house"] * 4, vocab_size=262).save(folder() / "seed.json")
    config = {
        "vocab_size": 300,
        "dim": 64,
        "n_layers": 4,
        "n_heads": 4,
        "hidden_dim": 96,
        "window": 16,
        "rope_theta": 1e4,
    }
    return {
        "tokenizer_round_trip": ["Once upon a time, 23 + 19 = 42. Łódź 漢字 👩‍👩‍👧\r\n\t".encode(), b"a<|endoftext|>b"],
        "tokenizer_file": [json.dumps(json.loads(small.read_text())).encode()],
        "corpus": [
            bytes([1, 0]) + b'{"text": "a row"}\n{"text": "another"}\n',
            bytes([2, 0]) + b'[{"text": "a row"}, {"text": ["x"]}]',
            bytes([0, 1]) + b"one<|endoftext|>two\n\nthree",
        ],
        "recipe": [path.read_bytes() for path in sorted((ROOT / "recipes").glob("shard-pico*.toml"))],
        "tensors": [weights],
        "manifest": [write_manifest(folder(), ["seed.safetensors", "seed.json"]).read_bytes()],
        "log": [b'{"kind": "train", "step": 1, "loss": 2.5}\n{"kind": "event", "step": 2, "event": "finished"}\n'],
        "original": [_original_seed(), pickle.dumps({"cfg": {"dim": 4}, "model": {}}, protocol=2)],
        "settings": [json.dumps(config).encode(), b'{"rope_scaling": {"type": "linear", "factor": 2.0}}'],
        "spelling": [_names()],
        "labeller": [b"Q: 2 + 2?\x00 4 4 4 4 4 4", b"Once\x00 upon a time a time a time"],
        "answers": [b"\\frac{1}{2}\x000.5", b"\\left[1, 2\\right)\\cup\\{3\\}\x00x^2+1=0", b"1{,}000\\%\x0010"],
        "address": [b"rectangle=1-2,3-4", b"ablate=3.1 2.0", b"prompt=zlib:eJwrSS0uAQAEXQHB", b"seed=7", b"runs=a|b"],
    }  # fmt: skip


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        tokenizer_round_trip, tokenizer_file, corpus, recipe, tensors, manifest, log, original, settings, spelling,
        labeller, answers, address,
    )
}  # fmt: skip


def run(name: str, data: bytes) -> None:
    """One execution. Raises what is an error of ours."""
    if not data:
        return
    with suppress(ConfigError):
        TARGETS[name](data)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them replaced, put in, left out, repeated or exchanged."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        start = rng.randrange(len(changed) + 1)
        stop = min(len(changed), start + rng.choice((1, 1, 2, 4, 16, 64)))
        match rng.randrange(6):
            case 0:
                changed[start:stop] = rng.randbytes(stop - start)
            case 1:
                changed[start:start] = rng.choice(
                    (b"\0", b"-1", b"1e999", b"[[", b'"', b"\\", b"{}", b"\xff", b"9" * 30)
                )
            case 2:
                del changed[start:stop]
            case 3:
                changed[start:start] = changed[start:stop] * rng.choice((1, 3, 50))
            case 4 if start < len(changed):
                changed[start] ^= 1 << rng.randrange(8)
            case 5:
                other = rng.randrange(len(changed) + 1)
                changed[start:stop] = changed[other : other + rng.choice((1, 8, 40))]
    return bytes(changed[:LONGEST])
