"""The report of a reproduction: a Markdown page and its pictures, made from the metrics and nothing else.

A section stands there if its figures do: a run without questions has no table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from shardscope.config import ConfigError
from shardscope.files import read_json, write_text
from shardscope.reproduce import report_measures as measures
from shardscope.reproduce import report_training as training
from shardscope.reproduce.ledger import duration
from shardscope.reproduce.pair import CHECKPOINTS
from shardscope.reproduce.pipeline import FORMAT
from shardscope.reproduce.published import PARAMETERS
from shardscope.reproduce.report_training import Metrics, pictures

SECTIONS: dict[str, Callable[[Metrics, str], str]] = {
    "The run": training.runs,
    "Its text": training.texts,
    "Curves": training.curves,
    "Bits per byte, by source": measures.bits_per_byte,
    "Loss by position": measures.by_position,
    "Questions": measures.tasks,
    "Failures in the prompt suite": measures.failures,
    "The card's six prompts": measures.samples,
    "Reach": measures.reach,
    "Heads through the training": measures.heads,
    "Beside the card": measures.beside_the_card,
    "What it cost": training.costs,
}


def write_report(metrics: Path, page: Path, remarks: Mapping[str, str] | None = None) -> Path:
    """Write the page, and its pictures into `images/` beside it. Raises ConfigError for a file of no such metrics."""
    found = read_json(metrics, ConfigError)
    if found.get("format") != FORMAT:
        raise ConfigError(f"{metrics}: not the metrics of `shardscope reproduce`, format {FORMAT}; run it again")
    try:
        return write_page(found, page, remarks)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ConfigError(
            f"{metrics}: was changed since it was written ({error!r}); run `shardscope reproduce` again"
        ) from None


def write_page(found: Metrics, page: Path, remarks: Mapping[str, str] | None = None) -> Path:
    """The same of metrics that were read already."""
    drawn, text = pictures(found), report(found, f"images/{page.stem}", remarks)
    for name, picture in drawn.items():
        write_text(page.parent / "images" / f"{page.stem}-{name}.svg", picture)
    return write_text(page, text)


def report(found: Metrics, images: str, remarks: Mapping[str, str] | None = None) -> str:
    """The page. `images` is what the pictures' paths begin with.

    `remarks` are Markdown by title of the section that they end, and by "" what follows the page's first words.
    """
    remarks = remarks or {}
    assert remarks.keys() <= {"", *SECTIONS}, f"no such section: {remarks.keys() - SECTIONS.keys()}"
    parts = [_opening(found), remarks.get("", "")]
    for title, section in SECTIONS.items():
        if body := section(found, images):
            parts += [f"## {title}", body, remarks.get(title, "")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(found: Metrics) -> str:
    model, machine = found["model"], found["machine"]
    published = model["n_params"] == PARAMETERS
    title = "# The reference run" if published else f"# The reference run's pipeline on {found['name']}"
    size = "the published size" if published else f"not the published size of {PARAMETERS:,}"
    seconds = sum(stage["seconds"] for stage in found["stages"])
    first = (
        f"A model of {model['n_params']:,} parameters, {size}, was pretrained, annealed and measured on "
        f"{_machine(machine)} ({found['made']}, PyTorch {machine['torch']}, commit {machine['commit'] or 'unknown'}). "
        f"Its stages add up to {duration(seconds)}."
    )
    if not published:
        first += " It shows what the report of a larger run contains; its figures say nothing about the published size."
    if (machine.get("load") or 0) > machine["threads"] + 1:
        first += f" Other programs ran beside it (load {machine['load']:.0f}), so its speeds are not the machine's."
    return f"{title}\n\n{first}\n\n{_in_short(found)}\n\nTo run it again: `{_command(found)}`."


def _in_short(found: Metrics) -> str:
    """What the page says at most length below, in a few lines."""
    runs = found["runs"]
    tokens = {phase: f"{run['tokens'] / 1e6:,.3g} M" for phase, run in runs.items()}
    minutes = sum(run["seconds"] for run in runs.values()) / 60
    before, after = (measures.sums(found["loss"][when])["all"] for when in ("before", "after"))
    lines = [
        f"It read {tokens['pretrain']} tokens in the pretraining and {tokens['anneal']} in the anneal, in "
        f"{minutes:,.1f} minutes of training.",
        f"Held-out text takes {measures.bits(after):.3f} bits per byte after the anneal, and took "
        f"{measures.bits(before):.3f} before it, in the same windows{measures.seen_in_short(found)}.",
        *measures.questions_in_short(found),
        *measures.failures_in_short(found),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _command(found: Metrics) -> str:
    """The command that asks for the same."""
    flags = {
        "--limit": found["limits"]["questions"], "--prompts": found["limits"]["prompts"],
        "--checkpoints": len(found["heads"]) if len(found["heads"]) != CHECKPOINTS else None,
        "--processes": found["machine"]["processes"] if found["machine"]["processes"] > 1 else None,
    }  # fmt: skip
    words = ["shardscope reproduce --recipes", *found["recipes"]]
    return " ".join([*words, *(f"{flag} {value}" for flag, value in flags.items() if value)])


def _machine(machine: Metrics) -> str:
    many = f"{machine['processes']} × " if machine["processes"] > 1 else ""
    return f"{many}{machine['name']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}"
