"""`kd-tasks check`."""

from typing import Annotated

import typer

from kd_tasks.cli.shell import Config, Options, configured, console


def check(
    config: Config,
    batches: Annotated[int, typer.Option(min=1, help="How many batches the teacher is measured on.")] = 4,
    cfg_options: Options = None,
) -> None:
    """Pre-flight: config, data, shapes, the teacher's accuracy, value and gradient norm of each transfer."""
    cfg = configured(config, cfg_options)
    from kd_tasks.evaluation.preflight import preflight

    findings = preflight(cfg, batches)
    for table in findings.tables():
        console().print(table)
    for warning in findings.warnings:
        console().print(f"Look at this: {warning}", highlight=False)
    if not findings.warnings:
        console().print("Ready to train.", highlight=False)
