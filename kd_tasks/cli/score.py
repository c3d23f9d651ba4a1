"""`kd-tasks score`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import console


def score(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="One of 'kd-tasks list datasets' that scores predictions.")
    ],
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="The file or folder of predictions.")],
    annotations: Annotated[
        Path, typer.Argument(metavar="ANNOTATIONS", help="The data set's folder, or its file or folder of labels.")
    ],
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--options", metavar="KEY=VALUE ...", help="Of the scorer, such as iou=0.3; a wrong one lists all."
        ),
    ] = None,
) -> None:
    """Evaluate predictions that lie in files of a benchmark's own format, whoever wrote them."""
    from kd_tasks.engine.config import parse_options
    from kd_tasks.evaluation.scoring import score_predictions
    from kd_tasks.evaluation.testing import result_tables

    result = score_predictions(name, predictions, annotations, parse_options(options or []))
    for table in result_tables(replace(result, note="")):
        console().print(table)
    if result.note:
        console().print(result.note, markup=False, highlight=False)
