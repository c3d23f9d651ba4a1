"""`kd-tasks test`."""

from pathlib import Path
from typing import Annotated

import typer

from kd_tasks.cli.shell import Checkpoint, Config, Options, configured, console


def test(
    config: Config,
    checkpoint: Checkpoint,
    out: Annotated[Path | None, typer.Option(help="A folder for the predictions and metrics.json.")] = None,
    cfg_options: Options = None,
) -> None:
    """Measure CHECKPOINT on the test data of CONFIG."""
    cfg = configured(config, cfg_options)
    from kd_tasks.evaluation.testing import result_tables, test_checkpoint

    result = test_checkpoint(cfg, Path(checkpoint), out)
    for table in result_tables(result):
        console().print(table)
    if out is not None:
        console().print(f"Predictions and metrics.json are in {out}.", highlight=False)
