"""`kd-tasks demo`."""

from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import console


def demo(
    task: Annotated[
        str, typer.Argument(metavar="[TASK]", help="A plugin of 'kd-tasks list plugins'.")
    ] = "segmentation",
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of the student alone and distilled, for a mean and a spread.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Where everything is written; work_dirs/demo/TASK if not given.")
    ] = None,
) -> None:
    """The whole job on synthetic data: teacher, student alone, distilled student, export, report card."""
    from kd_tasks.demo import run_demo

    folder = out or Path("work_dirs") / "demo" / task
    try:
        result = run_demo(task, folder, seeds=seeds, first_seed=seed)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it stopped; finished stages are kept") from None
    console().print(result.comparison.table())
    console().print(result.comparison.headline(), highlight=False)
    console().print(f"The report card is {result.card}.", highlight=False)
