"""Named kinds of building blocks, on top of mmengine's root registries.

Everything is registered in mmengine's own registries, without scopes, so that configs read as mmengine users expect.
`MODELS` holds several kinds side by side, and a `Kind` keeps them apart: a loss cannot stand where a network belongs,
and an unknown name gets an error with the nearest name *of that kind*.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, Registry

from kd_tasks import losses
from kd_tasks.errors import UserError, nearest

C = TypeVar("C", bound=type)


class Kind:
    """One kind of building block.

    Args:
        name: what a person calls it, such as `loss`.
        registry: the mmengine root registry that holds the classes.
        nested: whether parts within a config are built before the whole; otherwise the class builds its parts itself.
    """

    def __init__(self, name: str, registry: Registry, nested: bool = True) -> None:
        self.name = name
        self.registry = registry
        self.nested = nested
        self._classes: dict[str, type] = {}

    def register(self, cls: C) -> C:
        """Class decorator: make `cls` known under its own name. The same class may be registered again."""
        known = self._classes.get(cls.__name__)
        if known is cls:
            return cls
        self.registry.register_module(name=cls.__name__, module=cls)
        self._classes[cls.__name__] = cls
        return cls

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def get(self, name: str | type, where: str = "") -> type:
        """The class called `name`: a registered one, or any by its dotted name; a class stands for itself.

        Raises:
            UserError: if there is none; names the config path `where` and the nearest known name.
        """
        if not isinstance(name, str):
            return name
        if name in self._classes:
            return self._classes[name]
        at = f"{where}: " if where else ""
        if "." in name:
            return import_type(name, at)
        raise UserError(f"{at}{name!r} is not a known {self.name}.{nearest(name, self)} Known: {', '.join(self)}.")

    def build(self, cfg: Mapping[str, Any], where: str = "") -> Any:
        """Build the object that `cfg` describes; nested dicts with a `type` of any kind are built first.

        Raises:
            UserError: for an unknown `type`, or an argument that the class does not take or refuses.
        """
        arguments = dict(cfg)
        if self.nested:
            arguments = {key: build_nested(value, f"{where}.{key}") for key, value in arguments.items()}
        if "type" not in arguments:
            raise UserError(f"{where or self.name}: a {self.name} needs a 'type'.")
        cls = self.get(arguments.pop("type"), where)
        return construct(cls, arguments, where or self.name)


NETWORKS = Kind("network", MODELS)
CRITERIA = Kind("criterion", MODELS)
DECODERS = Kind("decoder", MODELS)
PREPROCESSORS = Kind("preprocessor", MODELS)
LOSSES = Kind("loss", MODELS)
CRITICS = Kind("critic", MODELS)
CONNECTORS = Kind("connector", MODELS)
CODECS = Kind("codec", MODELS)
TASK_MODELS = Kind("task model", MODELS, nested=False)

MODEL_KINDS = (NETWORKS, CRITERIA, DECODERS, PREPROCESSORS, LOSSES, CRITICS, CONNECTORS, CODECS, TASK_MODELS)

__all__ = [
    "CODECS",
    "CONNECTORS",
    "CRITERIA",
    "CRITICS",
    "DATASETS",
    "DECODERS",
    "HOOKS",
    "LOSSES",
    "METRICS",
    "MODEL_KINDS",
    "NETWORKS",
    "PREPROCESSORS",
    "TASK_MODELS",
    "Kind",
    "build_nested",
    "construct",
    "import_type",
    "kind_of",
]


def import_type(name: str, at: str = "") -> Any:
    """The object with the dotted name `name`, such as `package.module.Class`.

    Raises:
        UserError: if it cannot be imported; the message begins with `at`.
    """
    module, _, attribute = name.rpartition(".")
    try:
        members = vars(importlib.import_module(module))
    except Exception as error:
        raise UserError(f"{at}{name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if attribute not in members:
        raise UserError(f"{at}{name!r} cannot be imported: {module} has no {attribute!r}.{nearest(attribute, members)}")
    return members[attribute]


def kind_of(name: str) -> Kind | None:
    """The kind under which `name` is registered, if any."""
    return next((kind for kind in MODEL_KINDS if name in kind), None)


def build_nested(value: Any, where: str = "") -> Any:
    """Build `value` if it is a dict with the `type` of a registered building block; return anything else as it is."""
    if not isinstance(value, Mapping) or "type" not in value or not isinstance(value["type"], str):
        return value
    kind = kind_of(value["type"])
    return kind.build(value, where) if kind else value


def construct(cls: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:
    """Call `cls(**arguments)`.

    Raises:
        UserError: for arguments that `cls` does not take, that are missing, or whose values it refuses.
    """
    signature = inspect.signature(cls)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        name = getattr(cls, "__name__", str(cls))
        takes = ", ".join(signature.parameters) or "no arguments"
        unknown = next((key for key in arguments if key not in signature.parameters), "")
        hint = nearest(unknown, signature.parameters) if unknown else ""
        raise UserError(f"{where}: {name}: {error}.{hint} It takes: {takes}.") from None
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error


for _name in losses.__all__:
    _member = getattr(losses, _name)
    if isinstance(_member, type) and issubclass(_member, losses.Loss) and not inspect.isabstract(_member):
        LOSSES.register(_member)
