"""The real `lm_eval` command in fresh virtual environments: after a normal install, an editable one, and none."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from real_items import QUESTIONS, ROOT
from rounding import all_nats

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from shardscope.evals.harness import ShardLM

# A task of four questions in a folder of its own.
TASK = """\
task: four_questions
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: 0
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}]
"""

Environment = tuple[str, Path]


@pytest.fixture(scope="module", params=["normal", "editable"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """(install kind, the python of a fresh environment that holds this package and sees what is installed here)."""
    folder = tmp_path_factory.mktemp(request.param)
    python = fresh_environment(folder)
    install(python, *(["--editable"] if request.param == "editable" else []), str(ROOT))
    return request.param, python


def fresh_environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    # Only a path: the .pth files of the packages installed here, ours among them, are not read through it.
    (site / "parent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "venv" / "bin" / "python"


def install(python: Path, *arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--no-build-isolation", *arguments], check=True)


def lm_eval(python: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command (its module where there is none), run by `python`, offline."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(cwd / "hf")}
    env.pop("PYTHONPATH", None)
    script = Path(sysconfig.get_path("scripts"), "lm_eval")
    command = [str(python), *([str(script)] if script.exists() else ["-m", "lm_eval"]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=240)


def choices_of(question: str, answer: str) -> list[str]:
    return [f" {answer}", " none of these", f" {question}"]


def write_task(folder: Path, questions: list[tuple[str, str]]) -> None:
    rows = [{"question": q, "choices": choices_of(q, a)} for q, a in questions]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "four.yaml").write_text(TASK.format(file=folder / "rows.jsonl"))


def prints(python: Path, code: str) -> str:
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=python.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_lm_eval_scores_a_shard_as_hf_does(
    environment: Environment, formats: tuple[Path, Path], tmp_path: Path
) -> None:
    kind, python = environment
    if kind == "normal":
        pytest.skip("the command of the docs runs there")
    write_task(tmp_path, QUESTIONS)
    arguments = [
        "--model",
        "shard",
        "--model_args",
        f"pretrained={formats[0]}",
        "--device",
        "cpu",
        "--output_path",
        "out",
    ]
    done = lm_eval(
        python, tmp_path, *arguments, "--tasks", "four_questions", "--include_path", "tasks", "--log_samples"
    )
    assert done.returncode == 0, done.stderr
    assert "four_questions" in done.stdout
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    pairs = [tuple(request.values()) for row in logged for request in row["arguments"].values()]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    theirs = HFLM(pretrained=str(formats[1]), device="cpu", batch_size=12)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    found = [float(answer[0][0]) for row in logged for answer in row["resps"]]
    assert len(found) == 12
    assert found == all_nats([value for value, _ in expected], [len(theirs._encode_pair(*pair)[1]) for pair in pairs])


@pytest.mark.slow
def test_the_offline_command_of_the_docs_scores_the_built_in_model_as_it_is_written(
    environment: Environment, tmp_path: Path
) -> None:
    kind, python = environment
    if kind == "editable":
        pytest.skip("what the tasks print does not depend on the install")
    lines = (ROOT / "docs" / "evaluation.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("    lm_eval") and "eval_data=evals/sample" in line)
    quick = ["--limit", "1", "--gen_kwargs", "max_gen_toks=8", "--device", "cpu", "--output_path", str(tmp_path)]
    done = lm_eval(python, ROOT, *shlex.split(line)[1:], *quick)
    assert done.returncode == 0, done.stderr
    tasks = yaml.safe_load((ROOT / "evals" / "shard.yaml").read_text())["task"]
    assert [name for name in tasks if not re.search(rf"\b{name} *\|", done.stdout)] == []
    assert [folder.name for folder in tmp_path.iterdir()] == ["shardscope__builtin"]  # the results, by the model's name


@pytest.mark.slow
def test_a_mistake_is_one_sentence_and_a_failing_exit(
    environment: Environment, formats: tuple[Path, Path], tmp_path: Path
) -> None:
    kind, python = environment
    if kind == "editable":
        pytest.skip("what a mistake prints does not depend on the install")
    arguments = [
        "--model",
        "shard",
        "--model_args",
        f"pretrained={formats[0]},max_length=9999",
        "--tasks",
        "arc_easy",
    ]
    done = lm_eval(python, tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: model_args: max_length=9999 is out of range")
    assert "Traceback" not in done.stderr


def test_the_model_name_is_known_only_once_the_harness_asks_for_its_models(environment: Environment) -> None:
    _, python = environment
    code = """
import sys
assert not [name for name in sys.modules if name.split(".")[0] in ("lm_eval", "shardscope", "torch")]
from lm_eval.api.registry import model_registry
assert len(model_registry) == 0
import lm_eval.models
assert not [name for name in sys.modules if name.split(".")[0] == "shardscope"]
print(model_registry._objs["shard"], "hf" in model_registry, "dummy" in model_registry)
"""
    assert prints(python, code) == "shardscope.evals.harness:ShardLM True True"


def test_asking_where_the_models_are_registers_nothing_and_forgets_nothing(environment: Environment) -> None:
    _, python = environment
    code = """
import importlib.util
first, second = (importlib.util.find_spec("lm_eval.models") for _ in range(2))
import sys
assert "lm_eval.models" not in sys.modules
import lm_eval.models
from lm_eval.api.registry import model_registry
print("shard" in model_registry, [finder for finder in sys.meta_path if "shardscope" in type(finder).__module__])
"""
    assert prints(python, code) == "True []"


def test_the_entry_point_names_the_class_for_releases_that_read_it(environment: Environment) -> None:
    _, python = environment
    code = """
from importlib.metadata import entry_points
(found,) = entry_points(group="lm_eval.models", name="shard")
from lm_eval.api.registry import get_model
print(found.value, found.load() is get_model("shard"), get_model("dummy").__name__)
"""
    assert prints(python, code) == "shardscope.evals.harness:ShardLM True DummyLM"


def test_a_release_that_reads_entry_points_is_left_alone(environment: Environment, tmp_path: Path) -> None:
    _, python = environment
    code = f"""
import sys, pathlib
import lm_eval.api.registry as registry
newer = pathlib.Path({str(tmp_path)!r}, "registry.py")
newer.write_text(pathlib.Path(registry.__file__).read_text() + "# for plugin in entry_points(group=...)")
registry.__file__ = str(newer)
import lm_eval.models
print("shard" in registry.model_registry, "hf" in registry.model_registry)
"""
    assert prints(python, code) == "False True"


def test_starting_python_imports_one_small_module_more_and_nothing_else(
    environment: Environment, tmp_path: Path
) -> None:
    _, python = environment
    code = "import sys; print(*sys.modules)"
    with_us, without = (set(prints(one, code).split()) for one in (python, fresh_environment(tmp_path)))
    assert with_us - without == {"shardscope_lm_eval"}


@pytest.mark.slow
def test_uninstalling_leaves_lm_eval_as_it_was(tmp_path: Path) -> None:
    python = fresh_environment(tmp_path)
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    before = sorted(path.name for path in site.iterdir())
    install(python, str(ROOT))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "uninstall", "--yes", "shardscope"], check=True)
    assert [name for name in sorted(path.name for path in site.iterdir()) if name != "__pycache__"] == before
    code = "from lm_eval.api.registry import get_model, model_registry as m; get_model('dummy'); print('shard' in m)"
    assert prints(python, code) == "False"


@pytest.mark.slow
def test_two_processes_under_torchrun_give_the_scores_of_one(formats: tuple[Path, Path], tmp_path: Path) -> None:
    script = tmp_path / "both.py"
    script.write_text(f"""
import json
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from shardscope.evals.harness import ShardLM
manager = TaskManager(include_path="tasks", include_defaults=False)
lm = ShardLM(pretrained={str(formats[0])!r}, device="cpu", batch_size=2)
found = simple_evaluate(lm, tasks=["four_questions"], task_manager=manager, bootstrap_iters=0)
if lm.rank == 0:
    samples = sorted(found["samples"]["four_questions"], key=lambda sample: sample["doc_id"])
    answers = [answer[0][0] for sample in samples for answer in sample["resps"]]
    print("RESULT", json.dumps([lm.world_size, found["results"]["four_questions"]["sample_len"], answers]))
else:
    assert found is None
""")
    write_task(tmp_path, QUESTIONS[:3])  # an odd number: one process has more than the other
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(torchrun, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    world_size, count, answers = json.loads(line.removeprefix("RESULT"))
    assert (world_size, count) == (2, 3)
    pairs = [(f"Question: {q}\nAnswer:", f" {choice}") for q, a in QUESTIONS[:3] for choice in choices_of(q, a)]
    alone = ShardLM(pretrained=str(formats[0]), device="cpu", batch_size=1)
    expected = alone.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    assert answers == all_nats([value for value, _ in expected], [len(alone._encode_pair(*pair)[1]) for pair in pairs])
