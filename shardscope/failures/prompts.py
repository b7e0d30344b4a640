"""The prompts that failures are counted on: the six of Shard-40m-v1's model card, about 200 of our own, a user's file.

A suite is a file of JSON lines. Of a line's keys only `prompt` is needed:

    {"prompt": "The capital of Italy is", "domain": "prose", "skill": "facts", "gold": "Rome"}
    {"fact": "The key is under the mat.", "question": "The key is under the", "windows": 1.5, "gold": "mat"}

A line of the second kind is written out for a model by `for_model`: the fact, unrelated sentences, and the question
`windows` sliding windows of the model after the fact. `gold` is the right answer, or a list of right ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from shardscope.config import ConfigError, suggest
from shardscope.files import parse_json, read_text
from shardscope.model import Shard
from shardscope.resources import resource
from shardscope.tokenizer import Tokenizer

Domain = Literal["math", "code", "prose"]

FOLDER = "prompts"  # under evals/


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """A fact to be found again: `question` comes `windows` sliding windows of the model after `fact`."""

    fact: str
    question: str
    windows: float


@dataclass(frozen=True, kw_only=True)
class SuitePrompt:
    """A prompt, what kind it is, and every answer that is right (none given: no answer is wrong).

    `retrieval` is set where the text depends on the model; `text` is then empty until `for_model` writes it.
    `operation` and `operands` say what a sum asks for.
    """

    text: str
    id: str = ""
    domain: Domain = "prose"
    skill: str = "card"
    gold: tuple[str, ...] = ()
    retrieval: Retrieval | None = None
    operation: str = ""
    operands: tuple[int, ...] = ()


CARD_PROMPTS: tuple[SuitePrompt, ...] = (
    SuitePrompt(id="card-1", text="The capital of France is", domain="prose", gold=("Paris",)),
    SuitePrompt(id="card-2", text="To compute 12 plus 7, we can", domain="math", gold=("19",)),
    SuitePrompt(id="card-3", text="Question: What is 23 + 19? Answer:", domain="math", gold=("42",)),
    SuitePrompt(id="card-4", text="def fibonacci(n):", domain="code"),
    SuitePrompt(id="card-5", text="Once upon a time, in a small village,", domain="prose"),
    SuitePrompt(id="card-6", text="Solve: 17 * 23 = ?", domain="math", gold=("391",)),
)


def load_suite(path: str | Path | None = None) -> list[SuitePrompt]:
    """The prompts of a file of JSON lines; None: the card's six and all of this project's own.

    Raises ConfigError, with the file and the line, for anything that is not a prompt.
    """
    if path is not None:
        return _read(Path(path))
    files = sorted((resource("evals") / FOLDER).glob("*.jsonl"))
    return [*CARD_PROMPTS, *(prompt for file in files for prompt in _read(file))]


@cache
def _suite_by_text() -> dict[str, SuitePrompt]:
    return {prompt.text: prompt for prompt in load_suite() if prompt.text}


def suite_prompt(text: str) -> SuitePrompt | None:
    """The prompt of this project's own suite that reads so, or None."""
    return _suite_by_text().get(text)


def for_model(prompts: Iterable[SuitePrompt], model: Shard, room: int = 0) -> list[SuitePrompt]:
    """The prompts with every text written out for this model, without those that leave no `room` for new tokens.

    Raises ConfigError for a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise ConfigError("prompts are cut into tokens, and this model has no tokenizer; set model.tokenizer")
    written = [_written(prompt, model.tokenizer, model.config.window) for prompt in prompts]
    return [p for p in written if len(model.tokenizer.encode(p.text, bos=True)) + room <= model.config.n_ctx]


def retrieval_text(fact: str, question: str, distance: int, tokenizer: Tokenizer, seed: int = 0) -> str:
    """The fact, sentences that have nothing to do with it, and the question, whose end is `distance` tokens away.

    Whole sentences are written, so that the distance is met to within one of them, and never exceeded.
    """
    sentences = (tokenizer.encode(f" {sentence}") for sentence in _filler(seed))
    return tokenizer.decode(planted(tokenizer.encode(fact), sentences, tokenizer.encode(f" {question}"), distance))


def planted(fact: Sequence[int], filler: Iterable[Sequence[int]], question: Sequence[int], distance: int) -> list[int]:
    """Fact, filler and question as ids: the question's end is `distance` tokens after the fact's.

    As many whole pieces of `filler` as there is room for: the distance is short by less than the next of them.
    """
    room, between = distance - len(question), list[int]()
    for piece in filler:
        if len(between) + len(piece) > room:
            break
        between += piece
    return [*fact, *between, *question]


def _written(prompt: SuitePrompt, tokenizer: Tokenizer, window: int) -> SuitePrompt:
    if prompt.retrieval is None:
        return prompt
    distance = round(prompt.retrieval.windows * window)
    text = retrieval_text(prompt.retrieval.fact, prompt.retrieval.question, distance, tokenizer)
    return replace(prompt, text=text)


_WHO = (
    "The gardener",
    "My aunt",
    "A young soldier",
    "The miller's wife",
    "An old teacher",
    "The postman",
    "A tall man",
)
_DID = ("walked along", "swept", "looked at", "talked about", "painted", "waited beside", "remembered", "drew")
_WHAT = ("the narrow road", "the empty market", "a stone bridge", "the river", "the railway", "a field of barley")
_WHEN = ("in the morning", "after the rain", "for an hour", "before supper", "without a word", "on the first of May")


def _filler(seed: int) -> Iterator[str]:
    """Two thousand sentences, none twice, in an order of the seed's."""
    parts = list(product(_WHO, _DID, _WHAT, _WHEN))
    Random(seed).shuffle(parts)
    for who, did, what, when in parts:
        yield f"{who} {did} {what} {when}."


# --------------------------------------------------------------------------------------------- reading a file

_KEYS = ("prompt", "fact", "question", "windows", "id", "domain", "skill", "gold", "operation", "operands")


def _read(path: Path) -> list[SuitePrompt]:
    # Not splitlines(): a text in JSON may hold other characters that it takes for line ends.
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    found: dict[str, SuitePrompt] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _prompt(line, f"{path}, line {number}", path.stem, len(found) + 1)
        if prompt.id in found:
            raise ConfigError(f"{path}, line {number}: id={prompt.id!r} stands on an earlier line, too; change one")
        found[prompt.id] = prompt
    if not found:
        raise ConfigError(f'{path}: holds no prompt; write lines such as {{"prompt": "The capital of Italy is"}}')
    return list(found.values())


def _prompt(line: str, where: str, stem: str, number: int) -> SuitePrompt:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise ConfigError(f'{where}: holds {type(row).__name__}, not an object such as {{"prompt": "…"}}')
    for key in row:
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest(key, _KEYS)}")
    domain = _of_type(row, "domain", str, where, "prose")
    if domain not in get_args(Domain):
        raise ConfigError(f"{where}: domain={domain!r} is unknown; use {', '.join(get_args(Domain))}")
    retrieval = _retrieval(row, where)
    text = _of_type(row, "prompt", str, where, "")
    if not text and retrieval is None:
        raise ConfigError(f"{where}: holds no prompt; write it as a text under the key 'prompt'")
    operands = _of_type(row, "operands", list, where, [])
    if not all(type(operand) is int for operand in operands):
        raise ConfigError(f"{where}: operands={operands!r} must be whole numbers")
    return SuitePrompt(
        id=_of_type(row, "id", str, where, f"{stem}-{number}"),
        text=text,
        domain=domain,
        skill=_of_type(row, "skill", str, where, stem),
        gold=_gold(row, where),
        retrieval=retrieval,
        operation=_of_type(row, "operation", str, where, ""),
        operands=tuple(operands),
    )


def _retrieval(row: dict[str, Any], where: str) -> Retrieval | None:
    keys = [key for key in ("fact", "question", "windows") if key in row]
    if not keys:
        return None
    if len(keys) < 3 or "prompt" in row:
        raise ConfigError(f"{where}: a fact to be retrieved needs fact, question and windows, and no prompt")
    windows = row["windows"]
    if isinstance(windows, bool) or not isinstance(windows, int | float) or not 0 < windows < 1000:
        raise ConfigError(f"{where}: windows={windows!r} must be a number above 0 and below 1000")
    fact, question = (_of_type(row, key, str, where, "") for key in ("fact", "question"))
    if not fact or not question:
        raise ConfigError(f"{where}: fact and question must not be empty")
    return Retrieval(fact=fact, question=question, windows=float(windows))


def _gold(row: dict[str, Any], where: str) -> tuple[str, ...]:
    gold = row.get("gold", [])
    answers = gold if isinstance(gold, list) else [gold]
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise ConfigError(f"{where}: gold={gold!r} must be a text, or a list of texts, none of them empty")
    return tuple(answers)


def _of_type(row: dict[str, Any], key: str, kind: type, where: str, default: Any) -> Any:
    value = row.get(key, default)
    if not isinstance(value, kind):
        wanted = {"str": "a text", "list": "a list"}[kind.__name__]
        raise ConfigError(f"{where}: {key}={value!r} must be {wanted}")
    return value
