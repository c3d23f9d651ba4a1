"""`kd-tasks browse`."""

from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import Config, Options, configured, console


def browse(
    config: Config,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("browse"),
    count: Annotated[int, typer.Option(min=1, help="How many samples.")] = 12,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Show this checkpoint's predictions on the test data instead of training data.")
    ] = None,
    cfg_options: Options = None,
) -> None:
    """Write pictures of the data after the transforms, or of predictions."""
    cfg = configured(config, cfg_options)
    from kd_tasks.report.pictures import browse as browsed

    for file in browsed(cfg, out, count, checkpoint):
        console().print(str(file), highlight=False)
