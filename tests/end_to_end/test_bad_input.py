"""Whatever a person gets wrong: exit code 2, one message that names the file or the key, and nothing half-written."""

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import toys
from kd_segmentation.networks import SmallSegNet

from kd_tasks.cli import main
from kd_tasks.taps import list_taps

CONFIG = """
custom_imports = dict(imports=['toys'])
model = dict(
    type='Distiller',
    student=dict(type='SmallSegNet', num_classes=3, width=4),
    teacher=dict(type='SmallSegNet', num_classes=3, width=6),
    transfers=dict(
        pixel=dict(on='logits', loss=dict(type='PixelWise'), weight=1.0),
        pair=dict(on='{tap}', connector='conv1x1', loss=dict(type='Hint'), weight=0.5),
    ),
    criterion=dict(type='SegmentationLoss'),
    decoder=dict(type='SegmentationDecoder'),
)
data = dict(type='ImageMaskFolder', data_root='{root}/data', classes=['a', 'b', 'c'])
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(data, split='train'))
test_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(data, split='train', test_mode=True))
test_evaluator = dict(type='SegmentationMetric')
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
work_dir = '{root}/run'
del data
"""
SIZE = 32
SAMPLES = 4


class Workplace:
    """A folder with data, a config, and a command line that is watched."""

    def __init__(self, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.root, self.capfd = root, capfd
        self.config = root / "config.py"
        self.run = root / "run"
        write_data(root / "data")
        self.configure()

    def configure(self, change: Callable[[str], str] = lambda text: text) -> None:
        self.config.write_text(change(CONFIG.format(root=self.root, tap=inner_tap())))

    def replace(self, old: str, new: str) -> None:
        assert old in CONFIG.format(root=self.root, tap=inner_tap())
        self.configure(lambda text: text.replace(old, new))

    def call(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit code and standard error of `kd-tasks`."""
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        return int(left.value.code or 0), self.capfd.readouterr().err

    def train(self, *arguments: str | Path) -> tuple[int, str]:
        return self.call("train", self.config, *arguments)

    def complaint(self, *arguments: str | Path) -> str:
        """The one message of a training that cannot be."""
        return checked(*self.train(*arguments))


def inner_tap() -> str:
    """A convolution of the student."""
    listed = list_taps(SmallSegNet(num_classes=3, width=4), torch.zeros(1, 3, SIZE, SIZE))
    return next(tap.name for tap in listed if tap.kind == "Conv2d" and len(tap.shape) == 4)


def write_data(root: Path) -> None:
    drawn = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for index in range(SAMPLES):
        image = drawn.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "images" / "train" / f"{index}.png"), image)
        write_mask(root, index, drawn.integers(0, 3, (SIZE, SIZE), dtype=np.uint8))


def write_mask(root: Path, index: int, mask: np.ndarray) -> None:
    cv2.imwrite(str(root / "masks" / "train" / f"{index}.png"), mask)


def checked(code: int, errors: str) -> str:
    """`errors` without the progress bar, after the checks that hold for every fault."""
    assert code == 2, errors
    assert "Traceback" not in errors
    assert re.findall("^(Error|Stopped)", errors, re.MULTILINE) == ["Error"]
    return errors[errors.index("Error:") :]


def half_written(folder: Path) -> list[str]:
    """Files below `folder` that no finished step leaves."""
    return [f.name for f in folder.rglob("*") if f.name.startswith(".") or f.suffix in (".tmp", ".part")]


@pytest.fixture
def place(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KD_TASKS_DATA", raising=False)
    return Workplace(tmp_path, capfd)


def test_without_a_fault_it_trains(place: Workplace) -> None:
    code, errors = place.train()
    assert code == 0, errors
    assert {"student.pth", "metrics.json", "epoch_2.pth"} <= {f.name for f in place.run.iterdir()}


# --- The config ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("'SmallSegNet', num_classes=3, width=4", "'SmallSegNett'", ["model.student.type", "'SmallSegNet'"]),
        ("type='PixelWise'", "type='PixelWize'", ["model.transfers.pixel.loss.type", "'PixelWise'"]),
        ("type='ImageMaskFolder'", "type='ImageMaskFolders'", ["train_dataloader.dataset", "'ImageMaskFolder'"]),
        ("type='SGD'", "type='SDG'", ["optim_wrapper.optimizer.type", "'SGD'"]),
        ("width=4", "widht=4", ["model.student.widht", "'width'"]),
        ("weight=0.5", "wieght=0.5", ["model.transfers.pair.wieght", "'weight'"]),
        ("train_cfg =", "trian_cfg =", ["trian_cfg", "'train_cfg'"]),
        ("max_epochs=2", "max_epoch=2", ["train_cfg.max_epoch", "'max_epochs'"]),
        ("num_classes=3", "num_classes=2", ["model.student.num_classes", "2 classes", "have 3"]),
        ("connector='conv1x1'", "connector='conv1'", ["model.transfers.pair.connector", "'conv1x1'"]),
        ("on='logits'", "on='logit'", ["model.student", "'logit'", "'logits'"]),
        ("/data'", "/date'", ["date", "data_root"]),
        ("width=6)", "width=6, checkpoint='no/file.pth')", ["model.teacher.checkpoint", "no/file.pth"]),
        ("weight=0.5", "weight=dict(until='soon')", ["model.transfers.pair.weight.until", "'soon'"]),
        ("type='PixelWise'", "type='PixelWise', temperature=-1", ["model.transfers.pixel.loss", "temperature"]),
        ("del data", "del date", ["config.py, line", "date"]),
        ("work_dir =", "work_dir", ["config.py, line"]),
    ],
)  # fmt: skip
def test_a_fault_of_the_config_names_the_key(place: Workplace, old: str, new: str, expected: list[str]) -> None:
    place.replace(old, new)
    message = place.complaint()
    for part in expected:
        assert part in message
    assert not place.run.exists() or not list(place.run.glob("*.pth"))


def test_a_tap_that_does_not_exist_names_the_nearest(place: Workplace) -> None:
    tap = inner_tap()
    place.replace(f"on='{tap}'", f"on='{tap[:-1]}9x'")
    message = place.complaint()
    assert "model.student" in message and f"{tap[:-1]}9x" in message and "Did you mean" in message


def test_all_faults_come_at_once(place: Workplace) -> None:
    place.configure(lambda text: text.replace("width=4", "widht=4").replace("'SGD'", "'SDG'").replace("lr=", "rl="))
    message = place.complaint()
    assert "widht" in message and "SDG" in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("train_cfg.max_epoch=3", "train_cfg.max_epoch"),
        ("trian_cfg.max_epochs=3", "trian_cfg"),
        ("model.student.wdith=3", "model.student.wdith"),
        ("max_epochs", "key=value"),
    ],
)
def test_a_misspelt_option(place: Workplace, option: str, expected: str) -> None:
    assert expected in place.complaint("--cfg-options", option)


def test_a_config_that_does_not_exist(place: Workplace) -> None:
    message = checked(*place.call("train", "segmentation/demo_techer"))
    assert "segmentation/demo_techer" in message and "'segmentation/demo_teacher'" in message


# --- The data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_label_out_of_range(place: Workplace, workers: int) -> None:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[3, 5] = 7
    write_mask(place.root / "data", 1, mask)
    message = place.complaint("--cfg-options", f"train_dataloader.num_workers={workers}")
    assert "masks/train/1.png" in message and "7" in message
    assert not list(place.run.glob("*.pth")) and not half_written(place.run)


def test_a_mask_of_another_size(place: Workplace) -> None:
    write_mask(place.root / "data", 2, np.zeros((SIZE, SIZE + 2), np.uint8))
    message = place.complaint()
    assert "images/train/2.png" in message and "masks/train/2.png" in message and f"{SIZE}x{SIZE + 2}" in message


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_picture(place: Workplace, kind: str, share: float) -> None:
    file = place.root / "data" / kind / "train" / "0.png"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert f"{kind}/train/0.png" in place.complaint()


def test_a_missing_mask(place: Workplace) -> None:
    (place.root / "data" / "masks" / "train" / "3.png").unlink()
    assert "3.png" in place.complaint()


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def test_a_run_folder_that_cannot_be_made(place: Workplace) -> None:
    (place.root / "file").touch()
    assert "work_dir: " in place.complaint("--work-dir", place.root / "file" / "run")


def test_resuming_without_a_checkpoint(place: Workplace) -> None:
    message = place.complaint("--resume")
    assert "--resume" in message and "run holds no checkpoint" in message


def with_teacher(place: Workplace) -> Path:
    file = place.root / "teacher.pth"
    place.replace("num_classes=3, width=6)", f"num_classes=3, width=6, checkpoint='{file}')")
    return file


def test_a_checkpoint_that_would_run_code(place: Workplace) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {place.root}/was_run",)

    file = with_teacher(place)
    torch.save({"state_dict": {}, "meta": Evil()}, file)
    message = place.complaint()
    assert "model.teacher.checkpoint" in message and str(file) in message and "could run code" in message
    file.write_bytes(pickle.dumps(Evil()))
    assert str(file) in place.complaint()
    assert not (place.root / "was_run").exists()


def test_a_checkpoint_of_another_architecture(place: Workplace) -> None:
    file = with_teacher(place)
    torch.save({"state_dict": toys.ToyNet().state_dict()}, file)
    message = place.complaint()
    assert "model.teacher.checkpoint" in message and "another architecture" in message and "stage1.0.weight" in message


def test_a_truncated_checkpoint(place: Workplace) -> None:
    file = with_teacher(place)
    torch.save({"state_dict": toys.ToyNet().state_dict()}, file)
    file.write_bytes(file.read_bytes()[:-200])
    assert "cannot be read" in place.complaint()


def test_testing_with_a_missing_checkpoint(place: Workplace) -> None:
    message = checked(*place.call("test", place.config, place.root / "none.pth"))
    assert "none.pth" in message and "does not exist" in message


# --- The training ----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_names_transfer_and_iteration(place: Workplace) -> None:
    place.replace("loss=dict(type='Hint')", "loss=dict(type='ToyNotFinite', after=3)")
    message = place.complaint()
    assert "transfer 'pair'" in message and "nan in iteration 3" in message
    state = torch.load(place.run / "epoch_1.pth")["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    assert not (place.run / "student.pth").exists() and not half_written(place.run)


def test_a_full_disk_while_saving(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = place.train("--cfg-options", "train_cfg.max_epochs=1")
    assert code == 0
    before = {f.name: f.read_bytes() for f in place.run.glob("*.pth")}
    save = torch.save

    def full(value: Any, file: Path) -> None:
        save(value, file)
        file.write_bytes(file.read_bytes()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    message = place.complaint("--resume")
    assert "epoch_2.pth" in message and "disk is full" in message
    assert {f.name: f.read_bytes() for f in place.run.glob("*.pth")} == before
    assert not half_written(place.run)


def test_a_disk_that_is_really_full(place: Workplace) -> None:
    place.run.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", place.run], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        message = place.complaint("--cfg-options", "train_cfg.max_epochs=20", "default_hooks.checkpoint.keep=20")
        assert str(place.run) in message
        for file in place.run.glob("*.pth"):
            torch.load(file)
        assert not half_written(place.run)
    finally:
        subprocess.run(["umount", "--lazy", place.run], check=True)


# --- Artefacts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its exported student."""
    root = tmp_path_factory.mktemp("exported")
    write_data(root / "data")
    (root / "config.py").write_text(CONFIG.format(root=root, tap=inner_tap()))
    for command in (["train", root / "config.py"], ["export", root / "config.py", root / "run" / "student.pth"]):
        with pytest.raises(SystemExit) as left:
            main([str(part) for part in command])
        assert not left.value.code
    (artefact,) = root.rglob("*.onnx")
    return artefact


@pytest.mark.parametrize("fault", ["weights", "manifest", "no manifest", "truncated manifest", "missing"])
def test_a_tampered_artefact(place: Workplace, exported: Path, fault: str) -> None:
    artefact = place.root / exported.name
    manifest = artefact.with_name(f"{artefact.name}.json")
    shutil.copy(exported, artefact)
    shutil.copy(exported.with_name(manifest.name), manifest)
    if fault == "weights":
        content = bytearray(artefact.read_bytes())
        content[len(content) // 2] ^= 1
        artefact.write_bytes(content)
    elif fault == "manifest":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sha256": "0" * 64}))
    elif fault == "no manifest":
        manifest.unlink()
    elif fault == "truncated manifest":
        manifest.write_text(manifest.read_text()[:50])
    else:
        artefact.unlink()
    assert artefact.name in checked(*place.call("evaluate", artefact))


# --- In a process of its own -----------------------------------------------------------------------------------------


def in_a_process(*arguments: str | Path, cwd: Path) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(toys.__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kd_tasks.cli", *map(str, arguments)]
    finished = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in finished.stdout
    return finished.returncode, finished.stderr


def test_a_misspelt_key_in_a_process(place: Workplace) -> None:
    place.replace("max_epochs=2", "max_epoch=2")
    assert "train_cfg.max_epoch" in checked(*in_a_process("train", place.config, cwd=place.root))


def test_a_truncated_picture_in_a_worker_of_a_process(place: Workplace) -> None:
    file = place.root / "data" / "images" / "train" / "0.png"
    file.write_bytes(file.read_bytes()[:500])
    options = ("--cfg-options", "train_dataloader.num_workers=2")
    assert "images/train/0.png" in checked(*in_a_process("train", place.config, *options, cwd=place.root))
