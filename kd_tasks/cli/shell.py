"""What all commands share: errors as one message, interruption, options in mmengine's style, output."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from kd_tasks import __version__
from kd_tasks.errors import UserError

OK, USER_ERROR, INTERRUPTED = 0, 2, 130
REPEATED = ("--cfg-options", "--options")

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A config file, or the name of a shipped config.")]
Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A student.pth or a checkpoint of a run.")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--cfg-options", metavar="KEY=VALUE ...", help="Change keys of the config, such as train_cfg.max_epochs=3."
    ),
]


class Group(TyperGroup):
    """The root command: tells a person's errors apart from the program's."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a `UserError` becomes one message and exit code 2, an interruption exit code 130."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            if ctx.params.get("debug"):
                raise
            _complain("Error", str(error))
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt as interruption:
            if ctx.params.get("debug"):
                raise
            _complain("Stopped", str(interruption))
            raise typer.Exit(INTERRUPTED) from None


class Command(TyperCommand):
    """A command whose options may be written as mmengine users write them.

    `--cfg-options a=1 b=2` takes several values, as `--options` does, and `--amp` may stand alone.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite `args` to options with one value each, then parse them."""
        return super().parse_args(ctx, one_value_each(args))


def one_value_each(arguments: Sequence[str]) -> list[str]:
    """`--cfg-options a=1 b=2 --amp` as `--cfg-options a=1 --cfg-options b=2 --amp bf16`."""
    rewritten: list[str] = []
    repeated = ""
    for place, argument in enumerate(arguments):
        repeated = repeated if "=" in argument and not argument.startswith("-") else ""
        if repeated and rewritten[-1] != repeated:
            rewritten.append(repeated)
        rewritten.append(argument)
        if argument in REPEATED:
            repeated = argument
        if argument == "--amp" and [*arguments, ""][place + 1] not in ("bf16", "fp16"):
            rewritten.append("bf16")
    return rewritten


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kd-tasks {__version__}")
        raise typer.Exit(OK)


def root(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="KD_TASKS_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Distil a large vision model into a small one, and evaluate the file that is deployed."""


def configured(name: str, options: Sequence[str] | None = None, **instead: Any) -> Any:
    """The config called `name` with `--cfg-options` and what other options (`work_dir`, `seed`) say instead."""
    from kd_tasks.engine.config import load_config, parse_options

    changed = parse_options(options or [])
    if instead.get("work_dir") is not None:
        changed["work_dir"] = str(instead["work_dir"])
    if instead.get("seed") is not None:
        changed["randomness.seed"] = instead["seed"]
    cfg = load_config(name, changed)
    if not cfg.get("work_dir"):
        cfg.work_dir = f"work_dirs/{Path(name).stem}"
    return cfg


def console() -> Console:
    """Where results are printed; 100 columns wide where the output is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=100, soft_wrap=False)


def _complain(kind: str, message: str) -> None:
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    errors.print(f"{kind}:" if message else f"{kind}.", style="bold red", end=" " if message else "\n")
    if message:
        errors.print(message, markup=False)
