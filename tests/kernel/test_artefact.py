"""Manifests and whole files: what is written is read back, and what was changed is refused."""

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.registry import DATASETS, METRICS

from kd_tasks.deploy import artefact as module
from kd_tasks.deploy.artefact import About, Manifest, TensorSpec, manifest_path, read_manifest, write_manifest
from kd_tasks.deploy.runtimes import build_deployed, load_network
from kd_tasks.engine.files import atomic_write, sha256_of, write_json
from kd_tasks.errors import UserError
from kd_tasks.registry import DECODERS


@DECODERS.register
class ArtefactDecoder:
    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def __call__(self, outputs: Any, meta: Any) -> list[dict[str, Any]]:
        return []


class ArtefactMetric: ...


class ArtefactData: ...


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Any:
    METRICS.register_module(module=ArtefactMetric, force=True)
    DATASETS.register_module(module=ArtefactData, force=True)
    yield
    METRICS.module_dict.pop("ArtefactMetric")
    DATASETS.module_dict.pop("ArtefactData")


def about(**changes: Any) -> About:
    values: dict[str, Any] = {
        "task": "segmentation",
        "classes": ["road", "sky"],
        "palette": [[128, 64, 128], [70, 130, 180]],
        "preprocessor": {"type": "ImagePreprocessor", "mean": (1.0, 2.0, 3.0), "pad_divisor": 8},
        "decoder": {"type": "ArtefactDecoder", "threshold": 0.25},
        "evaluator": [{"type": "ArtefactMetric"}],
        "test_dataloader": {
            "batch_size": 1,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": {
                "type": "ArtefactData",
                "data_root": "datasets/x",
                "transforms": [{"type": "OneOf", "transforms": [{"type": "HorizontalFlip", "p": 1.0}]}],
            },
        },
        "checkpoint": {"path": "work_dirs/a/student.pth", "sha256": "0" * 64},
        "checkpoint_metrics": {"mIoU": 71.25, "empty": float("nan")},
    }
    return About(**{**values, **changes})


def manifest_of(path: Path, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "format": "onnx",
        "precision": "float32",
        "sha256": sha256_of(path),
        "size_bytes": path.stat().st_size,
        "inputs": (TensorSpec("image", ("batch", 3, 64, 96), "float32"),),
        "outputs": (TensorSpec("logits", ("batch", 2, 8, 12), "float32"),),
        "about": about(),
        "differences": {"logits": 1e-6},
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"a network")
    write_manifest(path, manifest_of(path))
    return path


def edit(artefact: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = manifest_path(artefact)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_what_is_written_is_read_back(artefact: Path) -> None:
    assert manifest_path(artefact).name == "student.onnx.json"
    manifest = read_manifest(artefact)
    written = manifest_of(artefact)
    assert manifest.inputs == written.inputs
    assert manifest.outputs == written.outputs
    assert manifest.about.preprocessor == {"type": "ImagePreprocessor", "mean": [1.0, 2.0, 3.0], "pad_divisor": 8}
    assert manifest.about.test_dataloader == written.about.test_dataloader
    assert manifest.about.checkpoint_metrics == {"mIoU": 71.25, "empty": None}
    assert {"kd-tasks", "torch", "onnx", "onnxruntime"} <= set(manifest.versions)
    for name in ("format", "precision", "sha256", "size_bytes", "differences"):
        assert getattr(manifest, name) == getattr(written, name)
    write_manifest(artefact, manifest)
    assert read_manifest(artefact) == manifest


def test_a_changed_artefact_is_refused(artefact: Path) -> None:
    artefact.write_bytes(b"a metwork")
    for read in (read_manifest, load_network, build_deployed):
        with pytest.raises(UserError, match=r"student\.onnx: the file was changed after export"):
            read(artefact)


def test_missing_files_are_named(artefact: Path) -> None:
    with pytest.raises(UserError, match=r"other\.onnx: no such file"):
        read_manifest(artefact.with_name("other.onnx"))
    manifest_path(artefact).unlink()
    with pytest.raises(UserError, match=r"its manifest student\.onnx\.json is missing"):
        read_manifest(artefact)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff\xfe"])
def test_text_that_is_no_json_is_refused(artefact: Path, text: str) -> None:
    manifest_path(artefact).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not valid JSON"):
        read_manifest(artefact)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"x"', "{}"])
def test_json_of_another_kind_is_refused(artefact: Path, text: str) -> None:
    manifest_path(artefact).write_text(text)
    with pytest.raises(UserError, match=r"student\.onnx\.json: '(the file|schema)' must be"):
        read_manifest(artefact)


def test_a_newer_layout_asks_for_an_update(artefact: Path) -> None:
    edit(artefact, lambda values: values.update(schema=2, something_new=1))
    with pytest.raises(UserError, match=r"newer kd-tasks \(manifest layout 2; this one reads 1\)"):
        read_manifest(artefact)


def test_every_field_must_be_there_and_no_other(artefact: Path) -> None:
    whole = json.loads(manifest_path(artefact).read_text())
    for name in [f.name for f in dataclasses.fields(Manifest) if f.name != "schema"]:
        edit(artefact, lambda values, name=name: values.pop(name))  # type: ignore[misc]
        with pytest.raises(UserError, match=f"the field '{name}' is missing"):
            read_manifest(artefact)
        write_json(manifest_path(artefact), whole)
    edit(artefact, lambda values: values["about"].pop("decoder"))
    with pytest.raises(UserError, match=r"the field 'about\.decoder' is missing"):
        read_manifest(artefact)
    write_json(manifest_path(artefact), whole)
    edit(artefact, lambda values: values.update(formt="onnx"))
    with pytest.raises(UserError, match=r"unknown field 'formt'\. Did you mean 'format'"):
        read_manifest(artefact)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "torchscript"),
        ("format", ["onnx"]),
        ("precision", "float16"),
        ("sha256", "ab"),
        ("size_bytes", True),
        ("inputs", []),
        ("outputs", {}),
        ("outputs", [{"name": "logits", "shape": ["height"], "dtype": "float32"}]),
        ("outputs", [{"name": "logits", "shape": [-1], "dtype": "float32"}]),
        ("outputs", [[]]),
        ("differences", {"logits": "small"}),
        ("versions", {"torch": 2}),
        ("created", None),
        ("about", None),
        ("about.task", 3),
        ("about.classes", [1]),
        ("about.palette", [[0, 0, 256]]),
        ("about.palette", [[0, 0]]),
        ("about.preprocessor", None),
        ("about.decoder", "SegmentationDecoder"),
        ("about.checkpoint", {"path": 1}),
        ("about.checkpoint_metrics", [1]),
    ],
)
def test_values_of_the_wrong_kind_are_refused(artefact: Path, field: str, value: Any) -> None:
    def change(values: dict[str, Any]) -> None:
        place, _, name = field.rpartition(".")
        (values[place] if place else values)[name] = value

    edit(artefact, change)
    with pytest.raises(UserError, match=f"'{field}.*' must be"):
        read_manifest(artefact)


@pytest.mark.parametrize(
    ("place", "config", "message"),
    [
        ("decoder", {"type": "os.system"}, "is not a known decoder"),
        ("decoder", {"type": "ArtefactDecoderr"}, "Did you mean 'ArtefactDecoder'"),
        ("decoder", {"type": "ImagePreprocessor"}, "is not a known decoder"),
        ("decoder", {"threshold": 1}, "None is not a known decoder"),
        ("decoder", {"type": "ArtefactDecoder", "threshold": {"type": "os.system"}}, "about.decoder.threshold.type"),
        ("decoder", {"type": "ArtefactDecoder", "threshold": [{"type": 3}]}, r"about.decoder.threshold\[0\].type"),
        ("preprocessor", {"type": "antigravity"}, "is not a known preprocessor"),
        ("evaluator", [{"type": "ArtefactMetric"}, {"type": "this"}], "is not a known metric"),
        ("evaluator", {"type": "DumpResults", "out_file_path": "x.pkl"}, "is not a known metric"),
        ("test_dataloader", {}, "is not a known data set"),
        ("test_dataloader", {"dataset": {"type": "ArtefactData", "_scope_": "this"}}, "_scope_"),
        ("test_dataloader", {"dataset": {"type": "ArtefactData"}, "collate_fn": {"type": "os.system"}}, "collate_fn"),
        ("test_dataloader", {"dataset": {"type": "ArtefactData", "transforms": [{"type": "os.system"}]}}, "os.system"),
    ],
)
def test_only_registered_names_are_types(artefact: Path, place: str, config: Any, message: str) -> None:
    edit(artefact, lambda values: values["about"].update({place: config}))
    for read in (read_manifest, build_deployed):
        with pytest.raises(UserError, match=message):
            read(artefact)


def test_a_manifest_that_could_not_be_read_is_not_written(artefact: Path) -> None:
    before = manifest_path(artefact).read_bytes()
    for changes, message in (
        ({"decoder": {"type": "Unheard"}}, "Unheard"),
        ({"decoder": {"type": "ArtefactDecoder", "threshold": len}}, r"about\.decoder\.threshold: a builtin_function"),
        ({"test_dataloader": {"dataset": {0: 1}}}, "key 0 is not a string"),
    ):
        with pytest.raises(UserError, match=message):
            write_manifest(artefact, manifest_of(artefact, about=about(**changes)))
    assert manifest_path(artefact).read_bytes() == before


def test_the_bytes_that_are_checked_are_the_bytes_that_are_loaded(artefact: Path) -> None:
    assert module.read_artefact(artefact)[1] == b"a network"


# --- whole files


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("second")
        raise ZeroDivisionError
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_is_a_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match=r"a\.txt: could not be written: the disk is full; nothing was half-written"):
        _write_partly(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(UserError, match="as it was before"):
        _write_partly(path, RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0"))
    assert path.read_text() == "old"


def _write_partly(path: Path, error: Exception) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_folder_that_is_a_file_is_a_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_folder_below_a_file_is_a_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be written"):
        write_json(tmp_path / "file" / "folder" / "a.json", {})


def test_faults_of_other_files_are_not_taken_for_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "missing.png").read_bytes()
    with pytest.raises(RuntimeError, match="shapes"), atomic_write(tmp_path / "a.txt"):
        raise RuntimeError("shapes do not fit")


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
