"""mmengine's Runner with the ground that distillation needs: see `compat` for what is different and why."""

import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import LOOPS, RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from kd_tasks import __version__
from kd_tasks.engine import checkpoints
from kd_tasks.engine.compat import DistillDataParallel, build_optimisers, synchronise_norms
from kd_tasks.engine.config import config_text, dump_config
from kd_tasks.engine.hooks import HISTORY, TrainingProgress
from kd_tasks.engine.randomness import capture_random_state, restore_random_state
from kd_tasks.errors import UserError

RESUMED = ("meta", "state_dict", "optimizer", "message_hub", "random_state")
OWN_HOOKS: dict[str, dict[str, Any]] = {
    "runtime_info": {"type": "TrainingScalars"},
    "logger": {"type": "LoggerHook", "interval": 10},
    "checkpoint": {"type": "Checkpoints"},
    "progress": {"type": "TrainingProgress"},
}


@LOOPS.register_module()
class IterationLoop(IterBasedTrainLoop):
    """An iteration-based training that goes on after a resume where it stood, without reading what it has seen.

    Args:
        runner: the runner.
        dataloader: the loader, or its config; its sampler must be an `EpochSampler`.
        max_iters: iterations in all.
        val_begin: the iteration from which on it validates.
        val_interval: iterations between two validations.
    """

    by_epoch = False

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict[str, Any],
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
    ) -> None:
        super(IterBasedTrainLoop, self).__init__(runner, dataloader)  # the parent's own would start the workers
        self._max_iters, self._max_epochs = max_iters, 1
        self._iter = self._epoch = 0
        self.val_begin, self.val_interval = val_begin, val_interval
        self.stop_training = False
        self.dataloader.sampler.infinite = True

    def run(self) -> nn.Module:
        """Train to the last iteration."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        batch_size = self.dataloader.batch_size or self.dataloader.batch_sampler.batch_size
        self.dataloader.sampler.start_at(self._iter * batch_size)
        batches = iter(self.dataloader)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            last = self._iter == self._max_iters
            if self.runner.val_loop and self._iter >= self.val_begin and (self._iter % self.val_interval == 0 or last):
                self.runner.val_loop.run()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model


@LOOPS.register_module()
class EpochLoop(EpochBasedTrainLoop):
    """mmengine's epoch-based training."""

    by_epoch = True


@RUNNERS.register_module()
class DistillRunner(Runner):
    """Runs a training described by a config, alone or over several processes, on GPUs or on a CPU."""

    _has_loaded: bool

    _runs = itertools.count()

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """mmengine's, with a time stamp of its own for each run of a process; logs and scalars are told apart by it."""
        super().setup_env(env_cfg)
        run = next(self._runs)
        self._timestamp += f"_{run}" if run else ""

    def set_randomness(self, seed: int | None, diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        """mmengine's; deterministic mode refuses matrix products on a GPU unless cuBLAS has a fixed workspace."""
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        super().set_randomness(seed, diff_rank_seed, deterministic)

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """The task model or distiller; a nested config is built by the kernel's own registries."""
        from kd_tasks.registry import TASK_MODELS

        return model if isinstance(model, nn.Module) else TASK_MODELS.build(model, "model")

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Move the model to its device; with several processes, wrap it for data-parallel training."""
        model = model.to(get_device())
        if not self.distributed:
            return model
        if self.cfg.get("sync_bn"):
            synchronise_norms(model)
        options = {"broadcast_buffers": False, "find_unused_parameters": getattr(model, "skips_parameters", False)}
        options.update(model_wrapper_cfg or {})
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
        return DistillDataParallel(module=model, device_ids=devices, **options)

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict[str, Any]) -> OptimWrapper:
        """The student's optimiser, and the critics' beside it if there are any."""
        if isinstance(optim_wrapper, Mapping):
            return build_optimisers(self.model, optim_wrapper)
        return super().build_optim_wrapper(optim_wrapper)

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """An `EpochLoop`, or an `IterationLoop` where `by_epoch` is off, unless the config names another."""
        if isinstance(loop, Mapping) and "type" not in loop:
            loop = dict(loop)
            loop["type"] = "EpochLoop" if loop.pop("by_epoch", True) else "IterationLoop"
        return super().build_train_loop(loop)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any], seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """A loader whose workers draw from a generator of its own, so that the global random state stays untouched.

        With a GPU its batches lie in pinned memory, unless the config says otherwise: the preprocessor's copy to the
        device then runs beside the computation.
        """
        if isinstance(dataloader, Mapping):
            dataloader = {"pin_memory": torch.cuda.is_available(), **dataloader}
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        if loader.generator is None:
            loader.generator = torch.Generator().manual_seed(seed or 0)
        drawn = getattr(loader.sampler, "batch_size", None)
        if drawn is not None and loader.batch_size != drawn:
            raise UserError(
                f"batch_size is {loader.batch_size}, but {type(loader.sampler).__name__} draws batches of {drawn}. "
                f"Set batch_size={drawn}."
            )
        return loader

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """mmengine's logger: everything into the file, warnings to the terminal, which shows the progress."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
        return logger

    def register_default_hooks(self, hooks: dict[str, Hook | dict[str, Any] | None] | None = None) -> None:
        """mmengine's hooks with ours in their places; a config may give a hook's arguments without its type."""
        merged: dict[str, Any] = dict(OWN_HOOKS)
        for name, hook in (hooks or {}).items():
            partial = isinstance(hook, Mapping) and "type" not in hook and name in OWN_HOOKS
            merged[name] = {**OWN_HOOKS[name], **hook} if partial else hook  # type: ignore[dict-item]
        for name in [n for n, hook in merged.items() if hook is None and n in OWN_HOOKS]:
            merged.pop(name)
        super().register_default_hooks(merged)

    def train(self) -> nn.Module:
        """Train, and leave the terminal in order whatever happens."""
        try:
            return super().train()
        finally:
            for hook in self.hooks:
                if isinstance(hook, TrainingProgress):
                    hook.close()

    def load_or_resume(self) -> None:
        """Resume from the newest checkpoint of the run folder, or start from `load_from`.

        Raises:
            UserError: if there is nothing to resume from.
        """
        if self._has_loaded:
            return
        if self._resume:
            found = checkpoints.latest_checkpoint(self.work_dir)
            file = found or self._load_from
            if file is None:
                raise UserError(f"--resume: {self.work_dir} holds no checkpoint to resume from. Leave --resume out.")
            self.resume(str(file))
        elif self._load_from is not None:
            checkpoints.load_network(self._bare.network, self._load_from, "load_from")
        self._has_loaded = True

    @master_only
    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict[str, Any] | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict[str, Any] | None = None,
        by_epoch: bool = True,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        """Write everything that a resumed run needs to go on as if it had never stopped."""
        state: dict[str, Any] = {
            "meta": {
                "epoch": self.epoch + int(by_epoch),
                "iter": self.iter + int(not by_epoch),
                "seed": self.seed,
                "config": config_text(self.cfg),
                "time": time.strftime("%Y-%m-%d %H:%M:%S"),
                "kd_tasks": __version__,
                "torch": torch.__version__,
                "dataset": getattr(self.train_dataloader.dataset, "metainfo", {}),
                **(meta or {}),
            },
            "state_dict": self._bare.state_dict(),
            "random_state": capture_random_state(),
        }
        if save_optimizer:
            state["optimizer"] = self.optim_wrapper.state_dict()
        if save_param_scheduler and self.param_schedulers is not None:
            state["param_schedulers"] = _each_scheduler(self.param_schedulers, lambda s: s.state_dict())
        self.call_hook("before_save_checkpoint", checkpoint=state)
        state["message_hub"] = _hub_state(self.message_hub)
        checkpoints.save(state, Path(out_dir) / filename)

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable[..., Any] = "default",
    ) -> None:
        """Take up a run where a checkpoint left it.

        Raises:
            UserError: if the file is no checkpoint of a run, or of another model.
        """
        state = checkpoints.read_checkpoint(filename, "--resume")
        missing = [key for key in RESUMED if key not in state]
        if missing:
            raise UserError(f"--resume: {filename} is no checkpoint of a run; it has no {', '.join(missing)}.")
        try:
            self.call_hook("after_load_checkpoint", checkpoint=state)
            self._bare.load_state_dict(state["state_dict"])
            if resume_optimizer:
                self.optim_wrapper.load_state_dict(state["optimizer"])
            if resume_param_scheduler and self.param_schedulers is not None:
                _restore_schedulers(self.param_schedulers, state.get("param_schedulers"))
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"--resume: {filename} belongs to a run with another model, optimiser or schedule: "
                f"{shortened(error)} Resume with the config of that run, or begin anew in another work_dir."
            ) from error
        self.train_loop._epoch, self.train_loop._iter = state["meta"]["epoch"], state["meta"]["iter"]
        _restore_hub(self.message_hub, state["message_hub"])
        restore_random_state(state["random_state"])
        self.logger.info(f"resumed {filename} at epoch {self.epoch}, iteration {self.iter}")

    @master_only
    def dump_config(self) -> None:
        """Write the whole config into the run folder, as `config.py`."""
        dump_config(self.cfg, Path(self.work_dir) / "config.py")

    def _maybe_compile(self, target: str) -> None:
        """Compile the student's network in place; its state dict and the taps stay as they are."""
        options = self.cfg.get("compile")
        if options:
            self._bare.network.compile(**(options if isinstance(options, Mapping) else {}))

    @property
    def _bare(self) -> Any:
        return getattr(self.model, "module", self.model)


def shortened(error: Exception, length: int = 300) -> str:
    """An error's message on one line, cut off after `length` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= length else f"{text[:length]} …"


def _hub_state(hub: Any) -> dict[str, Any]:
    scalars = {name: h._log_history[-HISTORY:].tolist() for name, h in hub.log_scalars.items()}
    info = {k: v for k, v in hub.runtime_info.items() if isinstance(v, bool | int | float | str)}
    return {"scalars": scalars, "info": info}


def _restore_hub(hub: Any, state: Mapping[str, Any]) -> None:
    for name, values in state["scalars"].items():
        hub.log_scalars[name] = HistoryBuffer(values, [1] * len(values))
    for name, value in state["info"].items():
        hub.update_info(name, value)


def _each_scheduler(schedulers: Any, read: Callable[[Any], Any]) -> Any:
    if isinstance(schedulers, Mapping):
        return {name: [read(s) for s in group] for name, group in schedulers.items()}
    return [read(s) for s in schedulers]


def _restore_schedulers(schedulers: Any, states: Any) -> None:
    groups = schedulers.values() if isinstance(schedulers, Mapping) else [schedulers]
    saved = states.values() if isinstance(states, Mapping) else [states or []]
    for group, group_states in zip(groups, saved, strict=True):
        for scheduler, state in zip(group, group_states, strict=True):
            scheduler.load_state_dict(state)
