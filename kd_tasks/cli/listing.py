"""`kd-tasks list`."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from kd_tasks.cli.shell import console
from kd_tasks.errors import UserError


class Listed(StrEnum):
    """What can be listed."""

    plugins = "plugins"
    losses = "losses"
    methods = "methods"
    configs = "configs"
    datasets = "datasets"


def list_(
    what: Annotated[Listed | None, typer.Argument(metavar="[plugins|losses|methods|configs|datasets]")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Of losses: the page with their formulas.")] = False,
) -> None:
    """List plugins, losses, methods, configs and data sets; all of them if none is named."""
    from kd_tasks.catalogue import COLUMNS, catalogue, losses_page

    if markdown:
        if what is not Listed.losses:
            raise UserError("--markdown writes the page of the losses: kd-tasks list losses --markdown.")
        typer.echo(losses_page(), nl=False)
        return
    for kind in [what] if what else list(Listed):
        entries, columns = catalogue(kind.value), COLUMNS.get(kind.value)
        table = Table(title=f"{kind.value} ({len(entries)})", title_justify="left", show_header=bool(columns), box=None)
        table.add_column("name", style="bold", no_wrap=True)
        for column in (columns or ("name", ""))[1:]:
            table.add_column(column, no_wrap=column in ("family", "year"))
        for entry in entries:
            table.add_row(*entry)
        console().print(table)
