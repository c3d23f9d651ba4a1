"""A plugin of a third party, installed beside kd-tasks: found, listed, trained, and read by `package::` bases."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "fixtures" / "outside_plugin"
EXTENSION = """
_base_ = 'kd_brightness::distil.py'
train_cfg = dict(max_epochs=1)
work_dir = 'work_dirs/extended'
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin and its entry point, for PYTHONPATH; the developer's environment stays as it is."""
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    copied = shutil.copytree(SOURCE, target / "source", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*install, "--no-build-isolation", "--target", str(target / "packages"), str(copied)], check=True)
    return target / "packages"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Path:
    """A working folder with the plugin's synthetic data."""
    folder = tmp_path_factory.mktemp("work")
    result = kd_tasks(installed, folder, "data", "synth", "brightness", "pictures")
    assert result.returncode == 0, result.stderr
    return folder


def kd_tasks(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "kd_tasks.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_list_shows_it_with_its_configs(installed: Path, tmp_path: Path) -> None:
    result = kd_tasks(installed, tmp_path, "list")
    assert result.returncode == 0, result.stderr
    assert "Brightness of pictures: a plugin from outside" in result.stdout
    assert "distil" in result.stdout.split()
    assert "classification" in result.stdout


def test_it_is_not_there_without_its_folder_on_the_path(tmp_path: Path) -> None:
    result = kd_tasks(tmp_path, tmp_path, "list", "plugins")
    assert result.returncode == 0, result.stderr
    assert "rightness" not in result.stdout


def test_its_config_trains_and_leaves_a_student(installed: Path, place: Path) -> None:
    result = kd_tasks(installed, place, "train", "distil", "--cfg-options", "work_dir=run", "train_cfg.max_epochs=3")
    assert result.returncode == 0, result.stderr
    assert 0 <= json.loads((place / "run" / "metrics.json").read_text())["metrics"]["mae"] < 10
    lines = [json.loads(line) for line in (place / "run" / "scalars.json").read_text().splitlines()]
    logged = {name for line in lines for name in line}
    assert {"kd.output", "kd.hint", "task.brightness"} <= logged
    assert max(line["iter"] for line in lines) == 6
    assert (place / "run" / "student.pth").is_file()


def test_a_users_config_inherits_from_it_by_package(installed: Path, place: Path) -> None:
    (place / "mine.py").write_text(EXTENSION)
    result = kd_tasks(installed, place, "train", "mine.py")
    assert result.returncode == 0, result.stderr
    assert (place / "work_dirs" / "extended" / "epoch_1.pth").is_file()


def test_a_fault_in_its_recipe_is_one_message(installed: Path, place: Path) -> None:
    options = ["--cfg-options", "work_dir=faulty", "model.transfers.output.loss.type=AbsolutDifference"]
    result = kd_tasks(installed, place, "train", "distil", *options)
    assert result.returncode == 2
    assert "AbsoluteDifference" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (place / "faulty").exists()
