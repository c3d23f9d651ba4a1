"""The command line: what it answers, how it fails, what it hands to the library."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from run_folders import write_run
from typer.testing import CliRunner

from kd_tasks import __version__, losses
from kd_tasks.cli import app
from kd_tasks.cli.shell import one_value_each
from kd_tasks.engine.build import build_loader
from kd_tasks.engine.config import load_config
from kd_tasks.errors import UserError
from kd_tasks.evaluation.comparison import ALONE, DISTILLED, TEACHER
from kd_tasks.evaluation.preflight import preflight

COMMANDS = [
    "demo",
    "train",
    "test",
    "export",
    "evaluate",
    "score",
    "compare",
    "taps",
    "check",
    "browse",
    "predict",
    "list",
    "data",
]
DIGITS = "classification/alone_digits"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def process(*arguments):
    command = [sys.executable, "-m", "kd_tasks.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def engine(monkeypatch):
    """In place of training: notes what it was called with."""
    from kd_tasks.engine import train as module

    calls = []

    def train(cfg, **options):
        calls.append((cfg, options))
        return cfg.work_dir

    monkeypatch.setattr(module, "train", train)
    return calls


# --- Help ---


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize("command", ["check", "synth"])
def test_every_data_command_explains_itself(command):
    assert run("data", command, "--help").exit_code == 0


def test_help_names_every_command():
    output = run("--help").output
    assert all(command in output for command in COMMANDS)


def test_version():
    assert run("--version").output.strip() == f"kd-tasks {__version__}"


@pytest.mark.parametrize("arguments", [["--help"], ["list", "configs"], ["list", "plugins"]])
def test_what_needs_no_network_does_not_import_torch(arguments):
    code = (
        "import sys\nfrom kd_tasks.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'mmengine', 'cv2'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


# --- Lists ---


@pytest.mark.parametrize(
    ("what", "entry"),
    [("plugins", "segmentation"), ("losses", "SoftTargets"), ("configs", DIGITS), ("datasets", "camvid")],
)
def test_lists_name_what_there_is(what, entry):
    result = run("list", what)
    assert result.exit_code == 0
    assert entry in result.output


def test_losses_are_listed_with_their_papers():
    lines = run("list", "losses").output.splitlines()
    assert lines[1].split() == ["name", "family", "taps", "paper", "year"]
    soft = next(line for line in lines if line.strip().startswith("SoftTargets"))
    assert soft.split()[:3] == ["SoftTargets", "logits", "logits"]
    assert "Hinton" in soft
    assert soft.split()[-1] == "2015"
    families = [line.split()[1] for line in lines[2:] if line[1:2].isalpha()]
    assert families.index("logits") < families.index("features") < families.index("relations")
    assert len([f for a, f in itertools.pairwise(families) if a != f]) == len(set(families)) - 1


def test_the_page_of_the_losses_is_not_stale():
    page = Path(losses.__file__).parent / "README.md"
    assert page.read_text() == run("list", "losses", "--markdown").output, (
        "run: kd-tasks list losses --markdown > kd_tasks/losses/README.md"
    )


def test_the_page_is_of_losses_alone():
    result = run("list", "plugins", "--markdown")
    assert result.exit_code == 2
    assert "kd-tasks list losses --markdown" in result.output


def test_the_year_of_a_paper_is_said_once():
    assert not re.search(r"\b((?:19|20)\d\d) \1\b", " ".join(run("list", "losses").output.split()))


def test_everything_is_listed_without_a_kind():
    output = run("list").output
    assert all(kind in output for kind in ("plugins (", "losses (", "methods (", "configs (", "datasets ("))


# --- Errors ---


def test_a_persons_error_is_one_message_and_exit_code_2():
    result = process("train", "clasification/alone_digits")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("Error: clasification/alone_digits: no such config file")
    assert DIGITS in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["nothing"],
        ["train", DIGITS, "--nothing"],
        ["train", DIGITS, "--launcher", "slurm"],
        ["demo", "--seeds", "0"],
        ["list", "nothing"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["test", DIGITS, "nowhere.pth"],
        ["export", DIGITS, "nowhere.pth"],
        ["evaluate", "nowhere.onnx"],
        ["compare", "nowhere"],
        ["taps", "nowhere"],
        ["check", DIGITS, "--cfg-options", "model.network.widht=3"],
        ["browse", DIGITS, "--cfg-options", "task=nothing"],
        ["predict", "nowhere.onnx", "nowhere"],
        ["score", "nowhere", "predictions", "annotations"],
        ["data", "check", "nowhere"],
        ["data", "synth", "nowhere", "folder"],
        ["demo", "nowhere"],
        ["train", DIGITS, "--cfg-options", "no-value"],
    ],
)
def test_errors_of_every_command_are_told_in_a_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")


def test_debug_shows_the_traceback():
    assert isinstance(run("--debug", "train", "nowhere").exception, UserError)
    result = CliRunner().invoke(app, ["train", "nowhere"], env={"KD_TASKS_DEBUG": "1"})
    assert isinstance(result.exception, UserError)


def test_a_fault_of_the_program_keeps_its_traceback(engine, monkeypatch):
    from kd_tasks.engine import train as module

    monkeypatch.setattr(module, "train", lambda *a, **k: 1 / 0)
    assert isinstance(run("train", DIGITS).exception, ZeroDivisionError)


def test_an_interrupted_training_says_how_to_go_on(monkeypatch, tmp_path):
    from kd_tasks.engine import train as module

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", interrupted)
    folder = tmp_path / "with space"
    options = ["--work-dir", str(folder), "--seed", "3", "--amp", "bf16", "--cfg-options", "train_cfg.max_epochs=2"]
    result = run("train", DIGITS, *options)
    assert result.exit_code == 130
    assert "no checkpoint" in result.stderr
    folder.mkdir()
    (folder / "epoch_1.pth").touch()
    command = shlex.join(["kd-tasks", "train", DIGITS, "--resume", *options])
    assert run("train", DIGITS, *options).stderr.strip().endswith(command)


# --- Options ---


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["c", "--cfg-options", "a=1", "b=2"], ["c", "--cfg-options", "a=1", "--cfg-options", "b=2"]),
        (["--cfg-options", "a=1", "c.py"], ["--cfg-options", "a=1", "c.py"]),
        (["--cfg-options", "a=1", "--resume", "c=d.py"], ["--cfg-options", "a=1", "--resume", "c=d.py"]),
        (["p", "--options", "a=1", "b=2"], ["p", "--options", "a=1", "--options", "b=2"]),
        (
            ["--options", "a=1", "--cfg-options", "b=2", "c=3"],
            ["--options", "a=1", "--cfg-options", "b=2", "--cfg-options", "c=3"],
        ),
        (["--amp", "c.py"], ["--amp", "bf16", "c.py"]),
        (["c.py", "--amp"], ["c.py", "--amp", "bf16"]),
        (["c.py", "--amp", "fp16"], ["c.py", "--amp", "fp16"]),
    ],
)
def test_options_in_mmengines_style(written, meant):
    assert one_value_each(written) == meant


def test_train_hands_its_options_on(engine, tmp_path):
    options = ["--cfg-options", "train_cfg.max_epochs=2", "optim_wrapper.optimizer.lr=1e-4"]
    result = run("train", "--amp", DIGITS, "--resume", "--seed", 7, "--work-dir", tmp_path / "w", *options)
    assert result.exit_code == 0, result.output
    ((cfg, handed),) = engine
    assert handed == {"resume": True, "amp": "bf16", "launcher": "none"}
    assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.lr) == (2, 1e-4)
    assert (cfg.randomness.seed, cfg.work_dir) == (7, str(tmp_path / "w"))


def test_a_config_without_a_folder_gets_one_of_its_name(engine, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("task = 'classification'\n")
    assert run("train", config).exit_code == 0
    assert engine[0][0].work_dir == "work_dirs/mine"


# --- The commands at work ---


@pytest.fixture
def digits(tmp_path):
    return write_run(tmp_path / "alone", ALONE)


def test_test_prints_metrics_and_saves_predictions(digits, tmp_path):
    result = run("test", digits / "config.py", digits / "student.pth", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "top1" in result.output
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 355
    assert set(json.loads(lines[0])) == {"path", "label", "scores"}
    assert "top1" in json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]


def test_export_evaluate_and_compare(digits, tmp_path):
    write_run(tmp_path / "teacher", TEACHER, {"top1": 90.0})
    distilled = write_run(tmp_path / "distilled", DISTILLED, {"top1": 50.0})
    exported = run("export", distilled / "config.py", distilled)
    assert exported.exit_code == 0, exported.output
    evaluated = run("evaluate", distilled / "student.onnx")
    assert evaluated.exit_code == 0, evaluated.output
    for words in ("top1", "checkpoint", "parameters", "latency", "largest difference"):
        assert words in evaluated.output
    runs = [tmp_path / "teacher", digits, distilled, distilled / "student.onnx"]
    compared = run("compare", *runs, "--out", tmp_path / "report")
    assert compared.exit_code == 0, compared.output
    assert "gap closed" in compared.output
    assert json.loads((tmp_path / "report" / "comparison.json").read_text())["main_metric"] == "top1"
    assert (tmp_path / "report" / "report.html").read_text().startswith("<!doctype html>")


def test_taps_of_student_and_teacher_need_no_checkpoint():
    output = run("taps", "classification/kd_digits").output
    assert "Taps of the student" in output
    assert "Taps of the teacher" in output
    assert "layer3" in output


@pytest.fixture
def distillation(tmp_path):
    """A distillation's config, whose teacher is there."""
    write_run(tmp_path / "teacher", TEACHER)
    return write_run(tmp_path / "distilled", DISTILLED) / "config.py"


def test_check_measures_the_pull_of_each_term(distillation):
    result = run("check", distillation, "--batches", 1)
    assert result.exit_code == 0, result.output
    for words in ("student as it starts", "task.cross_entropy", "kd.soft", "kd.hint", "gradient norm"):
        assert words in result.output


def test_check_warns_of_a_term_that_is_far_too_strong(distillation):
    result = run("check", distillation, "--cfg-options", "model.transfers.hint.weight=100000")
    output = " ".join(result.output.split())
    assert "kd.hint pulls" in output
    assert "weight may be too large" in output


def test_check_measures_a_transfer_that_begins_later(distillation):
    result = run("check", distillation, "--cfg-options", "model.transfers.hint.begin=epoch 2")
    batches = len(build_loader(load_config(distillation).train_dataloader))
    assert f"kd.hint (at iteration {2 * batches})" in result.output


def test_gradient_norms_are_those_of_the_weighted_terms(distillation):
    single, double = (
        {pull.name: pull for pull in preflight(load_config(distillation, options), 1).pulls}
        for options in ({"model.transfers.soft.weight": 0.5}, {"model.transfers.soft.weight": 1.0})
    )
    assert double["kd.soft"].gradient == pytest.approx(2 * single["kd.soft"].gradient, rel=1e-4)
    assert double["kd.hint"].gradient == pytest.approx(single["kd.hint"].gradient, rel=1e-4)


def test_browse_writes_pictures(tmp_path):
    result = run("browse", DIGITS, "--out", tmp_path, "--count", 2)
    assert result.exit_code == 0, result.output
    assert cv2.imread(str(tmp_path / "data_1.png")) is not None


def test_a_twin_is_written_and_passes_its_check(tmp_path, monkeypatch):
    from kd_segmentation import synthetic

    whole = synthetic.write_camvid
    monkeypatch.setattr(
        synthetic, "write_camvid", lambda root, seed: whole(root, seed, train=2, val=1, test=1, size=(32, 48))
    )
    assert run("data", "synth", "camvid", tmp_path / "camvid").exit_code == 0
    good = run("data", "check", "camvid", tmp_path / "camvid")
    assert good.exit_code == 0, good.output
    next((tmp_path / "camvid").rglob("*annot/*.png")).unlink()
    assert run("data", "check", "camvid", tmp_path / "camvid").exit_code == 1


def test_torch_threads_are_left_alone():
    before = torch.get_num_threads()
    run("taps", DIGITS)
    assert torch.get_num_threads() == before
