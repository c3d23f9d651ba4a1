"""`python -m tests.benchmarks [NAME...]`: run the benchmarks and print their ratios; writes nothing."""

import importlib
import pkgutil
import sys

import torch
from rich.console import Console
from rich.table import Table

from tests import benchmarks

WIDTH = 140  # of the table where the output is no terminal


def main(names: list[str]) -> int:
    """Run the named benchmark modules, or all; 1 if a promised ratio is not kept."""
    torch.set_num_threads(1)
    found = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name != "__main__"]
    modules = [importlib.import_module(f"{benchmarks.__name__}.{name}") for name in names or found]
    rows = [row for module in modules if hasattr(module, "run") for row in module.run()]
    console = Console()
    console.width = console.width if console.is_terminal else WIDTH
    console.print(table(rows))
    return 0 if all(row.kept for row in rows) else 1


def table(rows: list[benchmarks.Row]) -> Table:
    """One line a comparison."""
    result = Table(title="ours / by hand", title_justify="left")
    result.add_column("what")
    for column in ("fastest", "median", "promised", "ours", "by hand"):
        result.add_column(column, justify="right")
    for row in rows:
        promised = "-" if row.limit is None else f"{row.limit:.3f}"
        ratio = f"{row.ratio:.3f}" if row.kept else f"[bold red]{row.ratio:.3f}"
        values = (shown(min(row.ours), row.unit), shown(min(row.reference), row.unit))
        result.add_row(row.name, ratio, f"{row.median_ratio:.3f}", promised, *values)
    return result


def shown(value: float, unit: str) -> str:
    """A value with its unit, at a length that fits a table."""
    if unit == "B":
        return f"{value / 2**20:.2f} MiB"
    return f"{value:.4f} {unit}" if unit else f"{value:.1e}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
