"""Run folders made up for tests: the files that a training leaves, with numbers that the test chooses."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd_tasks.engine.build import build_task_model
from kd_tasks.engine.checkpoints import save_student
from kd_tasks.engine.config import dump_config, load_config
from kd_tasks.evaluation.comparison import ALONE, DISTILLED, EXPORTED, TEACHER, Measured

CONFIGS = {
    TEACHER: "classification/teacher_digits",
    ALONE: "classification/alone_digits",
    DISTILLED: "classification/kd_digits",
}

PINNED: dict[str, dict[str, Any]] = {
    TEACHER: {"model.network.width": 24},
    ALONE: {"model.network.width": 6},
    DISTILLED: {"model.student.width": 6, "model.teacher.width": 24},
}
LOADER = {"train_dataloader.batch_size": 100}


def write_run(
    folder: Path,
    role: str,
    metrics: Mapping[str, float] | None = None,
    seed: int = 0,
    teacher: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """A finished run of the digits configs with random weights; without `metrics` it has no `metrics.json`."""
    changed = {"work_dir": str(folder), "randomness.seed": seed, **PINNED[role], **LOADER, **(options or {})}
    if role == DISTILLED:
        changed["model.teacher.checkpoint"] = str((teacher or folder.parent / "teacher") / "student.pth")
    cfg = load_config(CONFIGS[role], changed)
    folder.mkdir(parents=True)
    dump_config(cfg, folder / "config.py")
    torch.manual_seed(seed)
    save_student(build_task_model(cfg).network, folder / "student.pth", {"seed": seed})
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps({"metrics": dict(metrics), "per_class": {}}))
    return folder


def measured(role: str, score: float, seed: int = 0, path: str = "runs/x", **more: Any) -> Measured:
    """One measured run with the main metric `mIoU`."""
    variant = "student.onnx" if role == EXPORTED else ""
    return Measured(
        Path(path), role, "Net small", **{"variant": variant, "seed": seed, "metrics": {"mIoU": score}, **more}
    )
