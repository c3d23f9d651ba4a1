"""`kd-tasks train`."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import Config, Options, configured, console


class Precision(StrEnum):
    """Number formats of mixed precision."""

    bf16 = "bf16"
    fp16 = "fp16"


class Launcher(StrEnum):
    """How the processes of a run on several devices were started."""

    none = "none"
    pytorch = "pytorch"


def train(
    config: Config,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint of the work dir.")] = False,
    amp: Annotated[Precision | None, typer.Option("--amp", help="Mixed precision; bf16 if no format is given.")] = None,
    launcher: Annotated[Launcher, typer.Option(help="'pytorch' under torchrun.")] = Launcher.none,
    work_dir: Annotated[Path | None, typer.Option(help="Where the run is written.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the config's randomness.seed.")] = None,
    cfg_options: Options = None,
) -> None:
    """Train or distil what CONFIG describes."""
    cfg = configured(config, cfg_options, work_dir=work_dir, seed=seed)
    from mmengine.dist import is_main_process

    from kd_tasks.engine.checkpoints import latest_checkpoint
    from kd_tasks.engine.train import train as run

    try:
        folder = run(cfg, resume=resume, amp=amp.value if amp else None, launcher=launcher.value)
    except KeyboardInterrupt:
        if latest_checkpoint(cfg.work_dir) is None:
            raise KeyboardInterrupt("no checkpoint was written yet; the same command begins anew") from None
        options = ["--work-dir", str(work_dir)] if work_dir else []
        options += ["--seed", str(seed)] if seed is not None else []
        options += ["--amp", amp.value] if amp else []
        options += ["--cfg-options", *cfg_options] if cfg_options else []
        again = shlex.join(["kd-tasks", "train", config, "--resume", *options])
        raise KeyboardInterrupt(f"go on from the latest checkpoint with: {again}") from None
    if is_main_process():
        console().print(f"The run is in {folder}; its student.pth is what 'kd-tasks export' takes.", highlight=False)
