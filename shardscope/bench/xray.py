"""How long the X-ray of a loop takes, and every part ablated in one batch beside the same interventions one by one.

What `shardscope bench xray` prints and writes comes from here. One by one is what one would do by hand: hooks that
ablate the part, and `generate` from the loop's first copies on, for as many tokens as the batched replay may write.
Only some parts are ablated by hand, and times are compared by the intervention. Beside the seconds on the clock stand
those of the processor, all threads together, which other programs disturb less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any

import torch

from shardscope import load
from shardscope.bench import measure
from shardscope.checkpoint import BUILT_IN
from shardscope.config import PRESETS, ConfigError
from shardscope.device import pick_device
from shardscope.failures.held_out import held_out_ids, windows
from shardscope.failures.loop_xray import (
    XrayError,
    ablation_bank,
    find_onset,
    find_suspects,
    parts_of,
    switched_off,
    xray,
)
from shardscope.failures.loop_xray.cause import REFERENCE_LENGTH, REFERENCE_WINDOWS, established_replay
from shardscope.generation import Generation, SamplingConfig, generate
from shardscope.model import Shard

if TYPE_CHECKING:
    import argparse

PROMPT = "The capital of France is"
PROMPT_TOKENS, NEW_TOKENS = 16, 512
TRIED = 16  # random prompts of a random model
BY_HAND = 8  # parts that are ablated one by one, spread over all; each costs the same
BATCHED, ALONE = "every part, one batch", "parts one by one"
DTYPES = ("float32", "bfloat16")
FLAGS = ("checkpoint", "model", "prompt", "runs", "dtype", "out")


@dataclass(frozen=True)
class XrayRow:
    """A row of the table: the medians of its runs, on the clock and of the processor, and how many interventions."""

    what: str
    interventions: int
    seconds: float
    spread: float | None
    runs: list[float]
    processor_seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="PATH", help="default: the built-in model")
    parser.add_argument("--model", choices=tuple(PRESETS), help="random weights of this size instead")
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help=f"of a trained model (default {PROMPT!r})")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default float32")
    measure.add_shared_arguments(parser, runs=3)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON. Raises ConfigError for a model or a prompt that does not loop."""
    measure.at_least_one(runs=arguments.runs)
    if arguments.model and arguments.checkpoint:
        raise ConfigError("--checkpoint and --model are two models; name one")
    device = pick_device(arguments.device)
    if arguments.model:
        torch.manual_seed(0)
        model = Shard(PRESETS[arguments.model]).eval().to(device)
    else:
        model = load(arguments.checkpoint or BUILT_IN, device=device)
    model = model.to(getattr(torch, arguments.dtype))
    generation = looping_text(model, None if arguments.model else arguments.prompt)
    onset = find_onset(model, generation)
    report = {
        "command": measure.command_line("xray", arguments, *FLAGS),
        "machine": measure.machine(device),
        "model": str(arguments.model or arguments.checkpoint or "built-in"),
        "dtype": arguments.dtype,
        "parts": len(parts_of(model.config)),
        "period": onset.period,
        "onset": onset.onset,
        "rows": [asdict(row) for row in compare(model, generation, arguments.runs)],
    }
    print(table(report))
    measure.save(report, arguments.out)
    return 0


def looping_text(model: Shard, prompt: str | None) -> Generation:
    """A text that loops; of random tokens without a prompt. Raises ConfigError if none is found."""
    config = SamplingConfig(max_new_tokens=min(NEW_TOKENS, model.config.n_ctx // 2))
    for seed in range(1 if prompt is not None else TRIED):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(model.config.vocab_size, (PROMPT_TOKENS,), generator=generator).tolist()
        [generation] = generate(model, [prompt if prompt is not None else ids], config)
        try:
            established_replay(model, generation, find_onset(model, generation))
        except XrayError as error:
            problem = error
        else:
            return generation
    raise ConfigError(str(problem))


def compare(model: Shard, generation: Generation, runs: int) -> list[XrayRow]:
    """When and who; all stages; every part in one batch; and some of them one by one, by hand."""
    device, parts = model.device, parts_of(model.config)
    onset = find_onset(model, generation)
    length = min(REFERENCE_LENGTH, model.config.n_ctx)
    bank = ablation_bank(model, windows(held_out_ids(model), REFERENCE_WINDOWS, length))
    replay = established_replay(model, generation, onset)
    some = parts[:: max(1, len(parts) // BY_HAND)][:BY_HAND]
    prompt = [*replay.before, *replay.text[: replay.given * replay.period]]
    by_hand = SamplingConfig(max_new_tokens=replay.length, stop_at_eos=False)
    tried = 0

    def quick() -> None:
        find_suspects(model, generation, find_onset(model, generation))

    def everything() -> None:
        nonlocal tried
        tried = xray(model, generation).cause.interventions

    def batched() -> None:
        replay.play([[part] for part in parts], bank, [[0]] * len(parts))

    def alone() -> None:
        for part in some:
            with switched_off(model, [part], bank):
                generate(model, [prompt], by_hand)

    batched()  # warm
    ways = {"onset and ranks": quick, "the whole X-ray": everything, BATCHED: batched, ALONE: alone}
    processor: dict[str, list[float]] = {what: [] for what in ways}

    def noted(what: str, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            start = process_time()
            work()
            processor[what].append(process_time() - start)

        return run

    seconds = measure.taking_turns({what: noted(what, work) for what, work in ways.items()}, runs, device)
    counts = {"the whole X-ray": tried, BATCHED: len(parts), ALONE: len(some)}
    rows = []
    for what, times in seconds.items():
        timing = measure.summary(times)
        spent = median(processor[what])
        rows.append(XrayRow(what, counts.get(what, 0), timing.median, timing.spread, times, spent))
    return rows


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        f"{report['model']}, {report['dtype']}, {report['machine']['name']}, {report['machine']['threads']} threads, "
        f"torch {report['machine']['torch']}; a loop of {report['period']} tokens, {report['parts']} heads and MLPs",
        "",
    ]
    rows = []
    each: dict[str, float] = {}
    for row in report["rows"]:
        shown = "–"
        if row["interventions"]:
            each[row["what"]] = row["seconds"] / row["interventions"]
            shown = f"{1000 * each[row['what']]:,.0f} ms"
        spread, spent = measure.shown_spread(row["spread"]), f"{row['processor_seconds']:.2f}"
        rows.append([row["what"], str(row["interventions"] or "–"), f"{row['seconds']:.2f}", spread, spent, shown])
    header = ["what", "interventions", "seconds", "spread", "processor", "each"]
    lines += [
        *measure.table(header, rows),
        "",
        f"An intervention takes {each[ALONE] / each[BATCHED]:.1f} times as long by hand.",
    ]
    return "\n".join(lines)
