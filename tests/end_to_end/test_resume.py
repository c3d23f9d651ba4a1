"""A training that is killed and resumed ends with the same numbers as one that was never stopped."""

import json
import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from mmengine.registry import DATASETS

from kd_tasks.engine.checkpoints import latest_checkpoint
from kd_tasks.vision.dataset import VisionDataset

BY_ITERATION = {
    "train_cfg": {"_delete_": True, "by_epoch": False, "max_iters": 14},
    "param_scheduler": [{"type": "PolyLR", "by_epoch": False, "end": 14}],
    "default_hooks.checkpoint": {"interval": 3},
}
BY_EPOCH = {"train_cfg.max_epochs": 4, "param_scheduler": [{"type": "PolyLR", "by_epoch": True, "end": 4}]}
RANDOM = {
    "model.student.dropout": 0.5,
    "model.transfers.hint.weight": {"start": 0.0, "end": 1.0, "until": "iter 9"},
    "train_dataloader.num_workers": 2,
    "default_hooks.runtime_info": {"interval": 5},
}
CRITIC = {
    "model.transfers.critic": toys.ADVERSARIAL,
    "optim_wrapper.critic": {"optimizer": {"type": "Adam", "lr": 0.01}},
}
AVERAGE = {"type": "EMAHook", "momentum": 0.2}
PICTURES = {
    "train_dataloader.dataset": {
        "_delete_": True,
        "type": "ToyPictures",
        "data_root": ".",
        "split": "train",
        "transforms": [
            {"type": "HorizontalFlip", "p": 0.5},
            {"type": "RandomBrightnessContrast", "p": 0.9},
            {"type": "GaussNoise", "p": 0.5},
        ],
    }
}


@DATASETS.register_module()
class ToyPictures(VisionDataset):
    """Noise, through the transforms of every data set of pictures."""

    def find(self) -> range:
        return range(16)

    def load(self, index: int) -> dict[str, Any]:
        image = np.random.default_rng(index).integers(0, 256, (toys.SIZE, toys.SIZE, 3), dtype=np.uint8)
        return {"image": image, "label": torch.tensor(index % toys.CLASSES), "meta": {"path": f"{index}.png"}}


def run_and_be_killed(folder: Path, at: int, changes: dict[str, Any]) -> None:
    """Train in a process that dies by SIGKILL after the iteration `at`."""
    hooks = [*changes.get("custom_hooks", []), {"type": "ToyKilled", "at": at}]
    process = multiprocessing.get_context("fork").Process(
        target=toys.trained, args=(folder,), kwargs={**changes, "custom_hooks": hooks}
    )
    process.start()
    deadline = time.monotonic() + 60
    while process.exitcode is None and time.monotonic() < deadline:  # join would wait for its orphaned workers too
        time.sleep(0.05)
    assert process.exitcode == -signal.SIGKILL


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scalars.json").read_text().splitlines()]


def assert_equal(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_equal(found[index], value, f"{where}.{index}")
    else:
        assert found == expected, where


@pytest.mark.parametrize(
    ("changes", "at", "stopped_after"),
    [
        pytest.param({**BY_EPOCH, **RANDOM}, 10, "epoch_2.pth", id="epochs"),
        pytest.param({**BY_ITERATION, **RANDOM}, 7, "iter_6.pth", id="iterations"),
        pytest.param({**BY_ITERATION, **RANDOM, **CRITIC}, 4, "iter_3.pth", id="adversarial"),
        pytest.param({**BY_EPOCH, **RANDOM, **toys.TESTING, "custom_hooks": [AVERAGE]}, 9, "epoch_2.pth", id="average"),
        pytest.param({**BY_ITERATION, **RANDOM, **PICTURES}, 7, "iter_6.pth", id="albumentations"),
    ],
)
def test_a_killed_and_resumed_run_equals_one_that_was_never_stopped(
    tmp_path: Path, changes: dict[str, Any], at: int, stopped_after: str
) -> None:
    whole = toys.trained(tmp_path / "whole", **changes)
    run_and_be_killed(tmp_path / "killed", at, changes)
    stopped = latest_checkpoint(tmp_path / "killed")
    assert stopped is not None and stopped.name == stopped_after
    assert not (tmp_path / "killed" / "student.pth").exists()
    killed = toys.trained(tmp_path / "killed", resume=True, **changes)

    assert rows(killed) == rows(whole)
    for name in ("student.pth", latest_checkpoint(whole).name):  # type: ignore[union-attr]
        found, expected = (torch.load(folder / name) for folder in (killed, whole))
        for key in expected.keys() - {"meta", "message_hub"}:
            assert_equal(found[key], expected[key], f"{name}: {key}")


def test_a_run_that_is_not_resumed_rightly_would_differ(tmp_path: Path) -> None:
    """What the comparison above is worth: without the random state of the checkpoint the numbers are others."""
    changes = {**BY_EPOCH, **RANDOM, "train_dataloader.num_workers": 0}
    whole = toys.trained(tmp_path / "whole", **changes)
    half = toys.trained(tmp_path / "half", **{**changes, "train_cfg.max_epochs": 2})
    state = torch.load(half / "epoch_2.pth")
    state["random_state"]["torch"] = torch.Generator().manual_seed(99).get_state()
    torch.save(state, half / "epoch_2.pth")
    toys.trained(half, resume=True, **changes)
    found, expected = (torch.load(folder / "student.pth")["state_dict"] for folder in (half, whole))
    assert not torch.equal(found["head.weight"], expected["head.weight"])
