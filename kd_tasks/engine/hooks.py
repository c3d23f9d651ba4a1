"""Hooks of every training: scalars and not-a-number, checkpoints, progress."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook, RuntimeInfoHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from kd_tasks.distiller import Distiller
from kd_tasks.engine.checkpoints import read_checkpoint, save_student
from kd_tasks.engine.classes import class_order, refuse_missing_classes, refuse_other_label_order
from kd_tasks.engine.compat import gradient_norms
from kd_tasks.engine.progress import progress_bar
from kd_tasks.errors import UserError

SCALARS_FILE = "scalars.json"
BEST_FILE = "best.pth"
HISTORY = 1000


def bare_model(runner: Runner) -> Any:
    """The runner's model without its data-parallel wrapper."""
    return getattr(runner.model, "module", runner.model)


def trained_network(runner: Runner) -> nn.Module:
    """The network that is validated and deployed: the running average where an `EMAHook` keeps one."""
    averages = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
    return (averages or [bare_model(runner)])[-1].network


def label_order(runner: Runner) -> list[str]:
    """The classes of the training data in the order of their labels; empty where the data do not name them."""
    return class_order(getattr(runner.train_dataloader.dataset, "metainfo", None))


@HOOKS.register_module()
class TrainingScalars(RuntimeInfoHook):
    """Keeps the losses on the device and reads them once every `interval` iterations.

    Tells the distiller's schedules the iteration, stops a training whose loss is not finite, hands mean losses to
    mmengine's logger and writes them to `scalars.json` in the run folder, one JSON object a line. What is pending is
    read before a checkpoint is written, so that no checkpoint is written after a loss that is not finite, and a
    resumed run writes the same lines.

    Args:
        interval: iterations between two readings.
    """

    def __init__(self, interval: int = 10) -> None:
        super().__init__()
        self.interval = interval
        self._pending: list[dict[str, Tensor]] = []

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        dataset = runner.train_dataloader.dataset
        refuse_missing_classes(runner.cfg.get("model") or {}, getattr(dataset, "metainfo", None))
        refuse_other_label_order(bare_model(runner), label_order(runner))
        self._file = Path(runner.work_dir) / SCALARS_FILE
        if is_main_process():
            _keep_until(self._file, runner.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        runner.message_hub.update_info("iter", runner.iter)
        model = bare_model(runner)
        if isinstance(model, Distiller):
            model.set_moment(runner.iter, len(runner.train_dataloader))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        if not outputs:
            return
        self._pending.append(outputs)
        on_cpu = outputs["loss"].device.type == "cpu"
        if on_cpu and not math.isfinite(outputs["loss"].item()):
            self._read(runner)
        last = runner.iter + 1 == runner.max_iters or batch_idx + 1 == len(runner.train_dataloader)
        if len(self._pending) >= self.interval or last:
            self._log(runner, self._read(runner))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self._pending:
            self._log(runner, self._read(runner))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        super().after_val_epoch(runner, metrics)
        numbers = {f"val/{k}": float(v) for k, v in (metrics or {}).items() if isinstance(v, int | float)}
        self._write({"iter": runner.iter, "epoch": runner.epoch, **numbers})

    def _read(self, runner: Runner) -> dict[str, float]:
        """Means of the pending losses; one transfer to the host."""
        pending, self._pending = self._pending, []
        names = sorted({name for outputs in pending for name in outputs})
        absent = torch.full((), torch.nan, device=pending[0]["loss"].device)
        rows = [[outputs.get(name, absent).detach().float() for name in names] for outputs in pending]
        table = torch.stack([torch.stack(row) for row in rows]).cpu()
        present = torch.tensor([[name in outputs for name in names] for outputs in pending])
        self._refuse_non_finite(runner, names, table, present)
        return {name: table[present[:, i], i].mean().item() for i, name in enumerate(names)}

    def _refuse_non_finite(self, runner: Runner, names: list[str], table: Tensor, present: Tensor) -> None:
        bad = (~table.isfinite() & present).nonzero().tolist()
        if not bad:
            return
        row = bad[0][0]
        iteration = runner.iter + 1 - (len(table) - row)
        culprits = [names[i] for r, i in bad if r == row and names[i] != "loss"] or ["loss"]
        value = table[row, names.index(culprits[0])].item()
        raise UserError(
            f"{', '.join(map(_called, culprits))} became {value} in iteration {iteration} (epoch {runner.epoch}). "
            "Training has stopped; no checkpoint was written since. Lower the learning rate or the weight of that "
            "term, or clip gradients with optim_wrapper.clip_grad=dict(max_norm=1.0)."
        )

    def _log(self, runner: Runner, means: dict[str, float]) -> None:
        rates = {name: values[0] for name, values in runner.optim_wrapper.get_lr().items()}
        norms = {k: v for k, v in gradient_norms(runner.optim_wrapper).items() if math.isfinite(v)}
        for name, value in {**means, **rates, **norms}.items():
            runner.message_hub.update_scalar(f"train/{name}", value)
        for history in runner.message_hub.log_scalars.values():
            if len(history._log_history) > 2 * HISTORY:
                history._log_history = history._log_history[-HISTORY:]
                history._count_history = history._count_history[-HISTORY:]
        self._write({"iter": runner.iter + 1, "epoch": runner.epoch, **means, **rates, **norms})

    def _write(self, row: dict[str, Any]) -> None:
        if not is_main_process() or not hasattr(self, "_file"):
            return
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UserError(
                f"{self._file}: could not be written: {error.strerror or error}. Make room or choose another work_dir; "
                "--resume then goes on from the latest checkpoint."
            ) from error


def _called(term: str) -> str:
    kind, _, name = term.partition(".")
    kinds = {"kd": "transfer", "task": "task loss", "critic": "the critic of transfer"}
    return f"{kinds[kind]} {name!r}" if kind in kinds else f"loss {term!r}"


def _keep_until(file: Path, iteration: int) -> None:
    """Drop what a run that is resumed wrote after its checkpoint."""
    if not file.is_file():
        return
    rows = [line for line in file.read_text(encoding="utf-8").splitlines() if _iteration(line) <= iteration]
    file.write_text("".join(f"{line}\n" for line in rows) if iteration > 0 else "", encoding="utf-8")


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["iter"]
    except (ValueError, KeyError):
        return math.inf


@HOOKS.register_module()
class Checkpoints(Hook):
    """Writes resumable checkpoints, and the best student if asked; a newer file is whole before an older one goes.

    Args:
        interval: epochs (or iterations, in an iteration-based training) between two checkpoints.
        keep: how many to keep.
        save_best: the metric by which the best student is kept as `best.pth`, such as `mIoU`; `auto` takes the first.
        rule: `greater` or `less`: which value of that metric is better.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int = 1, keep: int = 1, save_best: str | None = None, rule: str = "greater") -> None:
        if rule not in ("greater", "less"):
            raise UserError(f"default_hooks.checkpoint.rule: {rule!r} is neither 'greater' nor 'less'.")
        self.interval, self.keep, self.save_best, self.rule = interval, keep, save_best, rule
        self._best: float | None = None

    def before_train(self, runner: Runner) -> None:
        file = Path(runner.work_dir) / BEST_FILE
        if self.save_best is not None and runner.iter > 0 and file.is_file() and is_main_process():
            self._best = next(iter(read_checkpoint(file)["meta"]["metrics"].values()))

    def after_train_epoch(self, runner: Runner) -> None:
        if not _by_epoch(runner):
            return
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self._save(runner, f"epoch_{runner.epoch + 1}.pth", by_epoch=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        if _by_epoch(runner):
            return
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self._save(runner, f"iter_{runner.iter + 1}.pth", by_epoch=False)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self.save_best is None or not metrics or not is_main_process():
            return
        name = next(iter(metrics)) if self.save_best == "auto" else self.save_best
        if name not in metrics:
            known = ", ".join(metrics)
            raise UserError(f"default_hooks.checkpoint.save_best: no metric {name!r}. The evaluator gives: {known}.")
        value = float(metrics[name])
        if self._best is not None and (value <= self._best if self.rule == "greater" else value >= self._best):
            return
        self._best = value
        meta = {
            "iter": runner.iter,
            "epoch": runner.epoch,
            "metrics": {name: value},
            "classes": label_order(runner),
        }
        save_student(trained_network(runner), Path(runner.work_dir) / BEST_FILE, meta)

    def _save(self, runner: Runner, filename: str, by_epoch: bool) -> None:
        runner.save_checkpoint(runner.work_dir, filename, by_epoch=by_epoch)
        if is_main_process():
            stem = filename.partition("_")[0]
            files = sorted(Path(runner.work_dir).glob(f"{stem}_*.pth"), key=lambda f: int(f.stem.rpartition("_")[2]))
            for old in files[: -self.keep]:
                old.unlink(missing_ok=True)


def _by_epoch(runner: Runner) -> bool:
    return getattr(runner.train_loop, "by_epoch", True)


@HOOKS.register_module()
class TrainingProgress(Hook):
    """A bar over all iterations of a training, with the loss and the time left.

    Args:
        title: what the bar says.
    """

    def __init__(self, title: str = "Training") -> None:
        self.title = title

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        self._bar = progress_bar()
        self._task = self._bar.add_task(self.title, total=runner.max_iters, completed=runner.iter, note="")
        self._bar.start()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        if not is_main_process():
            return
        losses = runner.message_hub.log_scalars.get("train/loss")
        note = f"loss {losses.current():.3f}" if losses is not None else ""
        self._bar.update(self._task, completed=runner.iter + 1, note=note)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if hasattr(self, "_bar") and metrics:
            name, value = next(iter(metrics.items()))
            moment = f"epoch {runner.epoch}" if _by_epoch(runner) else f"iteration {runner.iter}"
            self._bar.console.print(f"  {moment}: {name} {value:.2f}", highlight=False)

    def after_train(self, runner: Runner) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, also when the training was broken off."""
        if hasattr(self, "_bar"):
            self._bar.stop()
