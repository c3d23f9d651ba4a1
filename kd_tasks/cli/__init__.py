"""The command line: one file a command, each a thin layer over the library.

Modules that are slow to import (torch, mmengine) are imported inside the commands, so that help is instant.
"""

from collections.abc import Callable, Sequence

import typer

from kd_tasks.cli.browse import browse
from kd_tasks.cli.check import check
from kd_tasks.cli.compare import compare
from kd_tasks.cli.data import data
from kd_tasks.cli.demo import demo
from kd_tasks.cli.evaluate import evaluate
from kd_tasks.cli.export import export
from kd_tasks.cli.listing import list_
from kd_tasks.cli.predict import predict
from kd_tasks.cli.score import score
from kd_tasks.cli.shell import Command, Group, root
from kd_tasks.cli.taps import taps
from kd_tasks.cli.test import test
from kd_tasks.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="kd-tasks",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(root)
_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "test": test,
    "export": export,
    "evaluate": evaluate,
    "score": score,
    "compare": compare,
    "taps": taps,
    "check": check,
    "browse": browse,
    "predict": predict,
    "list": list_,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, cls=Command)(_function)
app.add_typer(data, name="data")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with `arguments`, or with those of the process; leaves by `SystemExit`."""
    app(args=None if arguments is None else list(arguments))
