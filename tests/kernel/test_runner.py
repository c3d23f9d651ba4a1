"""Trainings through the runner: what they write, what they leave, and what goes wrong."""

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from torch import nn

from kd_tasks.engine import checkpoints
from kd_tasks.engine.build import with_defaults
from kd_tasks.engine.checkpoints import load_network, read_checkpoint
from kd_tasks.engine.hooks import HISTORY, TrainingScalars
from kd_tasks.engine.runner import DistillRunner
from kd_tasks.engine.train import threads_beside
from kd_tasks.errors import UserError

unsafe = torch.serialization.get_unsafe_globals_in_checkpoint
NOT_FINITE = {"model.transfers.broken": {"on": "head", "loss": {"type": "ToyNotFinite", "after": 5}}}
BY_ITERATION = {
    "train_cfg": {"_delete_": True, "by_epoch": False, "max_iters": 8},
    "param_scheduler": [{"type": "PolyLR", "by_epoch": False, "end": 8}],
}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scalars.json").read_text().splitlines()]


def runner_of(folder: Path, **changes: Any) -> DistillRunner:
    runner = DistillRunner.from_cfg(with_defaults(toys.config(folder, **changes)))
    assert isinstance(runner, DistillRunner)
    return runner


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoints.read_checkpoint(path)["state_dict"]


# --- The run folder --------------------------------------------------------------------------------------------------


def test_a_run_leaves_the_student_its_metrics_and_readable_files(tmp_path: Path) -> None:
    folder = toys.trained(tmp_path / "run", **toys.TESTING, **{"default_hooks.checkpoint": {"save_best": "auto"}})
    assert {"config.py", "student.pth", "best.pth", "epoch_2.pth", "metrics.json", "scalars.json"} <= {
        f.name for f in folder.iterdir()
    }
    assert not (folder / "epoch_1.pth").exists()
    files = list(folder.rglob("*.pth"))
    assert len(files) == 3
    for file in files:
        torch.load(file)
        assert unsafe(file) == []
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["metrics"]["top1"] <= 100
    network = toys.ToyNet()
    network.load_state_dict(torch.load(folder / "student.pth")["state_dict"])
    load_network(network, folder / "epoch_2.pth")
    for key, value in weights(folder / "student.pth").items():
        assert torch.equal(network.state_dict()[key], value)


def test_no_file_of_a_run_holds_a_tensor_of_the_teacher(tmp_path: Path) -> None:
    folder = toys.trained(tmp_path / "run", **{"model.teacher.width": 64})
    state = torch.load(folder / "epoch_2.pth")
    student = {f"network.{key}" for key in toys.ToyNet().state_dict()}
    assert set(state["state_dict"]) - student == {f"transfers.hint.connector.layers.0.{n}" for n in ("weight", "bias")}
    held = len(state["optimizer"]["state"])
    assert held == len(list(toys.ToyNet().parameters())) + 2
    assert (folder / "epoch_2.pth").stat().st_size < 150_000


def test_the_written_config_describes_the_run(tmp_path: Path) -> None:
    from kd_tasks.engine.config import load_config

    folder = toys.trained(tmp_path / "run")
    written = load_config(folder / "config.py")
    assert written.model.student.type == "ToyNet" and written.randomness.seed == 3


# --- Scalars ---------------------------------------------------------------------------------------------------------


def test_scalars_hold_the_mean_of_every_term(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Spy(Hook):
        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            seen.append({name: float(value) for name, value in outputs.items()})

    runner = runner_of(tmp_path / "run", **toys.TESTING, **{"default_hooks.runtime_info": {"interval": 3}})
    runner.register_hook(Spy())
    runner.train()
    written = rows(tmp_path / "run")
    assert [(r["iter"], r["epoch"]) for r in written if "loss" in r] == [(3, 0), (4, 0), (7, 1), (8, 1)]
    assert [(r["iter"], r["val/top1"] >= 0) for r in written if "val/top1" in r] == [(4, True), (8, True)]
    first = written[0]
    for name in ("loss", "task.labels", "kd.soft", "kd.hint"):
        assert first[name] == pytest.approx(sum(s[name] for s in seen[:3]) / 3, rel=1e-5)
    assert first["lr"] > 0
    assert sum(first[n] for n in ("task.labels", "kd.soft", "kd.hint")) == pytest.approx(first["loss"], rel=1e-5)


def test_a_transfer_that_is_off_is_absent_from_the_scalars(tmp_path: Path) -> None:
    folder = toys.trained(
        tmp_path / "run",
        **{"model.transfers.soft.begin": "epoch 1", "default_hooks.runtime_info": {"interval": 1}},
    )
    assert ["kd.soft" in row for row in rows(folder)] == [False] * 4 + [True] * 4


def test_losses_stay_on_the_device_until_they_are_logged() -> None:
    """On a device that is not the CPU nothing is read between two logs; here the device is one without values."""
    hook = TrainingScalars(interval=5)
    read: list[int] = []
    hook._read = lambda runner: read.append(len(hook._pending)) or hook._pending.clear() or {}  # type: ignore[assignment,return-value,func-returns-value]
    hook._log = lambda runner, means: None  # type: ignore[method-assign]

    class Run:
        iter, max_iters, train_dataloader = 0, 10**6, range(10**6)

    for iteration in range(12):
        Run.iter = iteration
        hook.after_train_iter(Run, iteration, outputs={"loss": torch.empty((), device="meta")})  # type: ignore[arg-type]
    assert read == [5, 5]


def test_the_history_in_a_checkpoint_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_tasks.engine.hooks.HISTORY", 3)
    monkeypatch.setattr("kd_tasks.engine.runner.HISTORY", 3)
    runner = runner_of(tmp_path / "run", **{"train_cfg.max_epochs": 6, "default_hooks.runtime_info": {"interval": 1}})
    runner.train()
    assert HISTORY >= 100
    hub = read_checkpoint(tmp_path / "run" / "epoch_6.pth")["message_hub"]
    assert len(rows(tmp_path / "run")) == 24
    assert len(hub["scalars"]["train/loss"]) == 3
    assert max(len(h._log_history) for h in runner.message_hub.log_scalars.values()) <= 2 * 3 + 1


def test_two_runs_of_one_process_share_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        runners = [runner_of(tmp_path / "run") for _ in range(2)]
    first, second = runners
    assert first.experiment_name != second.experiment_name
    assert first.message_hub is not second.message_hub
    assert first.logger is not second.logger
    first.train()
    assert "train/loss" in first.message_hub.log_scalars
    assert "train/loss" not in second.message_hub.log_scalars


def test_a_run_in_the_folder_of_an_older_one_begins_its_scalars_anew(tmp_path: Path) -> None:
    toys.trained(tmp_path / "run")
    before = rows(tmp_path / "run")
    toys.trained(tmp_path / "run")
    assert rows(tmp_path / "run") == before


# --- Best, average ---------------------------------------------------------------------------------------------------


@HOOKS.register_module()
class ToyScores(Hook):
    """Gives validations a score out of a list, one an epoch."""

    priority = "VERY_HIGH"

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        assert metrics is not None
        metrics["top1"] = self.scores[runner.epoch - 1]


def best_of(folder: Path, scores: list[float], rule: str = "greater", resume: bool = False, epochs: int = 4) -> Path:
    """A run of which each epoch's student is kept, under scores of our own."""
    return toys.trained(
        folder,
        resume=resume,
        **toys.TESTING,
        **{
            "train_cfg.max_epochs": epochs,
            "custom_hooks": [{"type": "ToyScores", "scores": scores}],
            "default_hooks.checkpoint": {"save_best": "top1", "rule": rule, "keep": 9},
        },
    )


@pytest.mark.parametrize(("rule", "scores", "epoch"), [("greater", [10, 40, 20, 40], 2), ("less", [10, 4, 20, 5], 2)])
def test_the_best_student_is_kept(tmp_path: Path, rule: str, scores: list[float], epoch: int) -> None:
    folder = best_of(tmp_path / "run", scores, rule)
    best = read_checkpoint(folder / "best.pth")
    assert best["meta"]["epoch"] == epoch and best["meta"]["metrics"] == {"top1": scores[epoch - 1]}
    network = toys.ToyNet()
    load_network(network, folder / f"epoch_{epoch}.pth")
    assert all(torch.equal(network.state_dict()[key], value) for key, value in best["state_dict"].items())


def test_a_resumed_run_does_not_replace_the_best_by_a_worse_one(tmp_path: Path) -> None:
    folder = best_of(tmp_path / "run", [10, 50], epochs=2)
    best_of(folder, [0, 0, 20, 30], resume=True)
    assert read_checkpoint(folder / "best.pth")["meta"]["metrics"] == {"top1": 50}
    best_of(folder, [0, 0, 0, 0, 60], resume=True, epochs=5)
    assert read_checkpoint(folder / "best.pth")["meta"]["metrics"] == {"top1": 60}


def test_an_unknown_metric_for_the_best(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"save_best: no metric 'mIoU'. The evaluator gives: top1"):
        toys.trained(tmp_path / "run", **toys.TESTING, **{"default_hooks.checkpoint": {"save_best": "mIoU"}})


def test_the_average_of_the_weights_is_what_is_deployed(tmp_path: Path) -> None:
    averaging = {"custom_hooks": [{"type": "EMAHook", "momentum": 0.3}]}
    changes = {**toys.TESTING, **averaging, "default_hooks.checkpoint": {"save_best": "auto"}}
    runner = runner_of(tmp_path / "run", **changes)
    runner.train()
    (hook,) = [h for h in runner.hooks if isinstance(h, EMAHook)]
    averaged, last = hook.ema_model.module, runner.model
    assert averaged.teachers["teacher"] is last.teachers["teacher"]
    assert not torch.equal(averaged.network.head.weight, last.network.head.weight)
    folder = toys.trained(tmp_path / "again", **changes)
    best = weights(folder / "best.pth")
    of_run = {k: v for k, v in weights(folder / "epoch_2.pth").items() if k.startswith("network.")}
    for key, value in weights(folder / "student.pth").items():
        assert torch.equal(value, averaged.network.state_dict()[key]), key
        assert torch.equal(value, of_run[f"network.{key}"]), key
    if read_checkpoint(folder / "best.pth")["meta"]["epoch"] == 2:
        assert all(torch.equal(best[key], value) for key, value in averaged.network.state_dict().items())
    assert unsafe(folder / "epoch_2.pth") == []


# --- Losses that are not finite --------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_names_transfer_and_iteration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"transfer 'broken' became nan in iteration 5 \(epoch 1\)"):
        toys.trained(tmp_path / "run", **NOT_FINITE)
    state = read_checkpoint(tmp_path / "run" / "epoch_1.pth")["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    assert not (tmp_path / "run" / "epoch_2.pth").exists()
    assert not (tmp_path / "run" / "student.pth").exists()


def test_no_checkpoint_is_written_after_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where losses are read at the log alone."""
    monkeypatch.setattr("kd_tasks.engine.hooks.math.isfinite", lambda value: True)
    changes = {**NOT_FINITE, **BY_ITERATION, "default_hooks.checkpoint": {"interval": 1, "keep": 99}}
    with pytest.raises(UserError, match="transfer 'broken' became nan in iteration 5"):
        toys.trained(tmp_path / "run", **{**changes, "default_hooks.runtime_info": {"interval": 100}})
    assert {f.name for f in (tmp_path / "run").glob("iter_*.pth")} == {f"iter_{n}.pth" for n in range(1, 6)}
    assert math.isfinite(1.0)


# --- Resuming and loading --------------------------------------------------------------------------------------------


def test_resuming_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--resume: .*run holds no checkpoint to resume from"):
        toys.trained(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.student.width": 5}, "another model, optimiser or schedule"),
        ({"optim_wrapper.paramwise_cfg": {"bias_lr_mult": 2.0}}, "another model, optimiser or schedule"),
        ({"param_scheduler": []}, "another model, optimiser or schedule"),
    ],
)
def test_resuming_with_another_config(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = toys.trained(tmp_path / "run")
    with pytest.raises(UserError, match=rf"--resume: .*epoch_2\.pth belongs to a run with {message}"):
        toys.trained(folder, resume=True, **changes)


def test_a_student_is_no_checkpoint_of_a_run(tmp_path: Path) -> None:
    folder = toys.trained(tmp_path / "run")
    (folder / "epoch_2.pth").write_bytes((folder / "student.pth").read_bytes())
    with pytest.raises(UserError, match="is no checkpoint of a run; it has no optimizer, message_hub, random_state"):
        toys.trained(folder, resume=True)


def test_resuming_prefers_the_runs_own_checkpoint_to_load_from(tmp_path: Path) -> None:
    start = toys.trained(tmp_path / "start", **{"randomness.seed": 9})
    other = {"load_from": str(start / "student.pth")}
    whole = toys.trained(tmp_path / "whole", **other)
    half = toys.trained(tmp_path / "half", **other, **{"train_cfg.max_epochs": 1})
    toys.trained(half, resume=True, **other)
    for key, value in weights(whole / "student.pth").items():
        assert torch.equal(weights(half / "student.pth")[key], value), key


def test_load_from_starts_with_the_weights_of_the_file(tmp_path: Path) -> None:
    start = toys.trained(tmp_path / "start", **{"randomness.seed": 9})
    runner = runner_of(tmp_path / "run", load_from=str(start))
    runner.load_or_resume()
    for key, value in weights(start / "student.pth").items():
        assert torch.equal(runner.model.network.state_dict()[key], value)


@pytest.mark.parametrize("interval", [3, 4])
def test_a_training_by_iterations_goes_on_where_it_stood(tmp_path: Path, interval: int) -> None:
    changes = {**BY_ITERATION, "default_hooks.checkpoint": {"interval": interval, "keep": 9}}
    whole = toys.trained(tmp_path / "whole", **changes)
    half = toys.trained(tmp_path / "half", **changes)
    for file in [*half.glob("iter_8.pth"), *half.glob("iter_6.pth"), half / "student.pth"]:
        file.unlink()
    toys.trained(half, resume=True, **changes)
    assert rows(half) == rows(whole)
    for key, value in weights(whole / "student.pth").items():
        assert torch.equal(weights(half / "student.pth")[key], value), key


# --- The terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "moment"), [({}, "epoch 1:"), (BY_ITERATION, "iteration 8:")])
def test_a_validation_is_told_with_its_moment(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], moment: str
) -> None:
    toys.trained(tmp_path / "run", **{**toys.TESTING, **changes})
    assert moment in "".join(capfd.readouterr())


def test_the_log_is_in_the_file_and_not_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = toys.trained(tmp_path / "run", **{"default_hooks.logger": {"interval": 1}})
    shown = "".join(capfd.readouterr())
    (log,) = folder.rglob("*.log")
    assert "kd.hint" in log.read_text()
    assert "kd.hint" not in shown and "Traceback" not in shown
    assert logging.getLogger().level != logging.DEBUG


def test_networks_that_have_been_trained_have_their_modes(tmp_path: Path) -> None:
    runner = runner_of(tmp_path / "run", **toys.TESTING)
    runner.train()
    assert isinstance(runner.model.network, nn.Module)
    assert not any(m.training for m in runner.model.teachers["teacher"].network.modules())


@pytest.mark.parametrize(("threads", "workers", "left"), [(2, 0, 2), (2, 1, 1), (2, 4, 1), (8, 3, 5), (8, 8, 4)])
def test_data_workers_have_cores_of_their_own(
    threads: int, workers: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threads_beside(workers):
            assert torch.get_num_threads() == left
        assert torch.get_num_threads() == threads
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        with threads_beside(workers):
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
