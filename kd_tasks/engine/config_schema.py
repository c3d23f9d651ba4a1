"""What a place of a config may hold: the parts of which `config_check` makes its tables.

A *place* is whatever stands at one path of a config. Each class here describes a sort of place and reports what is
wrong with the value that stands there; nothing is built, and what an argument is called is read off the signature of
the class that takes it.
"""

import ast
import functools
import inspect
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from mmengine.registry import Registry
from torch import Tensor, nn

from kd_tasks import plugins
from kd_tasks.errors import UserError, nearest
from kd_tasks.registry import Kind, import_type, kind_of


class Report:
    """The faults found so far.

    Attributes:
        faults: one text a fault, each beginning with its path.
        declared: paths of the dicts whose keys were all held against what reads them.
        chosen: paths of the dicts whose keys are names that the config chooses.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.declared: set[str] = set()
        self.chosen: set[str] = set()

    def add(self, path: str, what: str) -> None:
        """Note a fault at `path`; the same fault is noted once."""
        self.quote(f"{path}: {what}" if path else what)

    def quote(self, fault: str) -> None:
        """Note a fault whose text begins with its path already."""
        if fault not in self.faults:
            self.faults.append(fault)

    def below(self, path: str) -> bool:
        """Whether a fault was found at `path` or inside it."""
        return any(fault.startswith((f"{path}:", f"{path}.")) for fault in self.faults)


class Place(Protocol):
    """What may stand at one path."""

    def check(self, value: Any, path: str, report: Report) -> None:
        """Report what is wrong with `value`."""


Places = Mapping[str, "Place | None"]


def inside(path: str, key: object) -> str:
    """The path of `key` inside `path`."""
    return f"{path}.{key}" if path else str(key)


def a(noun: str) -> str:
    """`noun` with its article."""
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def check_places(values: Mapping[str, Any], places: Places, path: str, report: Report) -> None:
    """Check each value whose key has a place of its own."""
    for key, value in values.items():
        place = places.get(key)
        if place is not None:
            place.check(value, inside(path, key), report)


# --- Signatures ------------------------------------------------------------------------------------------------------


class Arguments(NamedTuple):
    """What a class or function takes by name."""

    required: Mapping[str, bool]
    """Each name, with whether it must be given."""
    open: bool
    """Whether it takes any further name."""

    def without(self, names: Iterable[str]) -> "Arguments":
        """The same with the arguments that somebody else fills in taken out."""
        gone = set(names)
        return Arguments({name: must for name, must in self.required.items() if name not in gone}, self.open)


@functools.cache
def arguments_of(target: Callable[..., Any]) -> Arguments:
    """What `target` takes by name.

    Where a class hands its `**kwargs` on to `super().__init__`, the arguments of that class are added, less those that
    it fills in itself.
    """
    if not inspect.isclass(target):
        return _of_callable(target)
    found: dict[str, bool] = {}
    filled: set[str] = set()
    places = 0
    for base in target.__mro__:
        if base in (object, nn.Module):
            return Arguments(found, False)
        init = base.__dict__.get("__init__")
        if init is None:
            continue
        parameters = _parameters(init)
        if parameters is None:
            return Arguments(found, True)
        named = [p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        filled.update(p.name for p in named[:places])
        for parameter in named:
            if parameter.name not in filled:
                found.setdefault(parameter.name, parameter.default is parameter.empty)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return Arguments(found, False)
        handed = _handed_on(init)
        if handed is None:
            return Arguments(found, True)
        places, names = handed
        filled |= set(names) - found.keys()
    return Arguments(found, True)


def _of_callable(target: Callable[..., Any]) -> Arguments:
    parameters = _parameters(target)
    if parameters is None:
        return Arguments({}, True)
    named = {p.name: p.default is p.empty for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return Arguments(named, any(p.kind is p.VAR_KEYWORD for p in parameters))


@functools.cache
def numbers_of(target: Callable[..., Any]) -> frozenset[str]:
    """The arguments of `target`'s own signature that are annotated as numbers and never as text."""
    try:
        parameters = inspect.signature(target, eval_str=True).parameters.values()
    except (ValueError, TypeError, NameError, AttributeError):
        return frozenset()
    return frozenset(p.name for p in parameters if _is_number(p.annotation))


def _is_number(annotation: Any) -> bool:
    kinds = set(typing.get_args(annotation) or (annotation,))
    return bool(kinds & {int, float}) and kinds <= {int, float, bool, Tensor, type(None)}


def _parameters(target: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(target).parameters.values())
    except (ValueError, TypeError):
        return None


def _handed_on(init: Callable[..., Any]) -> tuple[int, list[str]] | None:
    """How `init` calls `super().__init__(…, **kwargs)`: how many arguments by place, and the names of others.

    None if it does something else with its `**kwargs`.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError, SyntaxError):
        return None
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and any(k.arg is None for k in node.keywords)
    ]
    if len(calls) != 1 or ast.unparse(calls[0].func) != "super().__init__":
        return None
    places = sum(not isinstance(argument, ast.Starred) for argument in calls[0].args)
    return places, [k.arg for k in calls[0].keywords if k.arg is not None]


# --- Where types come from -------------------------------------------------------------------------------------------


class Source(Protocol):
    """A set of types by name."""

    @property
    def noun(self) -> str: ...

    def names(self) -> Iterable[str]: ...

    def find(self, name: str) -> Any | None: ...


@dataclass(frozen=True)
class Registered:
    """The types in one of mmengine's registries."""

    registry: Registry
    noun: str

    def names(self) -> Iterable[str]:
        self.registry.import_from_location()
        return self.registry.module_dict

    def find(self, name: str) -> Any | None:
        self.registry.import_from_location()
        return self.registry.module_dict.get(name)


@dataclass(frozen=True)
class OfKind:
    """The types of one `Kind` of building block."""

    kind: Kind

    @property
    def noun(self) -> str:
        return self.kind.name

    def names(self) -> Iterable[str]:
        return self.kind

    def find(self, name: str) -> Any | None:
        return self.kind.get(name) if name in self.kind else None


SOURCES: list[Source] = []
S = TypeVar("S", bound=Source)


def known_source(source: S) -> S:
    """Remember `source`, so that a type in the wrong place can be called by what it is."""
    SOURCES.append(source)
    return source


# --- Places ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Free:
    """A place whose inside somebody else checks."""

    def check(self, value: Any, path: str, report: Report) -> None:
        report.declared.add(path)


@dataclass(frozen=True)
class Reading:
    """A value that the project has a reader for, which raises the fault.

    Attributes:
        read: `read(value, path)` raises `UserError`.
        keys: what the keys are if the value is a dict, which is checked first.
    """

    read: Callable[[Any, str], Any]
    keys: Place | None = None

    def check(self, value: Any, path: str, report: Report) -> None:
        if isinstance(value, Mapping) and self.keys is not None:
            self.keys.check(value, path, report)
        if report.below(path):
            return
        try:
            self.read(value, path)
        except UserError as error:
            report.quote(str(error))


@dataclass(frozen=True)
class OneOf:
    """A word out of a list."""

    words: Callable[[], Iterable[str]]
    noun: str

    def check(self, value: Any, path: str, report: Report) -> None:
        words = list(self.words())
        if value not in words:
            hint = nearest(value, words) if isinstance(value, str) else ""
            report.add(path, f"{value!r} is not a known {self.noun}.{hint} Known: {', '.join(words)}.")


@dataclass(frozen=True)
class Keys:
    """A dict with known keys and no `type`.

    Attributes:
        noun: what the dict is.
        reads: the functions and classes whose arguments the keys are.
        places: what stands at some of the keys; also adds keys.
        given: arguments that are filled in by others.
        required: keys that must be there, beside the required arguments.
        none: whether None may stand here.
    """

    noun: str
    reads: tuple[Callable[..., Any], ...] = ()
    places: Places = field(default_factory=dict)
    given: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    none: bool = True

    def arguments(self) -> Arguments:
        """All keys, and whether any other is taken too."""
        found = dict.fromkeys(self.places, False)
        parts = [arguments_of(target).without(self.given) for target in self.reads]
        for part in parts:
            found.update(part.required)
        found.update(dict.fromkeys(self.required, True))
        return Arguments(found, any(part.open for part in parts))

    def check(self, value: Any, path: str, report: Report) -> None:
        if value is None and self.none:
            return
        if not isinstance(value, Mapping):
            report.add(path, f"{self.noun} is a dict, not {value!r}.")
            return
        check_arguments(value, self.arguments(), self.noun, path, report)
        check_places(value, self.places, path, report)


@dataclass(frozen=True)
class ByName:
    """A dict of places of one sort, under names that the config chooses."""

    noun: str
    place: Place

    def check(self, value: Any, path: str, report: Report) -> None:
        if value is None:
            return
        if not isinstance(value, Mapping):
            report.add(path, f"{self.noun} are a dict by name, not {value!r}.")
            return
        report.chosen.add(path)
        for name, entry in value.items():
            self.place.check(entry, inside(path, name), report)


@dataclass(frozen=True)
class Several:
    """A list of places of one sort; a single one may stand without the list."""

    place: Place
    single: bool = True

    def check(self, value: Any, path: str, report: Report) -> None:
        if value is None:
            return
        if isinstance(value, list | tuple):
            for index, entry in enumerate(value):
                self.place.check(entry, inside(path, index), report)
        elif self.single:
            self.place.check(value, path, report)
        else:
            report.add(path, f"a list belongs here, not {value!r}.")


@dataclass(frozen=True)
class Depending:
    """A place whose sort depends on the value."""

    choose: Callable[[Any], Place]

    def check(self, value: Any, path: str, report: Report) -> None:
        self.choose(value).check(value, path, report)


@dataclass(frozen=True)
class Part:
    """A dict that describes an object: `type` and the arguments of that type.

    Attributes:
        source: the types that fit.
        places: what stands at arguments of these names.
        beside: further keys, read by whoever builds the part, with their places.
        given: arguments that are filled in by whoever builds it.
        given_first: the first argument is filled in, whatever its name.
        default: the type that is meant where the dict names none.
        short: what a string means that stands for a whole part, such as `conv1x1`.
        keywords: what a class takes as `**kwargs`, where those do not go to its base class.
    """

    source: Source
    places: dict[str, "Place | None"] = field(default_factory=dict)
    beside: Callable[[], Places] | Places = field(default_factory=dict)
    given: tuple[str, ...] = ()
    given_first: bool = False
    default: Callable[[Mapping[str, Any]], str | None] | str | None = None
    short: Place | None = None
    keywords: Mapping[Any, Sequence[str]] = field(default_factory=dict)

    def check(self, value: Any, path: str, report: Report) -> None:
        if value is None:
            return
        if isinstance(value, str) and self.short is not None:
            self.short.check(value, path, report)
        elif not isinstance(value, Mapping):
            report.add(path, f"{a(self.source.noun)} is a dict with a 'type', not {value!r}.")
        else:
            self._check_dict(value, path, report)

    def type_of(self, value: Mapping[str, Any]) -> Any | None:
        """The class or function that `value` names, or None; faults are not reported."""
        return self._target(value, "", Report())

    def _check_dict(self, value: Mapping[str, Any], path: str, report: Report) -> None:
        target = self._target(value, path, report)
        beside = self.beside() if callable(self.beside) else self.beside
        places = {**self.places, **beside}
        if target is not None:
            given = {key: entry for key, entry in value.items() if key != "type" and key not in beside}
            check_arguments(given, self._arguments(target), target.__name__, path, report, beside)
            check_numbers(given, target, path, report)
        for key, entry in value.items():
            place = places.get(key) if key in places else any_part(entry)
            if place is not None and key != "type":
                place.check(entry, inside(path, key), report)

    def _arguments(self, target: Any) -> Arguments:
        arguments = arguments_of(target)
        if target in self.keywords:
            arguments = Arguments({**dict.fromkeys(self.keywords[target], False), **arguments.required}, False)
        first = list(arguments.required)[: int(self.given_first)]
        return arguments.without((*self.given, *first))

    def _target(self, value: Mapping[str, Any], path: str, report: Report) -> Any | None:
        default = self.default(value) if callable(self.default) else self.default
        name = value.get("type", default)
        if isinstance(name, str):
            return named_type(self.source, name, inside(path, "type"), report)
        if callable(name):
            return name
        what = "needs a 'type'" if name is None else f"has the type {name!r}, which is neither a name nor a class"
        report.add(path, f"{a(self.source.noun)} {what}. Known: {', '.join(sorted(self.source.names()))}.")
        return None


def named_type(source: Source, name: str, path: str, report: Report) -> Any | None:
    """The type called `name`, in `source` or by its dotted name; None, with a fault, if there is none."""
    found = source.find(name)
    if found is not None:
        return found
    known = sorted(source.names())
    if (other := _noun_of(name)) is not None:
        report.add(path, f"{name!r} is {a(other)}, but {a(source.noun)} belongs here.{nearest(name, known)}")
        return None
    if "." in name:
        return _imported(name, path, source.noun, report)
    report.add(
        path, f"{name!r} is not a known {source.noun}.{nearest(name, known)} Known: {', '.join(known) or 'none'}."
    )
    return None


@dataclass(frozen=True)
class Name:
    """The name of a type, without arguments."""

    source: Source

    def check(self, value: Any, path: str, report: Report) -> None:
        if isinstance(value, str):
            named_type(self.source, value, path, report)


def _imported(name: str, path: str, noun: str, report: Report) -> Any | None:
    try:
        found = import_type(name, f"{path}: ")
    except UserError as error:
        report.quote(str(error))
        return None
    if callable(found):
        return found
    report.add(path, f"{name!r} is {a(type(found).__name__)}, but {a(noun)} belongs here.")
    return None


def _noun_of(name: str) -> str | None:
    return next((source.noun for source in SOURCES if source.find(name) is not None), None)


def any_part(value: Any) -> Place | None:
    """The place of a dict whose `type` is a building block of any kind, as `registry.build_nested` builds it."""
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        return None
    kind = kind_of(value["type"])
    return Part(OfKind(kind)) if kind else None


def check_arguments(
    values: Mapping[str, Any],
    arguments: Arguments,
    taker: str,
    path: str,
    report: Report,
    beside: Iterable[str] = (),
) -> None:
    """Report keys of `values` that `taker` does not take, and required ones that are missing.

    Args:
        beside: further keys that are welcome, for the nearest name and the list.
    """
    report.declared.add(path)
    known = [*arguments.required, *(key for key in beside if key not in arguments.required)]
    meant = ""
    for key in values:
        if key not in arguments.required and not arguments.open:
            hint = nearest(str(key), known)
            meant += hint
            report.add(inside(path, key), f"{taker} takes no {key!r}.{hint} It takes: {', '.join(known) or 'nothing'}.")
    needed = [name for name, must in arguments.required.items() if must and name not in values]
    missing = [name for name in needed if repr(name) not in meant]
    if missing:
        report.add(path, f"{taker} needs {' and '.join(map(repr, missing))}.")


def check_numbers(values: Mapping[str, Any], target: Callable[..., Any], path: str, report: Report) -> None:
    """Report texts where `target` takes a number."""
    for key, value in values.items():
        if isinstance(value, str) and key in numbers_of(target):
            report.add(inside(path, key), f"{target.__name__} takes a number here, not {value!r}.")


def plugin_names() -> list[str]:
    """Names of the installed plugins."""
    return [plugin.name for plugin in plugins.discover()]
