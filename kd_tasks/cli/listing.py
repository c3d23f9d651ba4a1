"""`kd-tasks list`."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from kd_tasks.cli.shell import console


class Listed(StrEnum):
    """What can be listed."""

    plugins = "plugins"
    losses = "losses"
    methods = "methods"
    configs = "configs"
    datasets = "datasets"


def list_(
    what: Annotated[Listed | None, typer.Argument(metavar="[plugins|losses|methods|configs|datasets]")] = None,
) -> None:
    """List plugins, losses, methods, configs and data sets; all of them if none is named."""
    from kd_tasks.catalogue import catalogue

    for kind in [what] if what else list(Listed):
        entries = catalogue(kind.value)
        table = Table(title=f"{kind.value} ({len(entries)})", title_justify="left", show_header=False, box=None)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, summary in entries:
            table.add_row(name, summary)
        console().print(table)
