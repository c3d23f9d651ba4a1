"""Synthetic twins, written to disk with a bar on the terminal."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kd_tasks import plugins
from kd_tasks.engine.progress import counting
from kd_tasks.errors import UserError
from kd_tasks.vision.cards import TWIN_FILE
from kd_tasks.vision.images import write_bytes


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


def claim(root: Path, description: Mapping[str, Any]) -> None:
    """Mark the folder `root` as the twin's of this description: its name, version, seed, size and counts.

    Raises:
        UserError: if the folder holds anything but this twin.
    """
    mark = root / TWIN_FILE
    if mark.is_file():
        there = yaml.safe_load(mark.read_text(encoding="utf-8"))
        if there != description:
            raise UserError(f"{root}: holds another synthetic twin: {there}. Remove the folder or choose another.")
        return
    if root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root}: is not empty, and what it holds is no synthetic twin. Choose another folder.")
    write_bytes(mark, yaml.safe_dump(description, sort_keys=False).encode())
