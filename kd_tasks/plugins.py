"""Task plugins: what one declares, and how the kernel finds them.

A plugin is an installed package with an entry point in the group `kd_tasks.plugins` that names a `Plugin`. The kernel's
own tasks are found in the same way as a third party's.
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from kd_tasks.errors import UserError, nearest

GROUP = "kd_tasks.plugins"


@dataclass(frozen=True)
class Demo:
    """The configs that `kd-tasks demo` runs, by shipped name, and the data set that it writes first.

    Attributes:
        teacher: the teacher; or several, by the names that the distilled students' configs give them.
        alone: the student alone.
        distilled: the distilled student; or several, by a name, of which the first is the one to be deployed.
        twin: the synthetic twin, which the configs read from `datasets/<twin>_twin` or a folder in it.
    """

    teacher: str | Mapping[str, str]
    alone: str
    distilled: str | Mapping[str, str]
    twin: str | None = None

    @property
    def teachers(self) -> dict[str, str]:
        """The teachers' configs by name; a single one is called `teacher`."""
        return {"teacher": self.teacher} if isinstance(self.teacher, str) else dict(self.teacher)

    @property
    def variants(self) -> dict[str, str]:
        """The distilled students' configs by name; a single one is called `distilled`."""
        return {"distilled": self.distilled} if isinstance(self.distilled, str) else dict(self.distilled)


@dataclass(frozen=True)
class Plugin:
    """One task.

    Attributes:
        name: the task's name, as in `task = '…'` of a config and `kd-tasks demo NAME`.
        summary: one line for `kd-tasks list`.
        modules: modules whose import registers networks, criteria, decoders, data sets, metrics.
        configs: folder of the plugin's own configs; None where they lie in the shipped `configs/<name>`.
        twins: `module:function` by twin name; a function `write(root: Path, seed: int = 0)` that writes a
            small synthetic data set in a benchmark's on-disk format; it may take `progress(done, total)`.
        drawing: `module:class` of the task's drawing, see `kd_tasks.vision.drawing.Drawing`.
        demo: what `kd-tasks demo` runs.
        datasets: names of the data-set cards that belong to the task.
        scorers: `module:function` by the name of a format, for `kd-tasks score NAME`; a function
            `score(predictions: Path, annotations: Path, ...)`, with options by name, that evaluates files whoever wrote
            them and gives an `EvaluationResult`.
    """

    name: str
    summary: str
    modules: tuple[str, ...] = ()
    configs: Path | None = None
    twins: Mapping[str, str] = field(default_factory=dict)
    drawing: str | None = None
    demo: Demo | None = None
    datasets: tuple[str, ...] = ()
    scorers: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> None:
        """Import the plugin's modules, so that what they register is known."""
        for module in self.modules:
            importlib.import_module(module)


@functools.cache
def discover() -> tuple[Plugin, ...]:
    """All installed plugins, by name. Importing a plugin's declaration must be cheap; its modules are not imported.

    Raises:
        UserError: if a plugin cannot be imported, or two have the same name.
    """
    found: dict[str, Plugin] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        try:
            plugin = entry.load()
        except Exception as error:
            raise UserError(f"plugin {entry.name!r} ({entry.value}) cannot be imported: {error!r}") from error
        if not isinstance(plugin, Plugin):
            raise UserError(f"plugin {entry.name!r}: {entry.value} is a {type(plugin).__name__}, not a Plugin.")
        if plugin.name in found:
            raise UserError(f"two installed plugins are called {plugin.name!r}; uninstall one of them.")
        found[plugin.name] = plugin
    return tuple(found[name] for name in sorted(found))


def get(name: str) -> Plugin:
    """The plugin called `name`."""
    plugins = {p.name: p for p in discover()}
    if name not in plugins:
        raise UserError(f"no plugin is called {name!r}.{nearest(name, plugins)} Installed: {', '.join(plugins)}.")
    return plugins[name]


@functools.cache
def load_all() -> None:
    """Register what the kernel and every installed plugin bring."""
    for module in KERNEL_MODULES:
        importlib.import_module(module)
    for plugin in discover():
        plugin.load()


def resolve(reference: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def twin(name: str) -> Callable[..., None]:
    """The writer of the synthetic twin called `name`, of whichever plugin has it."""
    writer: Callable[..., None] = _declared("synthetic twin", name, (p.twins for p in discover()))
    return writer


def scorer(name: str) -> Callable[..., Any]:
    """The function that evaluates predictions in the format called `name`, of whichever plugin has it."""
    function: Callable[..., Any] = _declared("format of predictions", name, (p.scorers for p in discover()))
    return function


def _declared(kind: str, name: str, declared: Iterable[Mapping[str, str]]) -> Any:
    references = {key: reference for mapping in declared for key, reference in mapping.items()}
    if name not in references:
        known = ", ".join(references)
        raise UserError(f"there is no {kind} {name!r}.{nearest(name, references)} There are: {known}.")
    return resolve(references[name])


KERNEL_MODULES = (
    "kd_tasks.registry",
    "kd_tasks.task",
    "kd_tasks.connectors",
    "kd_tasks.vision.heatmaps",
    "kd_tasks.distiller",
    "kd_tasks.methods.adaptive_aggregation",
    "kd_tasks.methods.teacher_supervises",
    "kd_tasks.engine.runner",
    "kd_tasks.engine.samplers",
)
