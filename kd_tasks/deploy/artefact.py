"""The manifest of an artefact: a JSON file that says what an exported network takes, gives and was made from.

A manifest is data. The types it names are looked up among what is registered and never imported, and the file it
belongs to must have the recorded SHA-256.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kd_tasks.engine.files import write_text
from kd_tasks.errors import UserError, nearest

SCHEMA = 1
BATCH = "batch"
FORMATS = ("onnx", "pt2")
PRECISIONS = ("float32", "int8")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its shape with `'batch'` for the dimension of any size, its dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class About:
    """What a person states about an artefact, beyond what the exported file shows by itself.

    Attributes:
        task: name of the plugin.
        classes: class names in the order of the outputs.
        palette: one (r, g, b) in 0..255 a class.
        preprocessor: config of the preprocessor.
        decoder: config of the decoder; None for a network whose outputs are used raw.
        evaluator: config of the metric, or a list of them.
        test_dataloader: config of the data on which the artefact is evaluated.
        network: config of the network that was exported, with which the checkpoint can be built again.
        checkpoint: `path` and `sha256` of the weights.
        checkpoint_metrics: metrics of the checkpoint on the test data; None for one that is not finite.
    """

    task: str = ""
    classes: list[str] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)
    preprocessor: dict[str, Any] = field(default_factory=lambda: {"type": "ImagePreprocessor"})
    decoder: dict[str, Any] | None = None
    evaluator: dict[str, Any] | list[Any] | None = None
    test_dataloader: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    checkpoint: dict[str, str] | None = None
    checkpoint_metrics: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands in the manifest.

    Attributes:
        format: `onnx` or `pt2`.
        precision: `float32` or `int8`; inputs and outputs are float32 either way.
        sha256: of the artefact's bytes.
        size_bytes: of the artefact.
        inputs: the one input `image`, (batch, 3, H, W), normalised.
        outputs: in the order in which the file gives them.
        about: task, classes and configs.
        differences: largest absolute difference of each output, seen at export: of a float32 file from the torch
            network, of an int8 file from the float32 file.
        versions: of the packages that wrote the artefact.
        created: UTC, ISO 8601.
        schema: version of the manifest's own layout.
    """

    format: str
    precision: str
    sha256: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    about: About
    differences: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: int = SCHEMA


def installed_versions() -> dict[str, str]:
    """Versions of the packages that shape an artefact; a package that is not installed is left out."""
    found = {}
    for package in ("kd-tasks", "torch", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def manifest_path(artefact: str | Path) -> Path:
    """The manifest beside `artefact`: `student.onnx` has `student.onnx.json`."""
    return Path(f"{artefact}.json")


def write_manifest(artefact: str | Path, manifest: Manifest) -> Path:
    """Write `manifest` beside `artefact`.

    Raises:
        UserError: as `manifest_text`, or if the file cannot be written.
    """
    return write_text(manifest_path(artefact), manifest_text(manifest, artefact))


def manifest_text(manifest: Manifest, artefact: str | Path) -> str:
    """`manifest` as it stands in its file.

    Raises:
        UserError: if a config in it holds what JSON cannot say, or names a type that is not registered: such a manifest
            could not be read back.
    """
    values = _plain(dataclasses.asdict(manifest), "")
    _check_types(_manifest(values, manifest_path(artefact)), manifest_path(artefact))
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(artefact: str | Path) -> Manifest:
    """The manifest of `artefact`, checked against the file and against what is registered.

    Raises:
        UserError: if the artefact or its manifest is missing; if the manifest is malformed, of a newer layout, or
            names a type that is not registered; if the artefact was changed after export.
    """
    return read_artefact(artefact)[0]


def read_artefact(artefact: str | Path) -> tuple[Manifest, bytes]:
    """The checked manifest of `artefact` and the very bytes that were checked.

    Raises:
        UserError: as `read_manifest`.
    """
    artefact, path = Path(artefact), manifest_path(artefact)
    if not artefact.is_file():
        raise UserError(f"{artefact}: no such file.")
    if not path.is_file():
        raise UserError(
            f"{artefact}: its manifest {path.name} is missing. Copy it from where the artefact was exported."
        )
    manifest = _manifest(_parsed(path), path)
    content = artefact.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise UserError(
            f"{artefact}: the file was changed after export: its SHA-256 is not the one in {path.name}. "
            "Export it again, or copy artefact and manifest together."
        )
    _check_types(manifest, path)
    return manifest, content


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}. Export the artefact again.") from error


# --- values


def _plain(value: Any, where: str) -> Any:
    """`value` in what JSON can say: tuples become lists, numbers that are not finite become null."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise UserError(f"manifest: {where or 'top level'}: the key {wrong!r} is not a string, as JSON needs.")
        return {key: _plain(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise UserError(f"manifest: {where}: a {type(value).__name__} cannot be written as JSON. Use plain values there.")


# --- structure


def _manifest(values: Any, path: Path) -> Manifest:
    _must(isinstance(values, dict), path, "the file", "an object")
    schema = values.get("schema")
    _must(_is_int(schema), path, "schema", "a whole number")
    if schema > SCHEMA:
        raise UserError(
            f"{path}: written by a newer kd-tasks (manifest layout {schema}; this one reads {SCHEMA}). Update kd-tasks."
        )
    _check_fields(values, Manifest, path, "")
    _check_fields(values["about"], About, path, "about.")
    for name, (holds, what) in _MANIFEST_RULES.items():
        _must(holds(values[name]), path, name, what)
    for name, (holds, what) in _ABOUT_RULES.items():
        _must(holds(values["about"][name]), path, f"about.{name}", what)
    specs = {key: tuple(_tensor_spec(s, path, key) for s in values[key]) for key in ("inputs", "outputs")}
    return Manifest(**{**values, **specs, "about": About(**values["about"])})


def _check_fields(values: Any, cls: type, path: Path, prefix: str) -> None:
    _must(isinstance(values, dict), path, prefix.rstrip(".") or "the file", "an object")
    known = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            raise UserError(f"{path}: unknown field '{prefix}{name}'.{nearest(name, known)} Export the artefact again.")
    for name in known:
        if name not in values:
            raise UserError(f"{path}: the field '{prefix}{name}' is missing. Export the artefact again.")


def _tensor_spec(values: Any, path: Path, where: str) -> TensorSpec:
    _check_fields(values, TensorSpec, path, f"{where}.")
    name, shape, dtype = values["name"], values["shape"], values["dtype"]
    _must(_is_text(name) and _is_text(dtype), path, where, "named tensors with a dtype")
    good = isinstance(shape, list) and all((_is_int(d) and d >= 0) or d == BATCH for d in shape)
    _must(good, path, f"{where}.shape", f"a list of sizes, or '{BATCH}'")
    return TensorSpec(name, tuple(shape), dtype)


def _must(holds: bool, path: Path, where: str, what: str) -> None:
    if not holds:
        raise UserError(f"{path}: '{where}' must be {what}. Export the artefact again.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_numbers(value: Any) -> bool:
    return _is_object(value) and all(v is None or isinstance(v, int | float) for v in value.values())


def _is_texts(value: Any) -> bool:
    return _is_object(value) and all(isinstance(v, str) for v in value.values())


def _is_palette(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(colour, list) and len(colour) == 3 and all(_is_int(c) and 0 <= c <= 255 for c in colour)
        for colour in value
    )


_MANIFEST_RULES = {
    "format": (lambda v: v in FORMATS, "'onnx' or 'pt2'"),
    "precision": (lambda v: v in PRECISIONS, "'float32' or 'int8'"),
    "sha256": (lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None, "64 hexadecimal digits"),
    "size_bytes": (lambda v: _is_int(v) and v >= 0, "a number of bytes"),
    "inputs": (lambda v: isinstance(v, list) and len(v) == 1, "a list of one tensor"),
    "outputs": (lambda v: isinstance(v, list) and len(v) > 0, "a list of tensors"),
    "differences": (_is_numbers, "an object of numbers"),
    "versions": (_is_texts, "an object of version strings"),
    "created": (_is_text, "a date"),
}
_ABOUT_RULES = {
    "task": (lambda v: isinstance(v, str), "a string"),
    "classes": (lambda v: isinstance(v, list) and all(isinstance(c, str) for c in v), "a list of names"),
    "palette": (_is_palette, "a list of [r, g, b] in 0..255"),
    "preprocessor": (_is_object, "a config"),
    "decoder": (lambda v: v is None or _is_object(v), "a config or null"),
    "evaluator": (lambda v: v is None or isinstance(v, dict | list), "a config, a list of configs, or null"),
    "test_dataloader": (lambda v: v is None or _is_object(v), "a config or null"),
    "network": (lambda v: v is None or _is_object(v), "a config or null"),
    "checkpoint": (lambda v: v is None or _is_texts(v), "path and sha256, or null"),
    "checkpoint_metrics": (_is_numbers, "an object of numbers"),
}


# --- types

_PICKLING = {"BaseDataset", "DumpResults"}  # of mmengine: read and write pickles whose paths stand in the config


def _check_types(manifest: Manifest, path: Path) -> None:
    """Refuse every `type` that is not registered: mmengine would import a module of that name."""
    from kd_tasks.plugins import load_all

    load_all()
    for where, cfg, kind, known in _heads(manifest.about):
        name = cfg.get("type") if isinstance(cfg, dict) else None
        if not isinstance(name, str) or name not in known:
            hint = nearest(name, known) if isinstance(name, str) else ""
            raise UserError(
                f"{path}: {where}: {name!r} is not a known {kind}.{hint} Types can only be names that kd-tasks or an "
                f"installed plugin registers. Is the plugin for the task {manifest.about.task!r} installed?"
            )
    known_names = _registered()
    for where, name in _names(dataclasses.asdict(manifest.about), "about"):
        if name not in known_names and not (".transforms[" in where and _is_transform(name)):
            raise UserError(
                f"{path}: {where}: {name!r} is not registered.{nearest(name, known_names)} "
                "Types in a manifest can only be names that kd-tasks or an installed plugin registers."
            )


def _heads(about: About) -> Iterator[tuple[str, Any, str, set[str]]]:
    """The configs that are built first: path, config, kind and the names of that kind."""
    from kd_tasks.registry import DATASETS, DECODERS, METRICS, NETWORKS, PREPROCESSORS

    yield "about.preprocessor", about.preprocessor, "preprocessor", set(PREPROCESSORS)
    if about.network is not None:
        yield "about.network", about.network, "network", set(NETWORKS)
    if about.decoder is not None:
        yield "about.decoder", about.decoder, "decoder", set(DECODERS)
    for evaluator in about.evaluator if isinstance(about.evaluator, list) else [about.evaluator]:
        if evaluator is not None:
            yield "about.evaluator", evaluator, "metric", set(METRICS.module_dict) - _PICKLING
    if about.test_dataloader is not None:
        yield (
            "about.test_dataloader.dataset",
            about.test_dataloader.get("dataset"),
            "data set",
            set(DATASETS.module_dict) - _PICKLING,
        )


def _registered() -> set[str]:
    import mmengine.dataset  # noqa: F401  (registers samplers and ways to collate)
    from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, METRICS, TRANSFORMS

    from kd_tasks.registry import MODEL_KINDS

    names = {name for kind in MODEL_KINDS for name in kind}
    for registry in (DATASETS, DATA_SAMPLERS, FUNCTIONS, METRICS, TRANSFORMS):
        names.update(registry.module_dict)
    return names - _PICKLING


def _is_transform(name: str) -> bool:
    from kd_tasks.vision.augment import transform_class

    try:
        transform_class(name)
    except UserError:
        return False
    return True


def _names(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every `type` below `value` with its path; keys such as `_scope_`, by which mmengine imports, count as unknown."""
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _names(item, f"{where}[{i}]")
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        if key == "type":
            yield f"{where}.type", item if isinstance(item, str) else repr(item)
        elif key.startswith("_"):
            yield f"{where}.{key}", key
        else:
            yield from _names(item, f"{where}.{key}")
