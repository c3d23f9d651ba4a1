"""The demo's stages: what is done, what is kept, what is refused."""

import json

import pytest
from run_folders import write_run

from kd_tasks import demo as module
from kd_tasks import plugins
from kd_tasks.demo import Stage, effort_of, run_demo, train_once
from kd_tasks.engine.config import load_config
from kd_tasks.errors import UserError
from kd_tasks.evaluation.comparison import ALONE


@pytest.fixture
def trained(monkeypatch):
    """In place of training: leaves what a training leaves, and notes whether it was to resume."""
    calls = []

    def train(cfg, resume=False, title=""):
        calls.append((title, resume))
        made = write_run(module.Path(cfg.work_dir) / "made", ALONE, {"top1": 50.0})
        for file in made.iterdir():
            file.rename(made.parent / file.name)
        made.rmdir()

    monkeypatch.setattr(module, "train", train)
    return calls


def config(folder, **options):
    return load_config("classification/alone_digits", {"work_dir": str(folder), **options})


def test_a_finished_training_is_kept(trained, tmp_path):
    cfg, folder = config(tmp_path / "run"), tmp_path / "run"
    assert train_once(cfg, folder, "Student")
    assert not train_once(cfg, folder, "Student")
    assert trained == [("Student", False)]


@pytest.mark.parametrize("missing", ["student.pth", "metrics.json"])
def test_an_unfinished_training_is_done_again(trained, tmp_path, missing):
    cfg, folder = config(tmp_path / "run"), tmp_path / "run"
    train_once(cfg, folder, "Student")
    (folder / missing).unlink()
    assert train_once(cfg, folder, "Student")


def test_a_training_that_was_broken_off_is_resumed(trained, tmp_path):
    cfg, folder = config(tmp_path / "run"), tmp_path / "run"
    train_once(cfg, folder, "Student")
    (folder / "student.pth").rename(folder / "epoch_3.pth")
    assert train_once(cfg, folder, "Student")
    assert trained[-1] == ("Student", True)


def test_another_config_begins_anew(trained, tmp_path):
    folder = tmp_path / "run"
    train_once(config(folder), folder, "Student")
    (folder / "epoch_3.pth").touch()
    assert train_once(config(folder, **{"train_cfg.max_epochs": 99}), folder, "Student")
    assert trained[-1] == ("Student", False)
    assert not (folder / "epoch_3.pth").exists()


def test_a_folder_of_something_else_is_left_alone(trained, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="something else"):
        train_once(config(tmp_path), tmp_path, "Student")
    assert (tmp_path / "thesis.tex").is_file()


def test_a_task_without_a_demo_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "get", lambda name: plugins.Plugin(name="quiet", summary=""))
    with pytest.raises(UserError, match="declares no demo"):
        run_demo("quiet", tmp_path)


def test_effort_counts_student_teacher_and_epochs():
    alone, distilled = (load_config(f"classification/{name}") for name in ("alone_digits", "kd_digits"))
    distilled.train_cfg.max_epochs = alone.train_cfg.max_epochs
    assert effort_of(distilled) > effort_of(alone)
    short = effort_of(alone)
    alone.train_cfg.max_epochs *= 2
    assert effort_of(alone) == 2 * short


def test_stages_are_announced_with_the_time_left(monkeypatch):
    clock = iter([0.0, 10.0, 10.0, 40.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    said = []
    stages = [Stage("Teacher", lambda: True, 1.0), Stage("Student", lambda: True, 3.0)]
    module._go_through(stages, said.append)
    assert said == ["[1/2] Teacher", "[2/2] Student (about 30 s left for all stages)"]


def test_the_whole_job_on_digits(tmp_path, monkeypatch):
    short = {"train_cfg.max_epochs": 1, "train_dataloader.batch_size": 128}
    monkeypatch.setattr(
        module, "load_config", lambda name, options=None: load_config(name, {**(options or {}), **short})
    )
    first, again = [], []
    result = run_demo("classification", tmp_path, progress=first.append)
    labels = [row.label for row in result.comparison.rows]
    assert labels == ["teacher", "alone", "distilled", "student.onnx", "student.int8.onnx", "student.pt2"]
    assert "data:image/png" in result.card.read_text()
    assert json.loads((tmp_path / "comparison.json").read_text())["task"] == "classification"
    run_demo("classification", tmp_path, progress=again.append)
    assert sum("was finished before" in line for line in again) == 5
    assert not any("was finished before" in line for line in first)
