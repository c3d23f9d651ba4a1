"""Where configs, data-set cards and data lie, in a checkout and in an installed wheel."""

import importlib.util
import os
from pathlib import Path

from kd_tasks.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """The shipped folder `configs` or `datasets`: beside the package in a checkout, inside it in a wheel."""
    inside, beside = PACKAGE / folder, PACKAGE.parent / folder
    return inside if inside.is_dir() else beside


def package_configs(package: str) -> Path:
    """The config folder of a package, as `package::file.py` in a `_base_` means it."""
    if package == "kd_tasks":
        return shipped("configs")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{package!r} is not an installed package, so '{package}::…' names no config.")
    return Path(spec.origin).parent / "configs"


def config_folders() -> dict[str, Path]:
    """Every folder of shipped configs, by package: the kernel's and each plugin's own."""
    from kd_tasks.plugins import discover

    folders = {"kd_tasks": shipped("configs")}
    folders.update({p.name: p.configs for p in discover() if p.configs is not None and p.configs.is_dir()})
    return folders


def config_names() -> list[str]:
    """Names of all shipped configs, such as `segmentation/skd_r101_r18_cityscapes`, bases left out."""
    names: set[str] = set()
    for folder in config_folders().values():
        files = (f.relative_to(folder).with_suffix("") for f in folder.rglob("*.py"))
        names.update(f.as_posix() for f in files if not any(part.startswith("_") for part in f.parts))
    return sorted(names)


def find_config(name: str | Path) -> Path:
    """The file that `name` means: a path, or the name of a shipped config with or without `.py`.

    Raises:
        UserError: if neither exists; names the nearest shipped config.
    """
    path = Path(name)
    if path.is_file():
        return path
    relative = str(name).removesuffix(".py") + ".py"
    for folder in config_folders().values():
        if (folder / relative).is_file():
            return folder / relative
    raise UserError(
        f"{name}: no such config file, and no shipped config of that name.{nearest(str(name), config_names())} "
        "'kd-tasks list configs' shows all."
    )


def data_root(path: str | Path) -> Path:
    """Where the data named `path` lie: there, or in the folder that the environment variable `KD_TASKS_DATA` names.

    That folder takes the place of `datasets`, the default data root: `datasets/camvid` is then `$KD_TASKS_DATA/camvid`.
    """
    path = Path(path)
    elsewhere = os.environ.get("KD_TASKS_DATA")
    if path.is_absolute() or path.exists() or elsewhere is None:
        return path
    return Path(elsewhere) / (path.relative_to("datasets") if path.parts[:1] == ("datasets",) else path)
