"""`kd-tasks evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import console


def evaluate(
    artefact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="An exported .onnx or .pt2 file.")],
    data_root: Annotated[
        Path | None, typer.Option(help="Where the test data lie, if not where the manifest says.")
    ] = None,
) -> None:
    """Measure an exported file: the task's metrics beside the checkpoint's, size, latency, throughput."""
    from kd_tasks.evaluation.deployed import evaluate_artefact

    evaluation = evaluate_artefact(artefact, data_root)
    for table in evaluation.tables():
        console().print(table)
