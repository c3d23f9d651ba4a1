"""A whole training: check the config, train or resume, write the student, test it."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier, is_main_process

from kd_tasks import plugins
from kd_tasks.engine.build import build_loader, build_task_model, with_defaults
from kd_tasks.engine.checkpoints import STUDENT_FILE, latest_checkpoint, save_student
from kd_tasks.engine.compat import start_process_group, with_amp
from kd_tasks.engine.config_check import check_config
from kd_tasks.engine.evaluate import EvaluationResult, evaluate
from kd_tasks.engine.files import digest, sha256_of, write_json
from kd_tasks.engine.hooks import label_order, trained_network
from kd_tasks.engine.runner import DistillRunner
from kd_tasks.errors import UserError

METRICS_FILE = "metrics.json"


def train(
    cfg: Config,
    resume: bool = False,
    amp: str | None = None,
    launcher: str = "none",
    options: dict[str, Any] | None = None,
    title: str = "Training",
) -> Path:
    """Train what `cfg` describes; the run folder then holds `student.pth` and, with test data, `metrics.json`.

    Args:
        cfg: the config, with `work_dir`.
        resume: go on from the newest checkpoint in the run folder.
        amp: `bf16` or `fp16` for mixed precision.
        launcher: `pytorch` if torchrun started this process.
        options: what `--cfg-options` changed, so that the check can tell misspelt keys.
        title: what the progress bar says.

    Returns:
        The run folder.

    Raises:
        UserError: for faults of the config, and for what a person can mend in data and files.
    """
    plugins.load_all()
    check_config(cfg, options)
    folder = Path(cfg.work_dir)
    if resume and latest_checkpoint(folder) is None and cfg.get("load_from") is None:
        raise UserError(f"--resume: {folder} holds no checkpoint to resume from. Leave --resume out to begin anew.")
    _make(folder)
    joined = start_process_group(launcher)
    full = with_defaults(cfg)
    full.launcher = launcher
    full.resume = resume
    if amp is not None:
        full.optim_wrapper = with_amp(full.optim_wrapper, amp)
    hooks = dict(full.get("default_hooks") or {})
    hooks.setdefault("progress", {"type": "TrainingProgress", "title": title})
    full.default_hooks = hooks
    full.experiment_name = folder.name
    runner = DistillRunner.from_cfg(full)
    with threads_beside((full.get("train_dataloader") or {}).get("num_workers", 0)):
        runner.train()
    _finish(runner, full, folder)
    if joined:
        dist.destroy_process_group()
    return folder


@contextmanager
def threads_beside(workers: int) -> Iterator[None]:
    """On a CPU, leave the data workers cores of their own, up to half of all: threads that share one wait for it.

    A choice that somebody made by `OMP_NUM_THREADS` stays.

    Args:
        workers: processes that load data.
    """
    threads = torch.get_num_threads()
    if torch.cuda.is_available() or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    torch.set_num_threads(max(1, threads // 2, threads - workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _make(folder: Path) -> None:
    """Make the run folder, or say that nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"work_dir: {folder} cannot be made: {error.strerror}. Choose another folder.") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"work_dir: {folder} cannot be written to. Choose another folder.")


def _finish(runner: DistillRunner, cfg: Config, folder: Path) -> None:
    meta = {"iter": runner.iter, "epoch": runner.epoch, "seed": runner.seed, "classes": label_order(runner)}
    if is_main_process():
        save_student(trained_network(runner), folder / STUDENT_FILE, meta)
    barrier()
    if cfg.get("test_dataloader") is not None:
        test(cfg, str(folder / STUDENT_FILE), folder)  # by all ranks, each on its share
    barrier()


def test(cfg: Config, checkpoint: str, folder: Path | None = None, **options: Any) -> EvaluationResult:
    """Test the deployed model of `cfg` with the weights of `checkpoint`; writes `metrics.json` into `folder`."""
    if cfg.get("test_dataloader") is None or cfg.get("test_evaluator") is None:
        raise UserError("the config has no test_dataloader and test_evaluator, so there is nothing to test on.")
    model = build_task_model(cfg, checkpoint)
    loader = build_loader(cfg.test_dataloader, seed=cfg.get("randomness", {}).get("seed") or 0)
    result = evaluate(model, loader, cfg.test_evaluator, device=get_device(), folder=folder, **options)
    if folder is not None and is_main_process():
        weights = Path(checkpoint) / STUDENT_FILE if Path(checkpoint).is_dir() else Path(checkpoint)
        of = {"checkpoint_sha256": sha256_of(weights), "dataset_sha256": digest(cfg.test_dataloader["dataset"])}
        write_json(folder / METRICS_FILE, {**_finite(result.to_dict()), **of})
    return result


def _finite(value: Any) -> Any:
    """JSON knows no not-a-number: such a metric is `null`."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
