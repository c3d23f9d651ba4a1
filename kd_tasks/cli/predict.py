"""`kd-tasks predict`."""

from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import console


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An exported .onnx or .pt2 file, a run folder, or a checkpoint.")
    ],
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="An image, or a folder of images or frames.")],
    out: Annotated[Path, typer.Option(help="The folder for the drawn pictures.")] = Path("predictions"),
    config: Annotated[
        str | None, typer.Option(help="The config of a checkpoint, if it does not lie in its run folder.")
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="Also write the pictures as one predictions.mp4.")] = False,
    fps: Annotated[float, typer.Option(help="Pictures a second of the video.")] = 10.0,
) -> None:
    """Draw what MODEL predicts for pictures of one's own."""
    from kd_tasks.report.predict import predict as drawn

    written = drawn(model, pictures, out, config, video, fps)
    console().print(f"{len(written.files)} drawn pictures are in {out}.", highlight=False)
    if written.video is not None:
        console().print(f"The video is {written.video}.", highlight=False)
