"""Synthetic twins, written to disk with a bar on the terminal."""

import inspect
from pathlib import Path

from kd_tasks import plugins
from kd_tasks.engine.progress import counting


def write_twin(name: str, root: Path, seed: int = 0) -> None:
    """Write the twin called `name`, of whichever plugin has it, into `root`.

    Raises:
        UserError: if there is no such twin, or `root` holds something else.
    """
    write = plugins.twin(name)
    if "progress" not in inspect.signature(write).parameters:
        write(root, seed=seed)
        return
    with counting() as report:
        write(root, seed=seed, progress=lambda done, total: report(f"Writing {name}", done, total))
