"""Configs: found by name, read as text, changed by options, written so that they can be read again.

A config is a Python file whose top-level names are the keys of the run. It is always executed as text: mmengine's own
loader turns to its lazy mode, or fails without a message, at the sight of `import os` in a virtual environment.
Against mmengine's loader:
- `_base_ = 'package::file.py'` reads `file.py` in the config folder of any installed package;
- names that begin with an underscore are a file's own helpers: files that inherit from it read them as
  `_base_._name`, and the run never sees them. So every key that is left is one that the run must read;
- imported modules, functions and classes do not become keys;
- a fault names its file and line.
"""

import ast
import contextlib
import copy
import importlib
import keyword
import re
import shutil
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

from kd_tasks.engine.files import write_text
from kd_tasks.errors import UserError, nearest
from kd_tasks.paths import find_config, package_configs

BASE_KEY = "_base_"
DELETE_KEY = "_delete_"
RESERVED_KEYS = ("filename", "text", "pretty_text", "env_variables")

Options = Mapping[str, Any] | Sequence[str]


def load_config(name: str | Path, options: Options | None = None) -> Config:
    """The config called `name`, with `options` applied and its `custom_imports` imported.

    A config without a `work_dir` gets `work_dirs/<name of the file>`, as mmengine users expect.

    Args:
        name: a path, or the name of a shipped config.
        options: values by dotted path (`{'optim_wrapper.optimizer.lr': 0.1}`), or the texts `key=value` of
            `--cfg-options`. Whether the run reads such a path is checked by `config_check.check_config`.

    Raises:
        UserError: if the config or one of its bases is missing or cannot be executed; names file and line.
    """
    config = read_config(find_config(name))
    if options:
        config = with_options(config, as_mapping(options))
    if config.get("work_dir") is None:
        config.work_dir = f"work_dirs/{Path(name).stem}"
    import_custom_modules(config)
    return config


def read_config(path: str | Path) -> Config:
    """The config in the file `path`, without options and without its `custom_imports`."""
    source = _read(Path(path).expanduser().resolve(), ())
    keys = {key: value for key, value in source.values.items() if not key.startswith("_")}
    if reserved := sorted(keys.keys() & set(RESERVED_KEYS)):
        raise UserError(f"{path}: the key {reserved[0]!r} is reserved for the config itself; choose another name.")
    return Config(keys, cfg_text=source.text, filename=str(path), env_variables=source.environment)


# --- Reading ---------------------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """One executed file with its bases merged in: its names, the text of all files, the environment that it read."""

    values: dict[str, Any]
    text: str
    environment: dict[str, str]


def _read(path: Path, heirs: tuple[Path, ...]) -> _Source:
    if path in heirs:
        circle = " -> ".join(str(p) for p in (*heirs[heirs.index(path) :], path))
        raise UserError(f"{path}: {BASE_KEY} leads back to this file: {circle}. Take one of them out.")
    if path.suffix != ".py":
        raise UserError(f"{path}: a config is a Python file, and its name ends in '.py'.")
    with _faults_of(path):
        expanded = _expand(path)
        tree = ast.parse(expanded.text, filename=str(path))
        base_names = _take_base_names(tree)
    bases = [_read(_base_path(name, path), (*heirs, path)) for name in base_names]
    with _faults_of(path):
        inherited = _joined(bases, base_names, path)
        values = _execute(tree, path, inherited)
        values = Config._substitute_base_vars(values, expanded.base_variables, inherited)
        merged = Config._merge_a_into_b(values, inherited)
    texts = [base.text for base in bases] + [f"{path}\n{path.read_text(encoding='utf-8')}"]
    environment = {k: v for source in bases for k, v in source.environment.items()} | expanded.environment
    return _Source(merged, "\n".join(texts), environment)


class _Expanded(NamedTuple):
    text: str
    base_variables: dict[str, str]
    environment: dict[str, str]


def _expand(path: Path) -> _Expanded:
    """The file's text with mmengine's placeholders filled in: `{{ fileBasename }}`, `{{$NAME:default}}`, …"""
    with tempfile.TemporaryDirectory() as folder:
        filled = str(Path(folder, path.name))
        shutil.copyfile(path, filled)
        Config._substitute_predefined_vars(str(path), filled)
        environment = Config._substitute_env_variables(filled, filled)
        base_variables = Config._pre_substitute_base_vars(filled, filled)
        return _Expanded(Path(filled).read_text(encoding="utf-8"), base_variables, environment)


def _take_base_names(tree: ast.Module) -> list[str]:
    """Take `_base_ = …` out of the file, so that the name can stand for the inherited values, and return its value."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [BASE_KEY]:
            tree.body.remove(node)
            value = eval(compile(ast.Expression(node.value), "<_base_>", "eval"))
            return [value] if isinstance(value, str) else list(value)
    return []


def _base_path(name: str, heir: Path) -> Path:
    package, separator, inner = name.rpartition("::")
    try:
        path = package_configs(package) / inner if separator else heir.parent / name
    except UserError as error:
        raise UserError(f"{heir}: {BASE_KEY} = {name!r}: {error}") from None
    if not path.is_file():
        siblings = [f.name for f in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(
            f"{heir}: {BASE_KEY} = {name!r} means {path}, which does not exist.{nearest(path.name, siblings)}"
        )
    return path.resolve()


def _joined(bases: Sequence[_Source], names: Sequence[str], heir: Path) -> ConfigDict:
    joined = ConfigDict()
    for base, name in zip(bases, names, strict=True):
        keys = {key for key in base.values if not key.startswith("_")}
        if twice := sorted(keys & joined.keys()):
            raise UserError(
                f"{heir}: {name!r} and a base before it both set {twice[0]!r}; only one base may set a key."
            )
        joined.update(ConfigDict(base.values))
    return joined


def _execute(tree: ast.Module, path: Path, inherited: ConfigDict) -> dict[str, Any]:
    names: dict[str, Any] = {BASE_KEY: inherited, "__file__": str(path)}
    exec(compile(tree, str(path), "exec"), names)
    return {k: v for k, v in names.items() if k != BASE_KEY and not k.startswith("__") and not _is_code(v)}


def _is_code(value: Any) -> bool:
    return isinstance(value, ModuleType | FunctionType | BuiltinFunctionType | type)


@contextlib.contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `UserError` that names the file and the line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        at = path if error.filename is None else error.filename
        shown = f": {error.text.strip()}" if error.text else ""
        raise UserError(f"{at}, line {error.lineno}: this is not valid Python: {error.msg}{shown}") from None
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        at = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{at}: {type(error).__name__}: {_said(error)} Mend the config at this place.") from error


def _said(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text if text.endswith((".", "!")) else f"{text}."


def import_custom_modules(config: Config) -> None:
    """Import the modules that `custom_imports = dict(imports=[…], allow_failed_imports=False)` names.

    Raises:
        UserError: if one of them cannot be imported, unless `allow_failed_imports` is set.
    """
    wanted = config.get("custom_imports") or {}
    if not isinstance(wanted, Mapping) or "imports" not in wanted:
        if wanted:
            raise UserError(f"{config.filename}: custom_imports is a dict such as dict(imports=['my_package.losses']).")
        return
    names = [wanted["imports"]] if isinstance(wanted["imports"], str) else wanted["imports"]
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            if wanted.get("allow_failed_imports", False) and isinstance(error, ImportError):
                continue
            raise UserError(
                f"{config.filename}: custom_imports: {name!r} cannot be imported: "
                f"{type(error).__name__}: {_said(error)} "
                "Install the package it belongs to, or put the folder that holds it on PYTHONPATH."
            ) from error


# --- Options ---------------------------------------------------------------------------------------------------------


def as_mapping(options: Options) -> dict[str, Any]:
    """Options by dotted path, whichever way they were given."""
    return dict(options) if isinstance(options, Mapping) else parse_options(options)


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """The values of `key=value` texts, by key.

    A value is read as Python: `1e-3`, `None`, `True`, `[1, 2]`, `(1, 2)`, `{'a': 1}`, `dict(a=1)`. Bare words are
    strings, within lists too; `a,b` is the list `['a', 'b']`; what is not Python (`epoch 5`, `work_dirs/a.pth`) is
    one string as it stands.

    Raises:
        UserError: if a text has no `=` or no key before it.
    """
    parsed = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise UserError(f"{text!r}: an option is written key=value, such as train_cfg.max_epochs=10.")
        parsed[key.strip()] = _parse_value(value.strip())
    return parsed


_WORDS = {"true": True, "false": False, "none": None}


def _parse_value(text: str) -> Any:
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        return text
    if isinstance(node, ast.Tuple) and not text.startswith("("):
        return [_value_of(element, text) for element in node.elts]
    return _value_of(node, text)


def _value_of(node: ast.expr, text: str) -> Any:
    """The value of a literal in which bare words and other expressions are strings."""
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            values = [_value_of(element, text) for element in node.elts]
            return values if isinstance(node, ast.List) else tuple(values)
        case ast.Dict() if all(node.keys):
            keys = [_value_of(key, text) for key in node.keys if key is not None]
            return dict(zip(keys, (_value_of(value, text) for value in node.values), strict=True))
        case ast.Call(func=ast.Name(id="dict"), args=[]) if all(k.arg for k in node.keywords):
            return {str(k.arg): _value_of(k.value, text) for k in node.keywords}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Name(id=word):
            return _WORDS.get(word.lower(), word)
    return ast.get_source_segment(text, node) or text


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """A copy of `config` with the value of each dotted path set; a dict is merged, as in a config that inherits.

    Numbers in a path are places in a list: `param_scheduler.0.power=0.9`.

    Raises:
        UserError: if a path leads through something that has no keys, or past the end of a list.
    """
    values = config.to_dict()
    for path, value in options.items():
        _set(values, path, value)
    changed = Config(values, cfg_text=config.text, filename=config.filename, env_variables=config.env_variables)
    object.__setattr__(changed, "_options", {**given_options(config), **options})
    return changed


def given_options(config: Config) -> dict[str, Any]:
    """The options that were applied to `config`, by dotted path."""
    return vars(config).get("_options", {})


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place: Any = values
    for depth, name in enumerate(parents):
        place = _child(place, name, path, ".".join(parents[:depth]))
    key = _key_in(place, last, path, ".".join(parents))
    before = place.get(key) if isinstance(place, dict) else place[int(key)]
    if isinstance(value, Mapping):
        base = {last: before} if isinstance(before, dict) else {}
        value = Config._merge_a_into_b({last: copy.deepcopy(dict(value))}, base)[last]
    place[key] = value


def _child(place: Any, name: str, path: str, where: str) -> Any:
    key = _key_in(place, name, path, where)
    if isinstance(place, dict) and place.get(key) is None:
        place[key] = {}
    return place[key]


def _key_in(place: Any, name: str, path: str, where: str) -> str | int:
    if isinstance(place, dict):
        return name
    if not isinstance(place, list):
        raise UserError(f"--cfg-options {path}: {where} is {place!r}; set {where} as a whole.")
    if not name.isdigit() or int(name) >= len(place):
        raise UserError(f"--cfg-options {path}: {where} is a list with the places 0 to {len(place) - 1}, not {name!r}.")
    return int(name)


def option_paths(options: Mapping[str, Any]) -> list[str]:
    """The dotted paths that options set, those inside dict values too."""
    paths = []
    for path, value in options.items():
        inner = option_paths(value) if isinstance(value, Mapping) else []
        paths += [f"{path}.{p}" for p in inner if p != DELETE_KEY] or [path]
    return paths


# --- Writing ---------------------------------------------------------------------------------------------------------

_WIDTH = 120
_INDENT = "    "


def dump_config(config: Config, path: str | Path) -> Path:
    """Write `config` to `path` as a config without bases that reads back to the same values; whole or not at all.

    Classes and functions are written as their dotted names, paths as strings.

    Raises:
        UserError: if a value cannot be written as Python, or the file cannot be written.
    """
    return write_text(path, config_text(config))


def config_text(config: Config) -> str:
    """`config` as the text of a Python file."""
    return "\n".join(f"{key} = {_written(value, key, 0)}" for key, value in config.to_dict().items()) + "\n"


def _written(value: Any, where: str, depth: int) -> str:
    short = _on_one_line(value, where)
    if len(short) + len(_INDENT) * depth + len(where.rpartition(".")[2]) + 3 <= _WIDTH:
        return short
    if isinstance(value, Mapping) and value:
        lines = [_pair(k, _written(v, f"{where}.{k}", depth + 1), _named(value)) for k, v in value.items()]
        return _block(lines, "dict()" if _named(value) else "{}", depth)
    if isinstance(value, list | tuple) and value:
        lines = [_written(v, f"{where}.{i}", depth + 1) for i, v in enumerate(value)]
        return _block(lines, "[]" if isinstance(value, list) else "()", depth)
    return short


def _block(lines: list[str], brackets: str, depth: int) -> str:
    inside = "".join(f"{_INDENT * (depth + 1)}{line},\n" for line in lines)
    return f"{brackets[:-1]}\n{inside}{_INDENT * depth}{brackets[-1]}"


def _on_one_line(value: Any, where: str) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(_pair(k, _on_one_line(v, f"{where}.{k}"), _named(value)) for k, v in value.items())
        return f"dict({pairs})" if _named(value) else f"{{{pairs}}}"
    if isinstance(value, list | tuple):
        items = ", ".join(_on_one_line(v, f"{where}.{i}") for i, v in enumerate(value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    if isinstance(value, PurePath):
        return repr(str(value))
    if isinstance(value, float) and repr(value) in ("inf", "-inf", "nan"):
        return f"float({repr(value)!r})"
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return repr(_dotted(value, where))
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, set | frozenset | range):
        return repr(value)
    raise UserError(
        f"{where}: a {type(value).__name__} cannot be written into a config. Use numbers, strings, lists and dicts, "
        "and name classes by 'type'."
    )


def _pair(key: Any, text: str, named: bool) -> str:
    return f"{key}={text}" if named else f"{key!r}: {text}"


def _named(value: Mapping[Any, Any]) -> bool:
    return all(
        isinstance(k, str) and re.fullmatch(r"\w+", k) and k.isidentifier() and not keyword.iskeyword(k) for k in value
    )


def _dotted(value: Any, where: str) -> str:
    if "<" in value.__qualname__:
        raise UserError(
            f"{where}: a function without a name of its own cannot be written into a config; name one by its module."
        )
    return f"{value.__module__}.{value.__qualname__}"
