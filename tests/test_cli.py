from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from shardscope import Shard, checkpoint, load
from shardscope.cli import main
from shardscope.cli.arguments import escaped, path
from shardscope.cli.commands import COMMANDS, Command
from shardscope.cli.missing import missing_package
from shardscope.cli.parser import CommandParser
from shardscope.config import load_recipe
from shardscope.failures import CARD_PROMPTS
from shardscope.failures.labels import ORDER
from shardscope.generation import SamplingConfig, generate
from shardscope.train import train


@pytest.fixture
def run_folder(recipe_file: Path, tmp_path: Path) -> Path:
    train(load_recipe(recipe_file, {"model.n_ctx": "128"}), progress=False)
    return tmp_path / "run"


def test_generate_prints_the_prompt_and_what_the_library_generates(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "Once upon", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "12"]) == 0
    [expected] = generate(load(tiny_checkpoint), ["Once upon"], SamplingConfig(max_new_tokens=12))
    assert capsys.readouterr().out.rstrip("\n") == ("Once upon" + expected.text).rstrip("\n")


def test_generate_draws_the_same_text_from_the_same_seed(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sample(seed: int) -> str:
        flags = ["--temperature", "1.5", "--max-new-tokens", "20", "--seed", str(seed)]
        assert main(["generate", "Once", "--checkpoint", str(tiny_checkpoint), *flags]) == 0
        return capsys.readouterr().out

    assert sample(1) == sample(1) != sample(2)


def test_info_shows_what_a_checkpoint_is(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "sliding" in shown
    assert f"{load(tiny_checkpoint).n_params:,}" in shown


def test_info_shows_a_run_that_was_paused_early(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(load_recipe(recipe_file, {"train.max_minutes": "0.0001"}), progress=False)
    assert main(["info", str(tmp_path / "run")]) == 0
    assert "paused early" in capsys.readouterr().out


def test_the_report_shows_loss_baseline_and_the_six_prompts_with_flags(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run_folder)]) == 0
    shown = capsys.readouterr().out
    for source in ("one", "two", "all"):
        assert re.search(rf"^{source} .*\d\.\d{{4}}", shown, re.MULTILINE)
    assert "3-gram" in shown
    for prompt in ("The capital of France is", "To compute 12 plus 7", "Question: What is 23", "def fibonacci"):
        assert prompt in shown


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["info", "runs/nowhere"], "no such checkpoint or run"),
        (["info", "--checkpoint", "runs/nowhere"], "no such checkpoint or run"),
        (["generate", "Once", "--checkpoint", "runs/nowhere"], "no such checkpoint or run"),
        (["generate"], "no prompt is given"),
        (["generate", "a", "b"], "2 prompts are given; quote one text, and name a model with --checkpoint"),
        (["generate", "Once", "--prompt-file", "story.txt"], "a prompt is given twice"),
        (["generate", "--prompt-file", "nothing.txt"], "nothing.txt: cannot be read as UTF-8 text"),
        (["generate", "--prompt-file", "/dev/zero"], "/dev/zero: cannot be read: it is larger than 16 MiB"),
        (["generate", "Once", "--top-p", "2"], "top_p"),
        (["generate", "Once", "--device", "nope"], "device='nope' is not a torch device"),
        (["train", "shard-pico-pretrian"], "did you mean 'shard-pico-pretrain'?"),
        (["train", "recipes/mine.toml"], "recipes/mine.toml: no such file, and no packaged recipe of this name"),
        (["explore", "--runs", "nowhere"], "--runs nowhere: no such folder"),
        (["explore", "--checkpoint", "nowhere"], "nowhere: no such checkpoint or run"),
        (["explore", "--port", "70000"], "--port 70000 is not a port"),
        (["failures", "runs/nowhere"], "no such checkpoint or run"),
        (["report"], "report needs a run"),
        (["report", "runs/nowhere"], "not a run with a checkpoint"),
        (["export", "runs/nowhere", "--out", "out"], "no such checkpoint or run"),
        (["import", "runs/nowhere", "--out", "out"], "runs/nowhere"),
        (["verify", "runs/nowhere"], "no such checkpoint or run"),
        (["eval", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["bench", "attention", "--device", "nope"], "device='nope' is not a torch device"),
        (["bench", "decode", "--device", "nope"], "device='nope' is not a torch device"),
        (["bench", "score", "--device", "nope"], "device='nope' is not a torch device"),
        (["bench", "train", "--device", "nope"], "device='nope' is not a torch device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_costs_one_sentence_and_status_1(
    command: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command[0] in ("export", "import", "verify", "bench", "eval"):
        pytest.importorskip("transformer_lens")
        pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("word", ["runs/typo", "./typo", "~/typo", "runs\\typo", "exported", "model.pt"])
def test_a_path_is_not_continued_as_a_text(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exported").mkdir()
    (tmp_path / "model.pt").touch()
    assert main(["generate", word]) == 1
    assert f"name a model with --checkpoint {word}" in capsys.readouterr().err


def test_a_text_that_looks_like_a_path_is_continued_from_a_file(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt").write_bytes(b"runs/typo\r\n")
    words = ["--prompt-file", str(tmp_path / "prompt"), "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "1"]
    assert main(["generate", *words]) == 0
    assert capsys.readouterr().out.startswith("runs/typo\r\n")


def test_a_checkpoint_is_named_by_place_or_by_name_but_not_twice(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for words in ([str(tiny_checkpoint)], ["--checkpoint", str(tiny_checkpoint)], [f"--checkpoint={tiny_checkpoint}"]):
        assert main(["info", *words]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    with pytest.raises(SystemExit):
        main(["info", "a", "--checkpoint", "b"])
    assert "two checkpoints are given" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["2024", "1e3", "true", "[v2]", "a\\nb", "{x}", "ü – ×", "a b", "#1", "-x", "*"])
def test_a_path_means_what_was_typed(
    name: str,
    tiny_checkpoint: Path,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint.rename(tmp_path / name)
    assert main(["info", f"--checkpoint={name}"]) == 0
    assert re.search(rf"^checkpoint +{re.escape(name)}$", capsys.readouterr().out, re.MULTILINE)
    assert main(["train", str(recipe_file), f"--out=run of {name}/{name}", "--schedule.steps=1"]) == 0
    assert main(["train", str(recipe_file), f"--out={name}.run", "--schedule.steps=1"]) == 0
    for run in (tmp_path / f"run of {name}" / name, tmp_path / f"{name}.run"):
        assert checkpoint.list_checkpoints(run)


def test_a_tilde_is_the_home_folder_wherever_it_is_typed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["info", "--checkpoint=~/tiny"]) == 0
    assert str(tiny_checkpoint) in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint.rename(tmp_path / "~tiny")  # no such user, but a file may be called so
    assert main(["info", "~tiny"]) == 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n", "\n"),
        (r"a\tb\\n", "a\tb\\n"),
        (r"\u00e9\x41\0", "éA\0"),
        (r"\d+ \(", r"\d+ \("),
        ("é–\n", "é–\n"),
        (r"\\boxed", r"\boxed"),
    ],
)
def test_a_stop_text_understands_escapes(typed: str, meant: str) -> None:
    assert escaped(typed) == meant


def test_generation_stops_at_an_escaped_line_end(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "Once upon", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "60", "--seed", "3"]
    assert main([*words, "--temperature", "2"]) == 0
    whole = capsys.readouterr().out.rstrip("\n")
    stop = whole[len("Once upon") + 5]
    assert main([*words, "--temperature", "2", "--stop", f"\\u{ord(stop):04x}"]) == 0
    assert capsys.readouterr().out == whole[: whole.index(stop, len("Once upon"))] + "\n"


def test_help_lists_the_commands_in_the_order_of_a_models_life(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert listed == [command.name for command in COMMANDS]
    order = [
        "train",
        "info",
        "generate",
        "explore",
        "attention",
        "failures",
        "eval",
        "report",
        "export",
        "import",
        "verify",
        "bench",
    ]
    assert [name for name in listed if name in order] == order


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_means_the_same_by_the_same_flag_and_shows_examples_that_parse(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = CommandParser(prog=f"shardscope {command.name}")
    module = import_module(command.module)
    module.add_arguments(parser)
    for action in parser._actions:
        if "--device" in action.option_strings:
            assert action.default in ("auto", None)  # a recipe's own default is auto
        if {"--out", "--checkpoint", "--prompt-file", "--data"} & {*action.option_strings} and command.name != "train":
            assert action.type is path
        required_after = [a for a in parser._actions if not a.option_strings and a.nargs is None]
        if not action.option_strings and action.nargs == "?":
            assert not required_after, "an optional place never comes before a required one"
    for example in command.examples:
        name, *words = shlex.split(example)
        assert name == command.name
        if "--help" not in words:
            parser.parse_args(words)
    with pytest.raises(SystemExit) as stop:
        main([command.name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  shardscope {example}" in shown for example in command.examples)


def test_the_installed_command_says_its_mistakes_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shardscope.cli", "info", "nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["bench", "score"], "lm_eval", "eval"),
        (["bench", "decode", "--model", "shard-pico"], "transformers", "interop"),
        (["eval"], "lm_eval", "eval"),
        (["export", "--out", "out"], "transformers", "interop"),
        (["verify"], "transformer_lens", "interop"),
        (["explore"], "streamlit", "app"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_missing_package_is_one_sentence_with_the_extra_that_brings_it(
    words: list[str],
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wherever it is missed: when the command's module is imported, or only when it works."""
    monkeypatch.chdir(tmp_path)
    # Another test may have imported the package, or our modules that use it.
    ours = ("shardscope.evals.harness", "shardscope.interop", "shardscope.cli.", "shardscope.bench.")
    for name in [name for name in sys.modules if name.split(".")[0] == package or name.startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(words) == 1
    error = capsys.readouterr().err.strip()
    assert error == f"error: this command needs the package {package}; pip install 'shardscope[{extra}]'"


def test_an_extra_is_only_named_when_it_brings_what_is_missing() -> None:
    missing = ModuleNotFoundError("No module named 'tkinter'", name="tkinter")
    assert missing_package(missing) == "this command needs the package tkinter, which is not installed here; install it"
    assert "installed but cannot be used (cannot import name 'x')" in missing_package(
        ImportError("cannot import name 'x'", name="transformers.models")
    )
    with pytest.raises(ImportError, match="ours"):
        missing_package(ModuleNotFoundError("ours", name="shardscope.nothing"))


def test_every_command_prints_to_an_ascii_terminal(tiny_checkpoint: Path, run_folder: Path, tmp_path: Path) -> None:
    """Tables have dashes and signs, and a small model writes anything."""
    commands = [
        ["info", str(run_folder)],
        [
            "generate",
            "é – “once”",
            "--checkpoint",
            str(tiny_checkpoint),
            "--temperature",
            "3",
            "--max-new-tokens",
            "60",
        ],
        ["failures", str(tiny_checkpoint), "--temperature", "3", "--max-new-tokens", "60"],
        ["report", str(run_folder)],
        ["bench", "failures", "nowhere – ×"],
        *([command.name, "--help"] for command in COMMANDS),
    ]
    program = "import sys, json; from shardscope.cli import main\nfor words in json.loads(sys.argv[1]):\n"
    program += "    try: main(words)\n    except SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}, cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    done.stdout.decode("ascii")
    assert b"nowhere - x: no file here" in done.stderr
    assert b"\x1b[" not in done.stdout + done.stderr
    assert b'\\xe9 - "once"' in done.stdout


def test_failures_labels_the_cards_prompts_or_ones_own(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--max-new-tokens", "16"]
    assert main(["failures", str(tiny_checkpoint), *short]) == 0
    shown = capsys.readouterr().out
    assert all(prompt.text in shown for prompt in CARD_PROMPTS)
    (tmp_path / "more.txt").write_text("and Rome")
    own = ["--prompt", "Paris", "--prompt-file", str(tmp_path / "more.txt"), "--out", str(tmp_path / "labels.jsonl")]
    assert main(["failures", str(tiny_checkpoint), *short, *own, "--temperature", "0"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    texts = generate(load(tiny_checkpoint), ["Paris", "and Rome"], SamplingConfig(max_new_tokens=16))
    assert [(line["prompt"], line["text"]) for line in lines] == [(text.prompt, text.text) for text in texts]
    assert all(line["failure"] in ("no flag", *ORDER) for line in lines)


def test_explore_starts_streamlit_on_the_explorer_with_the_folders(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("streamlit")
    started: list[list[str]] = []

    def start(program: str, words: list[str]) -> NoReturn:
        started.append(words)
        raise SystemExit

    monkeypatch.setattr(os, "execv", start)
    monkeypatch.chdir(tmp_path)
    for flags in (["--port", "8600"], ["--checkpoint", str(tiny_checkpoint), "--runs", "."], ["--runs", "a b", "."]):
        (tmp_path / "a b").mkdir(exist_ok=True)
        with pytest.raises(SystemExit):
            main(["explore", *flags])
    [server, *_] = [words[: words.index("--")] for words in started]
    assert server[1:4] == ["-m", "streamlit", "run"]
    assert Path(server[4]).is_file()
    assert {"--server.port=8600", "--browser.gatherUsageStats=false", "--server.enableXsrfProtection=true"} <= {*server}
    assert [words[words.index("--") + 1 :] for words in started] == [
        [str(checkpoint.BUILT_IN), "runs"],
        [str(tiny_checkpoint), "."],
        ["a b", "."],
    ]


def test_exporting_a_run_means_its_newest_checkpoint_and_never_writes_into_a_full_folder(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    newest = checkpoint.checkpoint_folder(tmp_path / "runs" / "mine", 3)
    newest.parent.mkdir(parents=True)
    tiny_checkpoint.rename(newest)
    assert main(["export", "runs/mine", "--out", "out"]) == 0
    from shardscope.interop import import_pretrained

    exported, ours = import_pretrained("out"), load(newest)
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), ours.parameters(), strict=True))
    assert main(["export", "runs/mine", "--out", "runs/mine"]) == 1


def test_importing_the_package_and_loading_a_model_leave_the_compiler_and_the_guests_alone() -> None:
    """The compiler's machinery alone takes two seconds; `import shardscope` may cost half of one over torch."""
    program = """
import sys, torch
before = set(sys.modules)
import shardscope
shardscope.load()
heavy = {"torch._dynamo", "torch._inductor", "sympy", "transformers", "transformer_lens", "lm_eval", "streamlit",
         "pandas", "datasets", "triton"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_a_full_device_is_one_sentence_and_an_error_of_ours_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object) -> int:
        raise error

    monkeypatch.setattr("shardscope.cli.info_command.run", run)
    error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    assert main(["info"]) == 1
    assert capsys.readouterr().err == (
        "error: the device has no memory left (CUDA out of memory); free some, or use --device cpu\n"
    )
    error = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["info"])


def test_the_public_names_are_these() -> None:
    import shardscope

    assert {"Shard", "ShardConfig", "load"} <= set(shardscope.__all__)
    assert shardscope.Shard is Shard


@pytest.mark.parametrize(
    "command",
    [
        ["attention", "--prompt-file", "story.txt", "--out"],
        ["eval", "--out"],
        ["failures", "--out"],
        ["atlas", "--json"],
        ["atlas", "--png"],
        ["xray", "--prompt", "Once", "--json"],
        ["xray", "--prompt", "Once", "--picture"],
        ["longcontext", "--json"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_written_is_said_before_the_work_that_leads_to_it(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    Path("story.txt").write_text("Once upon a time", encoding="utf-8")
    for module in ("attention", "failures", "xray", "longcontext"):
        monkeypatch.setattr(f"shardscope.cli.{module}_command.load", _unexpected)
    monkeypatch.setattr("shardscope.cli.atlas_command.make_atlas", _unexpected)
    monkeypatch.setattr("shardscope.cli.eval_command.evaluate", _unexpected)
    assert main([*command, "story.txt/below.svg"]) == 1
    assert f"error: {command[-1]} story.txt/below.svg: " in capsys.readouterr().err
    if command[-1] != "--out" or command[0] == "failures":  # a file
        Path("folder.svg").mkdir()
        assert main([*command, "folder.svg"]) == 1
        assert f"error: {command[-1]} folder.svg: is a folder; name a file in it" in capsys.readouterr().err


def _unexpected(*arguments: object, **settings: object) -> None:
    raise AssertionError("the work has begun")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("generate Once --top_p 0.9", "--top_p 0.9; did you mean '--top-p'?"),
        ("generate Once --max-tokens=3", "--max-tokens=3; did you mean '--max-new-tokens'?"),
        ("train shard-pico-pretrain --schedule.step 3", "--schedule.step 3; did you mean '--schedule.steps'?"),
        ("bench decode --run 3", "--run 3; did you mean '--runs'?"),
        ("info --qqq", "--qqq"),
        ("info one two", "two"),
    ],
)
def test_a_flag_that_is_not_there_is_answered_with_the_nearest_of_its_command(
    command: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    error = capsys.readouterr().err
    assert error.startswith(f"usage: shardscope {command.split()[0]}")
    assert error.endswith(f"error: unrecognized arguments: {says}\n")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("generate Once --max-new-tokens 1e3", "argument --max-new-tokens: '1e3' is not a whole number"),
        ("generate Once --temperature warm", "argument --temperature: 'warm' is not a number"),
        ("bench decode --runs many", "argument --runs: 'many' is not a whole number"),
    ],
)
def test_an_argument_that_is_no_number_is_said_in_plain_words(
    command: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    assert capsys.readouterr().err.endswith(f"error: {says}\n")
