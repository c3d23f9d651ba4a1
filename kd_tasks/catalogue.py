"""What is installed: plugins, losses, methods, configs and data sets, each with one line about it."""

import ast
import importlib
import inspect
import pkgutil

from kd_tasks.errors import UserError, nearest
from kd_tasks.paths import config_names, find_config, shipped
from kd_tasks.plugins import discover

KINDS = ("plugins", "losses", "methods", "configs", "datasets")
Entries = list[tuple[str, str]]


def catalogue(kind: str) -> Entries:
    """`(name, one line about it)` of everything of `kind`, by name. Only `losses` and `methods` import torch.

    Args:
        kind: one of `KINDS`.

    Raises:
        UserError: for another kind.
    """
    listings = {
        "plugins": _plugins,
        "losses": _losses,
        "methods": _methods,
        "configs": _configs,
        "datasets": _datasets,
    }
    if kind not in listings:
        raise UserError(f"{kind!r} cannot be listed.{nearest(kind, KINDS)} Lists: {', '.join(KINDS)}.")
    return sorted(listings[kind]())


def first_line(text: str | None) -> str:
    """The first line of a docstring, without the quotes and the full stop."""
    return next(iter((text or "").strip().splitlines()), "").strip().rstrip(".")


def _plugins() -> Entries:
    return [(plugin.name, plugin.summary) for plugin in discover()]


def _losses() -> Entries:
    from kd_tasks.plugins import load_all
    from kd_tasks.registry import LOSSES

    load_all()
    return [(name, _loss_summary(LOSSES.get(name))) for name in LOSSES]


def _loss_summary(cls: type) -> str:
    paper, year = getattr(cls, "paper", ""), str(getattr(cls, "year", 0) or "")
    paper = paper if year in paper else f"{paper} {year}".strip()
    reads = getattr(cls, "taps", "")
    facts = "; ".join(filter(None, (paper, f"on {reads}" if reads else "")))
    return first_line(inspect.getdoc(cls)) + (f" [{facts}]" if facts else "")


def _methods() -> Entries:
    package = importlib.import_module("kd_tasks.methods")
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    return [(name, first_line(importlib.import_module(f"kd_tasks.methods.{name}").__doc__)) for name in names]


def _configs() -> Entries:
    return [(name, _config_summary(name)) for name in config_names()]


def _config_summary(name: str) -> str:
    """The first line of the config's docstring, or the comment that it begins with."""
    text = find_config(name).read_text(encoding="utf-8")
    comment = text.splitlines()[0].removeprefix("#") if text.startswith("#") else ""
    return first_line(ast.get_docstring(ast.parse(text)) or comment)


def _datasets() -> Entries:
    twins = {name for plugin in discover() for name in plugin.twins}
    owners = {name: plugin.name for plugin in discover() for name in plugin.datasets}
    return [(name, _dataset_summary(name, owner, name in twins)) for name, owner in owners.items()]


def _dataset_summary(name: str, owner: str, has_twin: bool) -> str:
    card = shipped("datasets") / f"{name}.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    title = next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")
    return ", ".join(filter(None, (title, owner, "has a synthetic twin" if has_twin else "")))
