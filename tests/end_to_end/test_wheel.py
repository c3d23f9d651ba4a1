"""The wheel, built and installed away from the checkout, does the whole job by itself."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
    return site


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def python(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel's folder and the dependencies on the path.

    `-S` leaves out `.pth` files, by which an editable install would put the checkout on the path.
    """
    paths = [str(site), *dict.fromkeys(sysconfig.get_paths()[key] for key in ("purelib", "platlib"))]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KD_TASKS_")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def kd_tasks(site: Path, folder: Path, *arguments: str) -> str:
    """Output of a command that must succeed."""
    result = python(site, folder, "-m", "kd_tasks.cli", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_it_holds_kernel_plugins_configs_and_cards(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        file.relative_to(CHECKOUT / root).as_posix()
        for root, packages in ((".", ["kd_tasks"]), ("plugins", ["kd_*"]))
        for package in packages
        for file in (CHECKOUT / root).glob(f"{package}/**/*.py")
    }
    shipped = {f"kd_tasks/{f.relative_to(CHECKOUT).as_posix()}" for f in (CHECKOUT / "configs").rglob("*.py")}
    cards = {f"kd_tasks/datasets/{f.name}" for f in (CHECKOUT / "datasets").glob("*.md")}
    assert expected and shipped and cards
    assert expected | shipped | cards <= inside
    assert {name.split("/")[0] for name in inside} == {name.split("/")[0] for name in expected}
    assert not [name for name in inside if name.endswith((".pyc", ".pth", ".onnx"))]


def test_it_declares_the_command_and_every_plugin(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
    declared = archive.read(name).decode()
    assert "kd-tasks = kd_tasks.cli:main" in declared
    for plugin in (CHECKOUT / "plugins").glob("kd_*"):
        assert f"{plugin.name}:plugin" in declared


def test_the_checkout_is_out_of_reach(installed: Path, place: Path) -> None:
    code = (
        "import json, sys, kd_tasks, kd_classification; "
        "print(json.dumps([sys.path, kd_tasks.__file__, kd_classification.__file__]))"
    )
    result = python(installed, place, "-c", code)
    path, *files = json.loads(result.stdout)
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert not {str(CHECKOUT), str(CHECKOUT / "plugins")} & set(path)


def test_it_lists_plugins_configs_and_cards(installed: Path, place: Path) -> None:
    listed = kd_tasks(installed, place, "list")
    for name in ("segmentation", "classification/kd_digits", "cityscapes", "SoftTargets"):
        assert name in listed


def test_it_trains_a_teacher_and_distils_from_it(installed: Path, place: Path) -> None:
    short = ["--cfg-options", "train_cfg.max_epochs=1"]
    kd_tasks(installed, place, "train", "classification/teacher_digits", *short, "model.network.width=8")
    kd_tasks(installed, place, "train", "classification/kd_digits", *short, "model.teacher.width=8")
    run = place / "work_dirs" / "classification" / "kd_digits"
    assert (run / "student.pth").is_file()
    assert 0 <= json.loads((run / "metrics.json").read_text())["metrics"]["top1"] <= 100


def test_it_exports_and_evaluates(installed: Path, place: Path) -> None:
    run = place / "work_dirs" / "classification" / "kd_digits"
    kd_tasks(installed, place, "export", str(run / "config.py"), str(run / "student.pth"))
    shown = kd_tasks(installed, place, "evaluate", str(run / "student.onnx"))
    measured = json.loads((run / "metrics.json").read_text())["metrics"]["top1"]
    assert f"{measured:.2f}"[:4] in shown


def test_it_runs_the_demo(installed: Path, place: Path) -> None:
    kd_tasks(installed, place, "demo", "classification", "--out", "demo")
    assert (place / "demo" / "report.html").stat().st_size > 10_000
