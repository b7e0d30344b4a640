"""`shardscope bench failures`: how often labels fire on text that people wrote, and how well planted loops are found.

False alarms: documents are cut into windows of an opening (the prompt) and what its author wrote next (the output), and
the outputs are labelled as if a model had written them. Rates come with Wilson's 95 % interval (Wilson 1927,
doi:10.1080/01621459.1927.10502953). A label may fire on at most 0.5 % of a domain's windows.

Planted loops: copies of a random block after noise. Found are those that `find_loop` reports; what it reports in noise
counts against its precision.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from math import sqrt
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import numpy as np

from shardscope.checkpoint import BUILT_IN
from shardscope.config import ConfigError
from shardscope.failures.labels import ORDER, WORDS, Labels, label
from shardscope.failures.loops import MIN_COPIES, MIN_COPIES_OF_ONE_TOKEN, MIN_TOKENS, find_loop
from shardscope.failures.prompts import Domain
from shardscope.files import write_json
from shardscope.tokenizer import Tokenizer

BOUND = 0.005
OPENING, OUTPUT = 32, 256  # tokens
HELD_OUT = "*.val.jsonl.xz"
PERIODS = (1, 2, 4, 16, 64, 256)
COPIES = (3, 4, 8, 10, 50)
PLANTED_PER_KIND = 20
# A document that asks: what comes before the answer is the prompt, what stands after `####` the right answer.
QUESTION = re.compile(r"(?s)(Question: .*?\nAnswer:)(.*)")
GOLD = re.compile(r"#### ([-\d.,]+)\s*$")


class Window(NamedTuple):
    """What a person wrote, cut in two."""

    domain: Domain
    prompt: str
    ids: list[int]  # of the output
    gold: str | None
    ends: bool  # with the document, not where we cut


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `shardscope bench failures`."""
    parser.add_argument("folder", metavar="DIR", help=f"a folder with held-out text: {HELD_OUT} with a `text` field")
    parser.add_argument("--files", default=HELD_OUT, metavar="GLOB", help=f"which of its files (default {HELD_OUT})")
    parser.add_argument("--windows", type=int, default=10_000, help="at most, of each domain (default 10,000)")
    parser.add_argument("--out", metavar="FILE", help="where the numbers are written, as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON; 0. Raises ConfigError for a folder without such files."""
    if arguments.windows < 1:
        raise ConfigError(f"--windows {arguments.windows} measures nothing; use at least 1")
    found = measure(Path(arguments.folder), arguments.files, arguments.windows)
    print(table(found), planted_line(found), sep="\n\n")
    if arguments.out:
        write_json(arguments.out, found, indent=1)
    return 0


def measure(folder: Path, files: str, most: int) -> dict[str, Any]:
    """False alarms by group and label; scores on planted loops; milliseconds per 1,000 tokens."""
    tokenizer = Tokenizer.load(BUILT_IN)
    # First, while memory holds little: Python's garbage collector would count what comes next.
    milliseconds = speed(human_windows(folder, files, tokenizer, 100), tokenizer)
    groups = {name: evenly(found, most) for name, found in human_windows(folder, files, tokenizer, most).items()}
    return {
        "files": files,
        "tokenizer": tokenizer.fingerprint,
        "opening": OPENING,
        "output": OUTPUT,
        "human": {name: false_alarms(windows, tokenizer) for name, windows in sorted(groups.items())},
        "planted": planted_loops(),
        "milliseconds_per_1000_tokens": milliseconds,
    }


# ------------------------------------------------------------------------------------------- text that people wrote


def human_windows(folder: Path, files: str, tokenizer: Tokenizer, most: int) -> dict[str, list[Window]]:
    """The first `most` windows of each file, grouped: prose, code, math (text), math questions, other questions.

    Raises ConfigError for a folder without such files, or a file that is something else.
    """
    paths = sorted(folder.glob(files))
    if not paths:
        raise ConfigError(f"{folder}: no file here is called {files}; name a folder of *.jsonl.xz with a `text` field")
    groups: dict[str, list[Window]] = {}
    for path in paths:
        source = path.name.partition(".")[0]
        domain: Domain = "code" if source.startswith("code") else "math" if source.startswith("math") else "prose"
        try:
            for group, window in islice(_windows(path, domain, tokenizer), most):
                groups.setdefault(group, []).append(window)
        except (lzma.LZMAError, KeyError, ValueError) as error:
            raise ConfigError(
                f"{path}: not xz-packed lines of JSON with a `text` each ({error}); see --files"
            ) from error
    if not groups:
        raise ConfigError(
            f"{folder}: no document in {files} has {OPENING + OUTPUT} tokens; name longer ones in --files"
        )
    return groups


def _windows(path: Path, domain: Domain, tokenizer: Tokenizer) -> Iterator[tuple[str, Window]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            if asked := QUESTION.fullmatch(text):
                # The right answer is what stands after ####, or all of it.
                gold = GOLD.search(text)
                right = gold[1] if gold else asked[2].strip()
                group = "math questions" if domain == "math" else "other questions"
                yield group, Window(domain, asked[1], tokenizer.encode(asked[2]), right, True)
            else:
                for window in _cut(domain, tokenizer.encode(text), tokenizer):
                    yield domain, window


def _cut(domain: Domain, ids: list[int], tokenizer: Tokenizer) -> Iterator[Window]:
    whole = OPENING + OUTPUT
    for start in range(0, len(ids) - whole + 1, whole):
        middle = start + OPENING
        yield Window(domain, tokenizer.decode(ids[start:middle]), ids[middle : start + whole], None, False)


def evenly(windows: list[Window], most: int) -> list[Window]:
    """At most `most` of them, spread over all."""
    count = min(most, len(windows))
    return [windows[number * len(windows) // count] for number in range(count)]


def labels_of(window: Window, tokenizer: Tokenizer) -> Labels:
    return label(
        window.prompt,
        tokenizer.decode(window.ids),
        window.ids,
        "eos" if window.ends else "length",
        len(window.ids) + 1,
        domain=window.domain,
        gold=window.gold,
        tokenizer=tokenizer,
    )


def false_alarms(windows: Sequence[Window], tokenizer: Tokenizer) -> dict[str, Any]:
    """How many windows, and for each label how many of them it fires on, its rate, and that of its suspicions."""
    fired: Counter[str] = Counter()
    for window in windows:
        flags = labels_of(window, tokenizer).flags
        fired.update({f"{flag.failure}{'?' * flag.suspect}" for flag in flags})
    return {
        "windows": len(windows),
        "labels": {
            failure: {
                "fired": fired[failure],
                "rate": round(fired[failure] / len(windows), 5),
                "interval": wilson(fired[failure], len(windows)),
                "suspected": round(fired[f"{failure}?"] / len(windows), 5),
            }
            for failure in ORDER
        },
    }


def wilson(fired: int, of: int, z: float = 1.96) -> list[float]:
    """The 95 % interval of a rate."""
    rate, spread = fired / of, z * z / of
    middle = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(rate * (1 - rate) / of + spread / of / 4)
    return [round(max(0.0, middle - half), 5), round(min(1.0, middle + half), 5)]


# ------------------------------------------------------------------------------------------------- planted loops


def planted_loops(seed: int = 0, vocabulary: int = 8192) -> dict[str, Any]:
    """F1 of finding them, the largest error of their onset in tokens, and the share of exact periods."""
    rng = np.random.default_rng(seed)
    found = wrong = loops = 0
    onset_error, exact_periods = 0, 0
    for period in PERIODS:
        for copies in COPIES:
            for _ in range(PLANTED_PER_KIND):
                noise = rng.integers(0, vocabulary, int(rng.integers(0, 200))).tolist()
                # Different tokens, none of them the last of the noise: period and onset are then what we say.
                drawn = rng.choice(vocabulary, period + 1, replace=False).tolist()
                block = [token for token in drawn if token not in noise[-1:]][:period]
                is_loop = copies >= MIN_COPIES_OF_ONE_TOKEN if period == 1 else _long_enough(period, copies)
                loop = find_loop(noise + block * copies)
                loops += is_loop
                if loop is None:
                    continue
                found, wrong = found + is_loop, wrong + (not is_loop)
                onset_error = max(onset_error, abs(loop.start - len(noise)))
                exact_periods += loop.period == period
    return {
        "sequences": len(PERIODS) * len(COPIES) * PLANTED_PER_KIND,
        "loops": loops,
        "f1": round(2 * found / (2 * found + wrong + loops - found), 4),
        "largest_onset_error": onset_error,
        "exact_periods": round(exact_periods / max(1, found + wrong), 4),
    }


def _long_enough(period: int, copies: int) -> bool:
    return copies >= MIN_COPIES and period * copies >= MIN_TOKENS


def speed(groups: dict[str, list[Window]], tokenizer: Tokenizer, tokens: int = 1000, repeats: int = 20) -> float:
    """Median milliseconds of processor time to label 1,000 tokens, decoding included."""
    ids = [id for windows in groups.values() for window in windows for id in window.ids]
    times = []
    for repeat in range(repeats):
        first = repeat * tokens % max(1, len(ids) - tokens)
        piece = ids[first : first + tokens]
        start = process_time()
        label("Once upon a time", tokenizer.decode(piece), piece, "length", tokens, "prose", tokenizer=tokenizer)
        times.append((process_time() - start) * tokens / len(piece))
    return round(1000 * median(times), 2)


# ---------------------------------------------------------------------------------------------------- the table


def table(found: dict[str, Any]) -> str:
    """Markdown: false alarms by group and label in percent, those above the bound in bold; suspicions in brackets."""
    rows = [f"| people's text | windows | {' | '.join(WORDS[failure] for failure in ORDER)} |"]
    rows.append("|---|---|" + "---|" * len(ORDER))
    for name, group in found["human"].items():
        cells = [_cell(group["labels"][failure]) for failure in ORDER]
        rows.append(f"| {name} | {group['windows']:,} | {' | '.join(cells)} |")
    return "\n".join(rows)


def planted_line(found: dict[str, Any]) -> str:
    """The scores on planted loops and the speed, as a sentence."""
    planted = found["planted"]
    return (
        f"Planted loops: F1 {planted['f1']:.3f} over {planted['sequences']} sequences, onset at most "
        f"{planted['largest_onset_error']} tokens off, {100 * planted['exact_periods']:.0f} % of periods exact. "
        f"Labelling 1,000 tokens takes {found['milliseconds_per_1000_tokens']:.1f} ms."
    )


def _cell(measured: dict[str, Any]) -> str:
    rate = f"{100 * measured['rate']:.2f} %"
    if measured["rate"] > BOUND:
        rate = f"**{rate}**"
    return f"{rate} ({100 * measured['suspected']:.1f} %)" if measured["suspected"] else rate
