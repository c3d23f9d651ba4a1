"""`kd-tasks export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import Checkpoint, Config, Options, configured, console


class Format(StrEnum):
    """File formats of an artefact."""

    onnx = "onnx"
    pt2 = "pt2"


def export(
    config: Config,
    checkpoint: Checkpoint,
    format_: Annotated[Format, typer.Option("--format", help="The format of the file.")] = Format.onnx,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write an int8 ONNX file, calibrated on training images.")
    ] = False,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Input size; that of the test data if not given."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; beside the checkpoint if not given.")] = None,
    cfg_options: Options = None,
) -> None:
    """Write the student of CHECKPOINT as a file to deploy, with its manifest."""
    cfg = configured(config, cfg_options)
    from kd_tasks.evaluation.deployed import export_checkpoint

    for artefact in export_checkpoint(cfg, Path(checkpoint), format_.value, int8=int8, size=size, out=out):
        console().print(f"{artefact}  ({artefact.stat().st_size / 2**20:.2f} MiB)", highlight=False)
