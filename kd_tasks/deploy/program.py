"""Exported programs (`.pt2`) read as data: a graph of ATen operators and its weights, run node by node.

`torch.export.load` is not used, because it runs code from the file in many ways: it unpickles example inputs, weights
and constants without restriction, evaluates symbolic expressions and generated source, imports modules that tree
specifications name, takes any attribute reachable from `torch` as an operator, and loads compiled libraries. Here the
file is parsed as JSON and raw bytes, and what is not on the lists below is refused.
"""

import io
import json
import math
import operator
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_tasks.errors import UserError

_OPERATOR = re.compile(r"torch\.ops\.(aten|torchvision)\.(\w+)\.(\w+)")
# An operator reaches files or devices only through a string that names them; these strings name a rule of computing.
_STRINGS = {"approximate", "assert_msg", "equation", "indexing", "mode", "padding", "rounding_mode"}
_SYMBOLIC: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{function.__name__}": function
        for function in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod)
    },
    **{
        f"_operator.{function.__name__}": function
        for function in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.neg)
    },
    "_operator.and_": operator.and_,
    "_operator.or_": operator.or_,
    "_operator.pos": operator.pos,
    "math.trunc": math.trunc,
    "torch.sym_float": float,
    "torch.sym_int": int,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
}
# Numbers of the serialised schema, major version 8.
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_LAYOUTS = {7: torch.strided}
_SCHEMA_MAJOR = 8

Values = dict[str, Any]
Argument = Callable[[Values, torch.device], Any]


@dataclass(frozen=True)
class _Node:
    call: Callable[..., Any]
    positional: tuple[Argument, ...]
    named: Mapping[str, Argument]
    outputs: tuple[Any, ...]
    last_read: tuple[str, ...]


class Program(nn.Module):
    """An exported program: one tensor in, a tuple of tensors out, in the order of its graph.

    Args:
        content: the bytes of a `.pt2` file as `torch.export.save` writes it.
        name: what to call the file in messages.

    Raises:
        UserError: if the file is no exported program, or holds anything but known operators and plain tensors.
    """

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__()
        self.name = name
        try:
            archive = _Archive(content)
            self._read(archive)
        except UserError:
            raise
        except Exception as error:  # whatever a malformed file leads to
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{name}: not an exported program that kd-tasks reads: {reason}. Export again.") from error

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        values: Values = {name: self._buffers[place] for name, place in self._places.items()}
        values[self._input] = image
        for node in self._nodes:
            arguments = [read(values, image.device) for read in node.positional]
            named = {key: read(values, image.device) for key, read in node.named.items()}
            _assign(values, node.outputs, node.call(*arguments, **named))
            for read_no_more in node.last_read:
                del values[read_no_more]
        return tuple(values[name] for name in self._results)

    def _read(self, archive: "_Archive") -> None:
        program = archive.json("models/model.json")
        major = program["schema_version"]["major"]
        if major != _SCHEMA_MAJOR:
            raise UserError(f"{self.name}: exported with serialisation schema {major}; kd-tasks reads {_SCHEMA_MAJOR}.")
        module = program["graph_module"]
        tensors = archive.tensors()
        self._places: dict[str, str] = {}
        inputs = []
        for spec in module["signature"]["input_specs"]:
            kind, content = _only(spec)
            if kind == "user_input":
                inputs.append(_named_tensor(content["arg"]))
                continue
            key = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
            if kind not in key:
                raise ValueError(f"an input of the kind {kind!r}")
            place = f"tensor_{len(self._places)}"
            self.register_buffer(place, tensors[content[key[kind]]])
            self._places[content["arg"]["name"]] = place
        self._results = []
        for spec in module["signature"]["output_specs"]:
            kind, content = _only(spec)
            if kind != "user_output":
                raise ValueError(f"an output of the kind {kind!r}: the network changes its own state")
            self._results.append(_named_tensor(content["arg"]))
        if len(inputs) != 1:
            raise ValueError(f"{len(inputs)} inputs where one image is expected")
        self._input = inputs[0]
        self._nodes = _nodes(module["graph"]["nodes"], keep=set(self._results))


class _Archive:
    """The members of the zip file by their names below its one top folder."""

    def __init__(self, content: bytes) -> None:
        self.file = zipfile.ZipFile(io.BytesIO(content))
        self.members = {name.partition("/")[2]: name for name in self.file.namelist()}
        foreign = [m for m in self.members if m.startswith(("data/aotinductor/", "data/constants/custom_obj_"))]
        if foreign:
            raise ValueError(f"compiled or pickled parts ({foreign[0]})")

    def read(self, member: str) -> bytes:
        return self.file.read(self.members[member])

    def json(self, member: str) -> Any:
        return json.loads(self.read(member))

    def tensors(self) -> dict[str, Tensor]:
        return {**self._folder("data/weights", "weights"), **self._folder("data/constants", "constants")}

    def _folder(self, folder: str, kind: str) -> dict[str, Tensor]:
        entries = self.json(f"{folder}/model_{kind}_config.json")["config"]
        return {name: self._tensor(folder, entry) for name, entry in entries.items()}

    def _tensor(self, folder: str, entry: Mapping[str, Any]) -> Tensor:
        if entry["use_pickle"]:
            raise ValueError(f"pickled data ({entry['path_name']})")
        meta = entry["tensor_meta"]
        size, stride = ([d["as_int"] for d in meta[key]] for key in ("sizes", "strides"))
        raw = bytearray(self.read(f"{folder}/{entry['path_name']}"))
        dtype = _DTYPES[meta["dtype"]]
        if not raw:
            return torch.zeros(size, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flat = torch.frombuffer(raw, dtype=dtype)
        return flat.as_strided(size, stride, meta["storage_offset"]["as_int"])


def _nodes(serialised: list[dict[str, Any]], keep: set[str]) -> list[_Node]:
    """The graph's nodes, each with the names that no later node reads."""
    nodes: list[_Node] = []
    seen = set(keep)
    for content in reversed(serialised):
        outputs = tuple(_output(o) for o in content["outputs"])
        touched = {name for o in outputs for name in (o if isinstance(o, tuple) else (o,)) if name}
        touched |= set(_names_in([i["arg"] for i in content["inputs"]]))
        nodes.append(_node(content, outputs, tuple(sorted(touched - seen))))
        seen |= touched
    return nodes[::-1]


def _node(content: Mapping[str, Any], outputs: tuple[Any, ...], last_read: tuple[str, ...]) -> _Node:
    target = content["target"]
    inputs = [(i["name"], _only(i["arg"])) for i in content["inputs"]]
    if target in _SYMBOLIC:
        return _Node(_SYMBOLIC[target], tuple(_argument(*arg) for _, arg in inputs), {}, outputs, last_read)
    overload = _overload(target)
    taken = {a.name for a in overload._schema.arguments}
    for name, (kind, _) in inputs:
        if name not in taken:
            raise ValueError(f"{target} takes no argument {name!r}")
        if kind in ("as_string", "as_strings") and name not in _STRINGS:
            raise ValueError(f"{target} with the text argument {name!r}")
    return _Node(overload, (), {name: _argument(*arg) for name, arg in inputs}, outputs, last_read)


def _overload(target: str) -> Any:
    """The operator of that name, if it computes on tensors and nothing else."""
    match = _OPERATOR.fullmatch(target)
    if match is None or "unsafe" in target or "sparse" in target:
        raise ValueError(f"the operator {target!r} is not allowed in an artefact")
    namespace, name, overload = match.groups()
    if namespace == "torchvision":
        import torchvision  # noqa: F401  (registers its operators)
    found = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"{target!r} is no operator")
    texts = [a.name for a in found._schema.arguments if "str" in str(a.type) and a.name not in _STRINGS]
    if texts:
        raise ValueError(f"the operator {target!r} takes the text {texts[0]!r} and is not allowed in an artefact")
    return found


def _argument(kind: str, content: Any) -> Argument:
    """How to get an argument's value from the values computed so far."""
    if kind == "as_none":
        return lambda values, device: None
    if kind == "as_device":
        return lambda values, device: device
    if kind == "as_tensor":
        name = content["name"]
        return lambda values, device: values[name]
    if kind in _ENUMS:
        constant = _ENUMS[kind][content]
        return lambda values, device: constant
    if kind in ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools", "as_strings"):
        return lambda values, device: content
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        return _element(content)
    if kind == "as_tensors":
        names = [t["name"] for t in content]
        return lambda values, device: [values[name] for name in names]
    if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors"):
        elements = [_element(item) for item in content]
        return lambda values, device: [element(values, device) for element in elements]
    raise ValueError(f"an argument of the kind {kind!r}")


_ENUMS: dict[str, Mapping[int, Any]] = {
    "as_scalar_type": _DTYPES,
    "as_memory_format": _MEMORY_FORMATS,
    "as_layout": _LAYOUTS,
}


def _element(content: Mapping[str, Any]) -> Argument:
    kind, value = _only(content)
    if kind == "as_name":
        return lambda values, device: values[value]
    return _argument(kind, value)


def _names_in(value: Any) -> list[str]:
    """Names of all values that serialised arguments read."""
    if isinstance(value, list):
        return [name for item in value for name in _names_in(item)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in ("name", "as_name") if isinstance(value.get(key), str)]
    return own + [name for item in value.values() for name in _names_in(item)]


def _output(content: Mapping[str, Any]) -> Any:
    """The name of one output, a tuple of names for a list of tensors, None for an output that is absent."""
    kind, value = _only(content)
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return value["name"]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return value["as_name"]
    if kind == "as_tensors":
        return tuple(t["name"] for t in value)
    raise ValueError(f"an output of the kind {kind!r}")


def _assign(values: Values, outputs: tuple[Any, ...], result: Any) -> None:
    if not outputs:  # an assertion
        return
    for name, value in zip(outputs, result if len(outputs) > 1 else (result,), strict=True):
        if isinstance(name, tuple):
            values.update(zip(name, value, strict=True))
        elif name is not None:
            values[name] = value


def _named_tensor(argument: Mapping[str, Any]) -> str:
    kind, content = _only(argument)
    if kind != "as_tensor":
        raise ValueError(f"an input or output that is no tensor ({kind})")
    return content["name"]


def _only(union: Mapping[str, Any]) -> tuple[str, Any]:
    ((kind, content),) = union.items()
    return kind, content
