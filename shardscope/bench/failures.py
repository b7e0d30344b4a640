"""`shardscope bench failures`: how often labels fire on text that people wrote, and how well planted loops are found.

False alarms: documents are cut into windows of an opening (the prompt) and what its author wrote next (the output), and
the outputs are labelled as if a model had written them, at 64 and at 256 tokens. Rates come with Wilson's 95 % interval
(Wilson 1927, doi:10.1080/01621459.1927.10502953). A label may fire on at most 0.5 % of a domain's windows.

With `--fit` the limits of the labels are set first, on training files and on every other held-out document; measured
are the rest (`--half measured`, the default). Without it nothing is set.

Planted loops: copies of a random block after noise. Found are those that `find_loop` reports; what it reports in noise
counts against its precision.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from statistics import median
from time import process_time
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from shardscope.bench import measure
from shardscope.checkpoint import BUILT_IN, load
from shardscope.config import ConfigError
from shardscope.failures import broken_words
from shardscope.failures.broken_words import most_broken
from shardscope.failures.calibration import LIMITS
from shardscope.failures.drift import PASSAGE, is_clear, prompt_lift
from shardscope.failures.intervals import wilson
from shardscope.failures.labels import ORDER, Labels, label, label_tokens, token_pieces
from shardscope.failures.loops import MIN_COPIES, MIN_COPIES_OF_ONE_TOKEN, MIN_TOKENS, find_loop
from shardscope.failures.prompts import Domain
from shardscope.failures.repetition import SIZES, passages
from shardscope.failures.text_model import DOMAINS, FILE_NAME, TextModel, built_in
from shardscope.files import write_json
from shardscope.model import Shard
from shardscope.tokenizer import Tokenizer

BOUND = 0.005
OPENING, OUTPUT = 32, 256  # tokens
SHORT = 64  # tokens of an output that is judged a second time, cut short
HELD_OUT, TRAINING = "*.val.jsonl.xz", "*[0-9][0-9].jsonl.xz"
PERIODS = (1, 2, 4, 16, 64, 256)
COPIES = (3, 4, 8, 10, 50)
PLANTED_PER_KIND = 20
# Of people's texts, so many lie above a limit; several limits together stay below BOUND.
TAIL = 0.002
LIFT_TAILS = (0.05, 0.03, 0.02, 0.01, 0.005)  # the widest is taken under which lift adds fewer alarms than TAIL
DRIFT_TAIL = 0.003  # of the passages after clear prompts
CLEAR_PROMPT: dict[Domain, float] = {"code": 0.0, "math": 0.0, "prose": 0.2}
CHARACTERS_TO_FIT = 30_000_000  # of each domain
# A document that asks: what comes before the answer is the prompt, what stands after `####` the right answer.
QUESTION = re.compile(r"(?s)(Question: .*?\nAnswer:)(.*)")
GOLD = re.compile(r"#### ([-\d.,]+)\s*$")
Half = Literal["all", "calibration", "measured"]


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
    parser.add_argument(
        "--half",
        choices=("all", "calibration", "measured"),
        default="measured",
        help="which documents: every other one is for calibration, the rest is measured (default measured)",
    )
    parser.add_argument("--without-model", action="store_true", help="leave out the drift that only a model sees")
    parser.add_argument(
        "--fit", action="store_true", help="first set the limits, on training files and calibration half"
    )
    parser.add_argument("--out", metavar="FILE", help="where the numbers are written, as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON; 0. Raises ConfigError for a folder without such files."""
    measure.at_least_one(windows=arguments.windows)
    folder = Path(arguments.folder)
    if arguments.fit:
        fit(folder, LIMITS.parent)
    model = None if arguments.without_model else load(BUILT_IN)
    found = false_alarms_in(folder, arguments.files, arguments.windows, arguments.half, model)
    print(table(found), planted_line(found), sep="\n\n")
    measure.save(found, arguments.out)
    return 0


def false_alarms_in(folder: Path, files: str, most: int, half: Half, model: Shard | None) -> dict[str, Any]:
    """False alarms by group and label; scores on planted loops; milliseconds per 1,000 tokens."""
    tokenizer = Tokenizer.load(BUILT_IN)
    # First, while memory holds little: Python's garbage collector would count what comes next.
    milliseconds = speed(human_windows(folder, files, tokenizer, 100), tokenizer)
    found = human_windows(folder, files, tokenizer, most, half)
    groups = {name: evenly(windows, most) for name, windows in sorted(found.items())}
    return {
        "files": files,
        "half": half,
        "tokenizer": tokenizer.fingerprint,
        "opening": OPENING,
        "people": {name: false_alarms(windows, tokenizer, model) for name, windows in groups.items()},
        "planted": planted_loops(),
        "milliseconds_per_1000_tokens": milliseconds,
    }


# ------------------------------------------------------------------------------------------- text that people wrote


def documents(folder: Path, files: str, half: Half = "all") -> Iterator[tuple[Domain, str]]:
    """The domain and the text of every document; of a half, every other one of each file.

    Raises ConfigError for a folder without such files, or a file that is something else.
    """
    paths = sorted(folder.glob(files))
    if not paths:
        raise ConfigError(f"{folder}: no file here is called {files}; name a folder of *.jsonl.xz with a `text` field")
    parity = {"all": None, "calibration": 0, "measured": 1}[half]
    for path in paths:
        for number, text in enumerate(_texts(path)):
            if parity is None or number % 2 == parity:
                yield _domain_of(path), text


def _texts(path: Path) -> Iterator[str]:
    try:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]
    except (lzma.LZMAError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: not xz-packed lines of JSON with a `text` each ({error}); see --files") from error


def _domain_of(path: Path) -> Domain:
    return "code" if path.name.startswith("code") else "math" if path.name.startswith("math") else "prose"


def human_windows(
    folder: Path, files: str, tokenizer: Tokenizer, most: int, half: Half = "all"
) -> dict[str, list[Window]]:
    """The first `most` windows of each file, grouped by domain, length, and whether a question is answered."""
    groups: dict[str, list[Window]] = {}
    for path in sorted(folder.glob(files)) or [Path(files)]:
        windows = (
            found for domain, text in documents(folder, path.name, half) for found in _windows(text, domain, tokenizer)
        )
        for group, window in islice(windows, most):
            groups.setdefault(group, []).append(window)
            if "questions" not in group:
                short = window._replace(ids=window.ids[:SHORT])
                groups.setdefault(group.replace(str(OUTPUT), str(SHORT)), []).append(short)
    if not groups:
        raise ConfigError(
            f"{folder}: no document in {files} has {OPENING + OUTPUT} tokens; name longer ones in --files"
        )
    return groups


def _windows(text: str, domain: Domain, tokenizer: Tokenizer) -> Iterator[tuple[str, Window]]:
    if asked := QUESTION.fullmatch(text):
        # The right answer is what stands after ####, or all of it.
        gold = GOLD.search(text)
        right = gold[1] if gold else asked[2].strip()
        group = "math questions" if domain == "math" else "other questions"
        yield group, Window(domain, asked[1], tokenizer.encode(asked[2]), right, True)
        return
    ids = tokenizer.encode(text)
    whole = OPENING + OUTPUT
    for start in range(0, len(ids) - whole + 1, whole):
        middle = start + OPENING
        prompt = tokenizer.decode(ids[start:middle])
        yield f"{domain}, {OUTPUT} tokens", Window(domain, prompt, ids[middle : start + whole], None, False)


def evenly(windows: list[Window], most: int) -> list[Window]:
    """At most `most` of them, spread over all."""
    count = min(most, len(windows))
    return [windows[number * len(windows) // count] for number in range(count)]


def labels_of(window: Window, tokenizer: Tokenizer, model: Shard | None = None) -> Labels:
    prompt_ids = tokenizer.encode(window.prompt, bos=True)
    return label_tokens(
        window.prompt,
        token_pieces(window.ids, tokenizer),
        ids=window.ids,
        stop_reason="eos" if window.ends else "length",
        domain=window.domain,
        gold=() if window.gold is None else (window.gold,),
        lift=None if model is None else prompt_lift(model, prompt_ids, window.ids),
    )


def false_alarms(windows: Sequence[Window], tokenizer: Tokenizer, model: Shard | None = None) -> dict[str, Any]:
    """How many texts, and for each label how many of them it fires on or suspects, the rates and their intervals."""
    fired: Counter[str] = Counter()
    for window in tqdm(windows, desc="labelling", unit=" texts", leave=False, disable=None):
        flags = labels_of(window, tokenizer, model).flags
        fired.update({f"{flag.failure}{'?' * flag.suspect}" for flag in flags})
    return {
        "domain": windows[0].domain,
        "texts": len(windows),
        "labels": {
            failure: {
                "certain": _rate(fired[failure], len(windows)),
                "suspected": _rate(fired[f"{failure}?"], len(windows)),
            }
            for failure in ORDER
        },
    }


def _rate(fired: int, of: int) -> dict[str, Any]:
    low, high = wilson(fired, of)
    return {"fired": fired, "rate": round(fired / of, 5), "interval": [round(low, 5), round(high, 5)]}


# ------------------------------------------------------------------------------------------------ setting the limits


def fit(folder: Path, out: Path) -> None:
    """Fit the text model on training files, set the limits on them and on the calibration half; write both to `out`.

    Raises ConfigError for a folder that lacks the training or the held-out files of a domain.
    """
    training = {domain: list(_some_text(folder, domain)) for domain in DOMAINS}
    TextModel.fit(training, vocabulary=(text for _, text in documents(folder, TRAINING))).save(out / FILE_NAME)
    built_in.cache_clear()
    tokenizer, model = Tokenizer.load(BUILT_IN), load(BUILT_IN)
    held_out: dict[Domain, list[str]] = {domain: [] for domain in DOMAINS}
    for domain, text in documents(folder, HELD_OUT, "calibration"):
        held_out[domain].append(text)
    windows = human_windows(folder, HELD_OUT, tokenizer, 10_000, "calibration")
    limits = {
        domain: {
            "repetitive": _repetition_limits([training[domain], held_out[domain]]),
            "broken_words": _broken_limits([training[domain], held_out[domain]]),
            "drift": _drift_limits(domain, training[domain], windows[f"{domain}, {OUTPUT} tokens"], model),
        }
        for domain in DOMAINS
    }
    write_json(out / LIMITS.name, limits, indent=1)


def _some_text(folder: Path, domain: Domain) -> Iterator[str]:
    """Documents of the training files of a domain, as many characters of each file as of the others."""
    paths = [path for path in sorted(folder.glob(TRAINING)) if _domain_of(path) == domain]
    for path in paths:
        left = CHARACTERS_TO_FIT // len(paths)
        for text in _texts(path):
            yield text
            left -= len(text)
            if left < 0:
                break


def _repetition_limits(corpora: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """By size of a passage: the percentile of repeated 4-grams and of compression, the larger of the corpora's."""
    limits: dict[str, list[float]] = {}
    for size in SIZES:
        longest = 4 * size if size == SIZES[-1] else 2 * size - 1
        by_corpus = []
        for texts in corpora:
            found = [passages(chunk) for chunk in _chunks(texts, size, longest, most=10_000)]
            repeated = _percentile((max(p.repeated for p in chunk) for chunk in found), 1 - TAIL)
            by_corpus.append((repeated, _percentile((max(p.compression for p in chunk) for chunk in found), 1 - TAIL)))
        limits[str(size)] = [round(max(values), 4) for values in zip(*by_corpus, strict=True)]
    return limits


def _broken_limits(corpora: Sequence[Sequence[str]]) -> dict[str, float]:
    """By size of a text: the percentile of the share of unknown words, the larger of the corpora's."""
    limits: dict[str, float] = {}
    for size in broken_words.SIZES:
        longest = 4 * size if size == broken_words.SIZES[-1] else 2 * size - 1
        shares = [
            [found.share if (found := most_broken(chunk, built_in())) else 0.0 for chunk in chunks]
            for chunks in (_chunks(texts, size, longest, most=10_000) for texts in corpora)
        ]
        limits[str(size)] = round(max(_percentile(found, 1 - TAIL) for found in shares), 4)
    return limits


def _drift_limits(domain: Domain, training: Sequence[str], windows: Sequence[Window], model: Shard) -> dict[str, Any]:
    """B on its own from all text; A, and B and C beside it, from the calibration half: prompts of 8 and 32 tokens."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    text_model = built_in()

    def least_pair(text: str) -> float:
        odds = text_model.log_odds(text, domain, PASSAGE)
        return min((max(pair) for pair in pairwise(odds)), default=np.inf)

    def least_after_clear(prompt: str, text: str) -> float:
        clear = is_clear(prompt, domain, text_model, CLEAR_PROMPT[domain])
        return least_pair(text) if clear else np.inf

    texts = [tokenizer.decode(window.ids) for window in windows]
    pairs = [least_pair(text) for text in texts]
    held_out = [least_after_clear(window.prompt, text) for window, text in zip(windows, texts, strict=True)]
    chunks = _chunks(training, 1000, 1250, most=10_000)
    trained = [least_after_clear(chunk[:PASSAGE], chunk[PASSAGE:]) for chunk in chunks]
    lift = np.array([_least_lift(window, model, tokenizer) for window in windows])
    cosine = np.array([text_model.cosine(w.prompt, text[:PASSAGE]) for w, text in zip(windows, texts, strict=True)])
    least_lift = _percentile(lift, 0.05)
    for tail in LIFT_TAILS:
        with_lift, least_cosine = _percentile(pairs, tail), _percentile(cosine, tail)
        alarms = (lift < least_lift) & ((np.array(pairs) < with_lift) | (cosine < least_cosine))
        if alarms.mean() <= TAIL:
            break
    odds = min(_lowest(held_out, DRIFT_TAIL), _lowest(trained, DRIFT_TAIL))
    return {
        "clear_prompt": CLEAR_PROMPT[domain],
        "odds": round(odds, 4),
        "odds_with_lift": round(max(odds, with_lift), 4),
        "odds_suspect": round(_percentile(pairs, 0.05), 4),
        "lift": round(least_lift, 4),
        "cosine": round(least_cosine, 5),
    }


def _least_lift(window: Window, model: Shard, tokenizer: Tokenizer) -> float:
    """With prompts of 32 and of 8 tokens, the lesser: a short prompt lifts less."""
    opening = tokenizer.encode(window.prompt)
    found = [prompt_lift(model, [tokenizer.bos_id, *part], window.ids) for part in (opening, opening[-8:])]
    return min(lift for lift in found if lift is not None)


def _chunks(texts: Sequence[str], shortest: int, longest: int, most: int) -> Iterator[str]:
    """Pieces of texts, each of a random length between the two; about `most`, spread over all texts."""
    rng = Random(0)
    step = max(1, sum(map(len, texts)) // (most * (shortest + longest) // 2))
    number = 0
    for text in texts:
        start = 0
        while start + shortest <= len(text):
            length = rng.randint(shortest, longest)
            if number % step == 0 and len(text) - start >= shortest:
                yield text[start : start + length]
            start, number = start + length, number + 1


def _lowest(values: Sequence[float], share: float) -> float:
    """A percentile of values some of which are infinite."""
    return sorted(values)[int(share * len(values))]


def _percentile(values: Iterable[float], share: float) -> float:
    return float(np.quantile(list(values), share))


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
        label(tokenizer.decode(piece), prompt="Once upon a time", ids=piece, domain="prose", tokenizer=tokenizer)
        times.append((process_time() - start) * tokens / len(piece))
    return round(1000 * median(times), 2)


# ---------------------------------------------------------------------------------------------------- the table


def table(found: dict[str, Any]) -> str:
    """Markdown: false alarms by group and label in percent, those above the bound in bold; suspicions in brackets."""
    rows = [
        [name, f"{group['texts']:,}", *(_cell(group["labels"][failure]) for failure in ORDER)]
        for name, group in found["people"].items()
    ]
    return "\n".join(measure.table(["people's text", "texts", *ORDER], rows))


def planted_line(found: dict[str, Any]) -> str:
    """The scores on planted loops and the speed, as a sentence."""
    planted = found["planted"]
    return (
        f"Planted loops: F1 {planted['f1']:.3f} over {planted['sequences']} sequences, onset at most "
        f"{planted['largest_onset_error']} tokens off, {100 * planted['exact_periods']:.0f} % of periods exact. "
        f"Labelling 1,000 tokens takes {found['milliseconds_per_1000_tokens']:.1f} ms."
    )


def _cell(measured: dict[str, Any]) -> str:
    rate = f"{100 * measured['certain']['rate']:.2f} %"
    if measured["certain"]["rate"] > BOUND:
        rate = f"**{rate}**"
    suspected = measured["suspected"]["rate"]
    return f"{rate} ({100 * suspected:.1f} %)" if suspected else rate
