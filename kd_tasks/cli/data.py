"""`kd-tasks data check` and `kd-tasks data synth`."""

from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import Command, console

FAULTS_FOUND = 1

data = typer.Typer(help="Hold a data set against its card, or write a synthetic twin.", no_args_is_help=True)


@data.command("check", cls=Command)
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set of 'kd-tasks list datasets'.")],
    root: Annotated[
        Path | None, typer.Argument(metavar="[ROOT]", help="Its folder; datasets/NAME if not given.")
    ] = None,
) -> None:
    """Hold a data set on disk against its card: layout, splits, counts, files, labels."""
    from kd_tasks.engine.progress import counting
    from kd_tasks.vision.cards import check_dataset, read_card

    read_card(name)
    with counting() as progress:
        report = check_dataset(name, root or Path("datasets") / name, progress)
    for line in report.lines():
        console().print(line, markup=False, highlight=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(FAULTS_FOUND)


@data.command("synth", cls=Command)
def synth(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A twin of 'kd-tasks list datasets'.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The folder to write; it is made.")],
    seed: Annotated[int, typer.Option(help="Another seed gives other pictures.")] = 0,
) -> None:
    """Write a small synthetic data set in a benchmark's on-disk format."""
    from kd_tasks.vision.twins import write_twin

    write_twin(name, root, seed)
    console().print(f"The synthetic twin of {name} is in {root}.", highlight=False, soft_wrap=True)
