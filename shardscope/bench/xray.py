"""How long the X-ray of a loop takes, and every part ablated in one batch beside the same interventions one by one.

What `shardscope bench xray` prints and writes comes from here. One by one is what one would do by hand: hooks that
ablate the part, and `generate` from the loop's first copies on, for as many tokens as the batched replay may write.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from shardscope import load
from shardscope.bench import measure
from shardscope.checkpoint import BUILT_IN
from shardscope.config import PRESETS, ConfigError
from shardscope.device import pick_device
from shardscope.failures.held_out import held_out_ids, windows
from shardscope.failures.loop_xray import XrayError, ablation_bank, find_onset, find_suspects, parts_of, switched_off
from shardscope.failures.loop_xray.cause import REFERENCE_LENGTH, REFERENCE_WINDOWS, established_replay, find_cause
from shardscope.generation import Generation, SamplingConfig, generate
from shardscope.model import Shard

if TYPE_CHECKING:
    import argparse

PROMPT = "The capital of France is"
PROMPT_TOKENS, NEW_TOKENS = 16, 512
TRIED = 16  # random prompts of a random model
BY_HAND = 12  # parts that are ablated one by one, spread over all; each costs the same
DTYPES = ("float32", "bfloat16")
FLAGS = ("checkpoint", "model", "prompt", "runs", "dtype", "out")


@dataclass(frozen=True)
class Measured:
    """A row of the table: the median of its runs, in seconds, and that over the number of interventions."""

    what: str
    interventions: int
    seconds: float
    spread: float | None
    runs: list[float]


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


def compare(model: Shard, generation: Generation, runs: int) -> list[Measured]:
    """When and who; the whole verdict; every part in one batch; and some of them one by one, by hand."""
    device, parts = model.device, parts_of(model.config)
    onset = find_onset(model, generation)
    suspects = find_suspects(model, generation, onset)
    length = min(REFERENCE_LENGTH, model.config.n_ctx)
    bank = ablation_bank(model, windows(held_out_ids(model), REFERENCE_WINDOWS, length))
    replay = established_replay(model, generation, onset)
    some = parts[:: max(1, len(parts) // BY_HAND)][:BY_HAND]
    prompt = [*replay.before, *replay.text[: replay.given * replay.period]]
    by_hand = SamplingConfig(max_new_tokens=replay.length, stop_at_eos=False)
    tried = 0

    def quick() -> None:
        find_suspects(model, generation, find_onset(model, generation))

    def verdict() -> None:
        nonlocal tried
        tried = find_cause(model, generation, onset, suspects).interventions

    def batched() -> None:
        replay.play([[part] for part in parts], bank, [[0]] * len(parts))

    def alone() -> None:
        for part in some:
            with switched_off(model, [part], bank):
                generate(model, [prompt], by_hand)

    batched()  # warm
    ways = {"onset and ranks": quick, "verdict": verdict, "every part, one batch": batched, "parts one by one": alone}
    seconds = measure.taking_turns(ways, runs, device)
    counts = {"verdict": tried, "every part, one batch": len(parts), "parts one by one": len(some)}
    rows = []
    for what, times in seconds.items():
        timing = measure.summary(times)
        rows.append(Measured(what, counts.get(what, 0), timing.median, timing.spread, times))
    return rows


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        f"{report['model']}, {report['dtype']}, {report['machine']['name']}, {report['machine']['threads']} threads, "
        f"torch {report['machine']['torch']}; a loop of {report['period']} tokens, {report['parts']} heads and MLPs",
        "",
    ]
    rows = []
    for row in report["rows"]:
        each = f"{1000 * row['seconds'] / row['interventions']:,.0f} ms" if row["interventions"] else "–"
        shown = str(row["interventions"] or "–")
        rows.append([row["what"], shown, f"{row['seconds']:.2f}", measure.shown_spread(row["spread"]), each])
    return "\n".join([*lines, *measure.table(["what", "interventions", "seconds", "spread", "each"], rows)])
