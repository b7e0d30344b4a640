"""The `shardscope` command. It reads argv and calls one function of the room that does the work."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

from shardscope.config import ConfigError

# What `shardscope bench` measures, each in the module of its name (`add_arguments(parser)` and `run(arguments)`): the
# extra that its peer comes with, and what it says of itself.
BENCHES = {
    "train": ("interop", "Training: tokens a second, MFU, memory, beside transformers' model."),
    "decode": ("interop", "Generation: tokens a second beside transformers' generate."),
    "score": ("eval", "Scoring: ARC questions a second beside lm-eval's own --model hf."),
    "attention": ("interop", "Attention views of a long prompt beside TransformerLens's cache."),
    "failures": ("", "Failure labels: false alarms on people's text, planted loops, milliseconds."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. A mistake of the user's is one sentence on stderr and status 1."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parser(words).parse_args(words)
        with _guests_of(arguments.extra):
            status: int = arguments.command(arguments)
        return status
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def _guests_of(extra: str) -> Iterator[None]:
    """A guest that is missing inside is one sentence with the extra that brings it."""
    try:
        yield
    except ImportError as error:
        if not extra:
            raise
        raise ConfigError(f"this command needs more packages ({error}); pip install 'shardscope[{extra}]'") from None


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shardscope",
        description="Train a small language model, score it, and look inside it.",
        epilog="CHECKPOINT is a checkpoint folder or a run; without one: the built-in model, or the newest run.\n\n"
        "train:    python -m shardscope.recipes.pretrain recipes/shard-pico-pretrain.toml\n"
        "look:     streamlit run apps/explorer.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shardscope {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, command: Callable[[argparse.Namespace], int], help: str, *examples: str, extra: str = ""
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog="examples:\n" + "\n".join(f"  shardscope {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command, extra=extra)
        return sub

    generate = add(
        "generate",
        _generate,
        "Continue a prompt; greedy unless a temperature is given.",
        'generate runs/shard-pico-anneal "Question: What is 23 + 19? Answer:"',
        'generate "Once upon a time" --temperature 0.7 --top-p 0.9 --seed 1',
    )
    generate.add_argument(
        "words", nargs="+", metavar="[CHECKPOINT] PROMPT", help="a checkpoint, if any, and the prompt"
    )
    generate.add_argument("--device", default="cpu", help="torch device, or auto (default cpu)")
    _sampling_flags(generate)

    info = add(
        "info", _info, "What a checkpoint or a run is: architecture, training, state.", "info runs/shard-pico-anneal"
    )
    info.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT")

    report = add(
        "report",
        _report,
        "Held-out loss of a run before and after, beside a byte n-gram, gzip and xz, and the card's six prompts.",
        "report runs/shard-pico-anneal",
        "report runs/shard-nano-anneal --ngram 8 --ngram-bytes 120_000_000",
    )
    report.add_argument("run", metavar="RUN", help="a run folder")
    report.add_argument("--ngram", type=int, default=3, metavar="N", help="order of the byte n-gram model (default 3)")
    report.add_argument(
        "--ngram-bytes", type=int, default=64_000_000, metavar="N", help="training text it sees (default 64,000,000)"
    )
    report.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")

    export = add(
        "export",
        _export,
        "Write a directory that stock transformers loads, as VaultGemma.",
        "export runs/shard-pico-anneal exported/",
        "export exported/ --dtype bfloat16",
        extra="interop",
    )
    export.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT")
    export.add_argument("out", metavar="DIR")
    export.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))

    import_ = add(
        "import",
        _import,
        "Read an exported directory, or a published model.pt without running code from it.",
        "import exported/ --out imported/",
        "import models/model.pt --tokenizer tokenizer.json --text sample.txt --out imported/",
        extra="interop",
    )
    import_.add_argument("path", metavar="PATH", help="an exported directory, or a .pt file")
    import_.add_argument("--out", required=True, metavar="DIR", help="where the checkpoint is written")
    import_.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json of a .pt file")
    import_.add_argument("--bos", metavar="TOKEN", help="the token in it that begins a document, if not <|endoftext|>")
    import_.add_argument("--text", metavar="FILE", help="a text that decides what is ambiguous in a .pt file")

    verify = add(
        "verify",
        _verify,
        "The parity certificate: the same numbers natively, in TransformerLens and in transformers.",
        "verify runs/shard-pico-anneal",
        extra="interop",
    )
    verify.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT")

    def lend(sub: argparse.ArgumentParser, module_name: str, extra: str, *command: str) -> None:
        """The flags of `sub` are its module's own; it is imported only for this very command."""
        if list(command) == list(words[: len(command)]):
            with _guests_of(extra):  # already its flags may need one
                module = import_module(module_name)
            module.add_arguments(sub)
            sub.set_defaults(command=module.run, extra=extra)

    attention = add(
        "attention",
        _unreachable,
        "Every head's attention over a prompt, as PNG, Parquet and one offline HTML page.",
        "attention runs/shard-pico-anneal --prompt-file story.txt --out looking/",
    )
    lend(attention, "shardscope.microscope.export", "interop", "attention")

    eval_ = add(
        "eval",
        _unreachable,
        "Score ARC, GSM8K, MATH and arithmetic offline on a small sample, earlier runs beside it; from a checkout.",
        "eval",
        "eval runs/shard-pico-anneal --tasks shard_arith --limit 50",
        "eval --data path/to/test-sets",
    )
    lend(eval_, "shardscope.evals.suite", "eval", "eval")

    bench = add(
        "bench",
        _unreachable,
        "Measure speed beside a peer in the same run: a table, and JSON.",
        *(f"bench {what} --help" for what in BENCHES),
    )
    benches = bench.add_subparsers(metavar="WHAT", required=True)
    for what, (extra, text) in BENCHES.items():
        lend(benches.add_parser(what, help=text, description=text), f"shardscope.bench.{what}", extra, "bench", what)
    return parser


def _sampling_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of SamplingConfig, with its own help."""
    from shardscope.generation import SamplingConfig

    hints = get_type_hints(SamplingConfig)
    for item in fields(SamplingConfig):
        flag, text = f"--{item.name.replace('_', '-')}", item.metadata["help"]
        default = item.default if item.default is not MISSING else None
        if hints[item.name] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        elif isinstance(default, int | float):
            parser.add_argument(flag, type=hints[item.name], default=default, help=f"{text} (default {default})")
        else:
            parser.add_argument(flag, action="append", default=[], metavar="TEXT", help=f"{text}; may be repeated")


def _generate(arguments: argparse.Namespace) -> int:
    from shardscope import load
    from shardscope.generation import SamplingConfig, stream

    *checkpoint, prompt = arguments.words
    if len(checkpoint) > 1:
        raise ConfigError(
            f"{len(arguments.words)} words were given, at most a checkpoint and a prompt fit; quote the prompt"
        )
    choices = {item.name: getattr(arguments, item.name) for item in fields(SamplingConfig)}
    config = SamplingConfig(**{**choices, "stop": tuple(choices["stop"])})
    model = load(checkpoint[0] if checkpoint else None, device=arguments.device)
    print(prompt, end="", flush=True)
    for event in stream(model, prompt, config):
        print(event.text, end="", flush=True)
    print()
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from shardscope.checkpoint import describe

    print(describe(arguments.checkpoint))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from shardscope import load
    from shardscope.evals.report import format_report, held_out_table
    from shardscope.failures import card_table, sample_card

    table = held_out_table(arguments.run, arguments.ngram, arguments.ngram_bytes)
    print(format_report(table, arguments.ngram), end="\n\n")
    model = load(arguments.run)
    print(card_table(sample_card(model, temperature=0.7, top_p=0.9, seed=arguments.seed)))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from shardscope.interop.commands import export_command

    export_command(arguments.checkpoint, arguments.out, arguments.dtype)
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from shardscope.interop.commands import import_command

    import_command(Path(arguments.path), arguments.out, arguments.tokenizer, arguments.text, arguments.bos)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from shardscope.interop.commands import verify_command

    return verify_command(arguments.checkpoint)


def _unreachable(arguments: argparse.Namespace) -> int:
    raise AssertionError("a lent command brings its own function")


def _version() -> str:
    from shardscope import __version__

    return __version__


if __name__ == "__main__":
    sys.exit(main())
