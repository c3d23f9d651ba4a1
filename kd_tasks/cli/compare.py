"""`kd-tasks compare`."""

from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import console


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders and exported files.")],
    out: Annotated[Path | None, typer.Option(help="A folder for comparison.json and the report card.")] = None,
) -> None:
    """Set teacher, student alone, distilled student and exported files side by side."""
    from kd_tasks.evaluation.compare import compare as compared
    from kd_tasks.report.card import write_card

    comparison = compared(runs)
    console().print(comparison.table())
    console().print(comparison.headline(), highlight=False)
    for note in comparison.notes:
        console().print(f"Note: {note}", highlight=False)
    if out is not None:
        comparison.save(out / "comparison.json")
        card = write_card(comparison, out / "report.html")
        console().print(f"The report card is {card}.", highlight=False)
