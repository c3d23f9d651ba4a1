"""What is installed: plugins, losses, methods, configs and data sets, each with one line about it."""

import ast
import importlib
import inspect
import pkgutil
from inspect import signature
from typing import Any

from kd_tasks.errors import UserError, nearest
from kd_tasks.paths import config_names, find_config, shipped
from kd_tasks.plugins import discover

KINDS = ("plugins", "losses", "methods", "configs", "datasets")
COLUMNS = {"losses": ("name", "family", "taps", "paper", "year")}
FAMILIES = ("logits", "features", "relations", "transformers", "adversarial", "regression", "data_free")
Entries = list[tuple[str, ...]]


def catalogue(kind: str) -> Entries:
    """Everything of `kind`: `(name, one line about it)` by name; losses by family, as `COLUMNS` says.

    Only `losses` and `methods` import torch.

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
    return listings[kind]() if kind in COLUMNS else sorted(listings[kind]())


def first_line(text: str | None) -> str:
    """The first line of a docstring, without the quotes and the full stop."""
    return next(iter((text or "").strip().splitlines()), "").strip().rstrip(".")


def _plugins() -> Entries:
    return [(plugin.name, plugin.summary) for plugin in discover()]


def _losses() -> Entries:
    from kd_tasks.plugins import load_all
    from kd_tasks.registry import LOSSES

    load_all()
    entries = [(name, *_loss_facts(LOSSES.get(name))) for name in LOSSES]
    return sorted(entries, key=lambda e: (FAMILIES.index(e[1]) if e[1] in FAMILIES else len(FAMILIES), e[1], e[0]))


def _loss_facts(cls: Any) -> tuple[str, str, str, str]:
    year = str(getattr(cls, "year", 0) or "")
    paper = getattr(cls, "paper", "") or first_line(inspect.getdoc(cls))
    return family(cls), getattr(cls, "taps", ""), paper.removesuffix(year).rstrip(", "), year


def family(cls: type) -> str:
    """The family of a loss: its module in the kernel, or the plugin that it belongs to."""
    package, _, module = cls.__module__.rpartition(".")
    return module if package == "kd_tasks.losses" else package or module


def losses_page() -> str:
    """The page of the kernel's losses, in Markdown: of each its formula, usual weight, typical tap and paper."""
    from kd_tasks import losses

    classes = [getattr(losses, name) for name in losses.__all__]
    shown = [c for c in classes if isinstance(c, type) and issubclass(c, losses.Loss) and not inspect.isabstract(c)]
    parts = [PAGE_HEAD]
    for name in FAMILIES:
        members = sorted((c for c in shown if family(c) == name), key=lambda c: c.__name__)
        parts += [f"## {name}", *(_loss_entry(c) for c in members)]
    return "\n\n".join(parts) + "\n"


def _loss_entry(cls: Any) -> str:
    summary, formula = [" ".join(p.split()) for p in (inspect.getdoc(cls) or "").split("\n\n")][:2]
    gathers = ", joins the batches of all ranks with `gather=True`" if "gather" in signature(cls).parameters else ""
    return "\n".join(
        [
            f"### {cls.__name__}",
            "",
            summary,
            "",
            formula,
            "",
            f"- Reads {cls.taps}, typically `{cls.usual_tap}`; usual weight {cls.usual_weight:g}{gathers}.",
            f"- {cls.paper}",
        ]
    )


PAGE_HEAD = """# The losses

One family a file, one class a loss. Written by `kd-tasks list losses --markdown`; edit the docstrings, not this page.

A loss is named in a transfer by its class: `loss=dict(type='SoftTargets', temperature=4.0)`. The usual weight is the
transfer's, at the default settings; it is where to start, not a law. What a loss does otherwise than its paper stands
in the docstring under *Deviations*."""


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
    scored = {name for plugin in discover() for name in plugin.scorers}
    return [(name, _dataset_summary(name, owner, name in twins, name in scored)) for name, owner in owners.items()]


def _dataset_summary(name: str, owner: str, has_twin: bool, is_scored: bool) -> str:
    card = shipped("datasets") / f"{name}.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    title = next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")
    remarks = ("has a synthetic twin" if has_twin else "", "scores predictions" if is_scored else "")
    return ", ".join(filter(None, (title, owner, *remarks)))
