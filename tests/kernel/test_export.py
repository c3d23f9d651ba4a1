"""Export, runtimes, int8: the file gives what the network gives."""

import copy
import dataclasses
import io
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.deploy.artefact import About, manifest_path, read_manifest, write_manifest
from kd_tasks.deploy.export import export
from kd_tasks.deploy.latency import measure_latency
from kd_tasks.deploy.program import Program
from kd_tasks.deploy.quantise import quantise
from kd_tasks.deploy.runtimes import build_deployed, load_network
from kd_tasks.engine.files import sha256_of
from kd_tasks.errors import UserError
from kd_tasks.task import TaskModel

SIZE = (16, 24)


class Pyramid(nn.Module):
    """What real networks are made of: residual blocks, pooled context, bilinear upsampling, dropout, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.deep = nn.Sequential(nn.Conv2d(32, 64, 3, padding=2, dilation=2, groups=2), nn.BatchNorm2d(64), nn.SiLU())
        self.back = nn.Conv2d(64, 32, 1)
        self.dropout = nn.Dropout2d(0.5)
        self.head = nn.Conv2d(64, 5, 1)
        self.embed = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        stem = self.stem(x)
        deep = self.deep(stem)
        context = F.adaptive_avg_pool2d(deep, (2, 3))
        context = F.interpolate(self.back(context), size=stem.shape[2:], mode="bilinear", align_corners=True)
        first, second = (stem + self.back(deep)).to(x.dtype).chunk(2, dim=1)
        strongest, _ = second.max(dim=1, keepdim=True)
        joined = torch.cat([first * second.sigmoid(), second - strongest, context], dim=1)
        logits = self.head(self.dropout(joined))
        logits = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)
        outputs = {"logits": logits, "embedding": self.embed(deep.mean((2, 3))).reshape(x.shape[0], 2, 2)}
        return {**outputs, "aux": logits} if self.training else outputs


def pyramid() -> Pyramid:
    torch.manual_seed(0)
    network = Pyramid()
    with torch.no_grad():
        for _ in range(3):  # running statistics away from their start
            network(torch.randn(8, 3, *SIZE))
    return network


def images(batch: int, seed: int = 7) -> Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> Pyramid:
    return pyramid()


@pytest.fixture(scope="module")
def artefacts(network: Pyramid, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artefacts")
    model = TaskModel(network=network)
    return {f: export(model, folder / f"student.{f}", SIZE, f, inputs=images(2)) for f in ("onnx", "pt2")}


@pytest.fixture(scope="module")
def int8(artefacts: dict[str, Path]) -> Path:
    seen: list[int] = []
    batches = (images(8, seed) for seed in range(4))
    path = artefacts["onnx"].with_name("student.int8.onnx")
    quantise(artefacts["onnx"], batches, path, progress=seen.append)
    assert seen == [1, 2, 3, 4]
    return path


def expected(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return copy.deepcopy(network).eval()(x)


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_file_gives_what_the_network_gives(
    artefacts: dict[str, Path], network: Pyramid, format: str, batch: int
) -> None:
    outputs, reference = load_network(artefacts[format])(images(batch)), expected(network, images(batch))
    assert list(outputs) == ["logits", "embedding"]
    for name, value in reference.items():
        assert outputs[name].dtype == torch.float32
        torch.testing.assert_close(outputs[name], value, atol=1e-5, rtol=0)


def test_torch_reads_an_exported_program_too(artefacts: dict[str, Path], network: Pyramid) -> None:
    reference = expected(network, images(3))
    ours = load_network(artefacts["pt2"])(images(3))
    theirs = torch.export.load(artefacts["pt2"]).module()(images(3))
    for name, value in reference.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_task_model_around_the_file_predicts_as_before(
    artefacts: dict[str, Path], network: Pyramid, format: str
) -> None:
    deployed, manifest = build_deployed(artefacts[format])
    batch = {"inputs": torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8), "targets": {}, "meta": [{}, {}]}
    given = deployed.data_preprocessor(batch)["inputs"]
    torch.testing.assert_close(deployed(given)["logits"], expected(network, given)["logits"], atol=1e-4, rtol=0)
    assert manifest.format == format


def test_export_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    network = pyramid().bfloat16().to(memory_format=torch.channels_last)
    network.stem.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [part.training for part in network.modules()]
    path = export(TaskModel(network=network), tmp_path / "s.pt2", SIZE, "pt2")
    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.head.weight.dtype == torch.bfloat16
    reference = expected(copy.deepcopy(network).float(), images(2))
    torch.testing.assert_close(load_network(path)(images(2))["logits"], reference["logits"], atol=1e-5, rtol=0)


def test_the_onnx_file_is_whole_named_dynamic_and_says_nothing_of_the_machine(artefacts: dict[str, Path]) -> None:
    proto = onnx.load(artefacts["onnx"], load_external_data=False)
    assert not any(tensor.HasField("data_location") and tensor.data_location for tensor in proto.graph.initializer)
    assert next(o.version for o in proto.opset_import if o.domain == "") >= 20
    (image,) = proto.graph.input
    assert image.name == "image"
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["batch", 3, *SIZE]
    assert [output.name for output in proto.graph.output] == ["logits", "embedding"]
    for artefact in artefacts.values():
        assert str(Path(__file__).parent).encode() not in artefact.read_bytes()
        assert b"site-packages" not in artefact.read_bytes()
        assert sorted(p.name for p in artefact.parent.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_another_image_size_is_refused_with_both_shapes(artefacts: dict[str, Path], format: str) -> None:
    with pytest.raises(UserError, match=r"\(batch, 3, 16, 24\) and was given \(1, 3, 8, 8\)"):
        load_network(artefacts[format])(torch.zeros(1, 3, 8, 8))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x * 2 if x.sum() > 0 else x}


class Listing(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


@pytest.mark.parametrize(
    ("network", "message"), [(Branching(), "belongs in the decoder"), (Listing(), "dict of tensors")]
)
def test_what_cannot_be_exported_is_refused_and_leaves_no_file(
    network: nn.Module, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        export(TaskModel(network=network), tmp_path / "s.pt2", SIZE, "pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kd_tasks.deploy.export as module

    write = module._write_pt2

    def write_wrong(network: nn.Module, *rest: Any) -> None:
        wrong = copy.deepcopy(network)
        with torch.no_grad():
            wrong.embed.bias += 0.01
        write(wrong, *rest)

    old = tmp_path / "s.pt2"
    old.write_bytes(b"old")
    monkeypatch.setattr(module, "_write_pt2", write_wrong)
    with pytest.raises(UserError, match=r"output 'embedding' .* differs .* by 0\.01"):
        export(TaskModel(network=pyramid()), old, SIZE, "pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["s.pt2"]
    assert old.read_bytes() == b"old"


def test_outputs_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    network = pyramid()
    with torch.no_grad():
        network.head.bias[0] = torch.nan
    with pytest.raises(UserError, match="logits"):
        export(TaskModel(network=network), tmp_path / "s.pt2", SIZE, "pt2")


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'onnx'"):
        export(TaskModel(network=Listing()), tmp_path / "s", SIZE, "onxx")


# --- int8


def test_int8_is_smaller_and_close(artefacts: dict[str, Path], int8: Path, network: Pyramid) -> None:
    outputs, reference = load_network(int8)(images(5)), expected(network, images(5))
    for name, value in reference.items():
        error = (outputs[name] - value).square().mean() / value.var()
        assert 0 < error < 0.01, name
    whole, small = onnx.load(artefacts["onnx"]), onnx.load(int8)
    weights = sum(len(t.raw_data) for t in whole.graph.initializer if len(t.dims) == 4)
    quantised = sum(len(t.raw_data) for t in small.graph.initializer if len(t.dims) == 4)
    assert quantised * 4 == weights
    assert int8.stat().st_size < 0.6 * artefacts["onnx"].stat().st_size
    manifest = read_manifest(int8)
    assert (manifest.precision, manifest.format) == ("int8", "onnx")
    assert manifest.outputs == read_manifest(artefacts["onnx"]).outputs
    assert 0 < manifest.differences["logits"] < 0.5


def test_layers_can_stay_float(artefacts: dict[str, Path], tmp_path: Path) -> None:
    path = quantise(
        artefacts["onnx"],
        [images(4)],
        tmp_path / "s.onnx",
        method="percentile",
        float_operators=["Resize"],
        float_last_layers=True,
    )
    graph = onnx.load(path).graph
    types = {t.name: t.data_type for t in graph.initializer}
    shapes = {tuple(t.dims): types[t.name] for t in graph.initializer}
    assert shapes[(5, 64, 1, 1)] == onnx.TensorProto.FLOAT
    assert shapes[(32, 3, 3, 3)] == onnx.TensorProto.INT8
    with pytest.raises(UserError, match="no operator 'Resise' to leave in float32"):
        quantise(artefacts["onnx"], [images(4)], path, float_operators=["Resise"])


def test_int8_refuses_what_it_cannot_do(artefacts: dict[str, Path], int8: Path, tmp_path: Path) -> None:
    for artefact, batches, method, message in (
        (artefacts["pt2"], [images(1)], "minmax", "float32 ONNX artefact; this is float32 pt2"),
        (int8, [images(1)], "minmax", "this is int8 onnx"),
        (artefacts["onnx"], [], "minmax", "no calibration images"),
        (artefacts["onnx"], [torch.zeros(1, 3, 8, 8)], "minmax", r"was given \(1, 3, 8, 8\)"),
        (artefacts["onnx"], [images(1)], "maxmin", "Did you mean 'minmax'"),
    ):
        with pytest.raises(UserError, match=message):
            quantise(artefact, batches, tmp_path / "x.onnx", method)
    assert list(tmp_path.iterdir()) == []


# --- files that mean harm


class Harm:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def pickled(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Harm(mark), buffer)
    return buffer.getvalue()


def rewritten(artefact: Path, to: Path, members: dict[str, bytes | tuple[bytes, bytes]]) -> Path:
    """A copy of a `.pt2` with members replaced or edited, and a manifest that says that its hash is right."""
    with zipfile.ZipFile(artefact) as old, zipfile.ZipFile(to, "w") as new:
        names = {name.partition("/")[2]: name for name in old.namelist()}
        for member in {*names, *members}:
            content = old.read(names[member]) if member in names else b""
            change = members.get(member, content)
            if isinstance(change, tuple):
                assert change[0] in content
                change = content.replace(*change)
            new.writestr(f"archive/{member}", change)
    manifest = read_manifest(artefact)
    write_manifest(to, dataclasses.replace(manifest, sha256=sha256_of(to), size_bytes=to.stat().st_size))
    return to


def test_torch_itself_would_run_the_code_in_example_inputs(
    artefacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    bad = rewritten(artefacts["pt2"], tmp_path / "bad.pt2", {"data/sample_inputs/model.pt": pickled(mark)})
    load_network(bad)(images(1))  # ours never reads example inputs
    assert not mark.exists()
    # torch 2.14 warns of it by a faulty format string, which pytest raises where the warning reaches it
    monkeypatch.setattr(logging.getLogger("torch._export.serde.serialize"), "disabled", True)
    with pytest.raises(AssertionError):  # a Path is no tuple of inputs, but by then it has run
        torch.export.load(bad)
    assert mark.exists()


def test_a_pickle_among_the_weights_is_refused(artefacts: dict[str, Path], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    changes: dict[str, Any] = {
        "data/weights/weight_0": pickled(mark),
        "data/weights/model_weights_config.json": (b'"use_pickle": false', b'"use_pickle": true'),
    }
    bad = rewritten(artefacts["pt2"], tmp_path / "bad.pt2", changes)
    with pytest.raises(UserError, match="pickled data"):
        load_network(bad)
    assert not mark.exists()


@pytest.mark.parametrize(
    "target",
    [
        b"torch.os.system",
        b"torch.ops.aten.from_file.default",
        b"torch.ops.aten.save.default",
        b"torch.ops.aten.__class__.mro",
        b"torch.ops.higher_order.cond",
        b"torch.ops.prims.add.default",
        b"_operator.methodcaller",
        b"math.__loader__.load_module",
    ],
)
def test_operators_that_reach_outside_are_refused(artefacts: dict[str, Path], tmp_path: Path, target: bytes) -> None:
    change = (b'"torch.ops.aten.sigmoid.default"', b'"' + target + b'"')
    bad = rewritten(artefacts["pt2"], tmp_path / "bad.pt2", {"models/model.json": change})
    with pytest.raises(UserError, match="Export again"):
        load_network(bad)


def test_symbolic_expressions_are_never_evaluated(artefacts: dict[str, Path], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"__import__('pathlib').Path('{mark}').touch()".encode()
    with zipfile.ZipFile(artefacts["pt2"]) as file:
        content = file.read(next(n for n in file.namelist() if n.endswith("models/model.json")))
    expression = content.split(b'"expr_str": "')[1].split(b'"')[0]
    change = (b'"expr_str": "' + expression + b'"', b'"expr_str": "' + code + b'"')
    bad = rewritten(artefacts["pt2"], tmp_path / "bad.pt2", {"models/model.json": change})
    load_network(bad)(images(2))
    assert not mark.exists()


def test_compiled_libraries_are_refused(artefacts: dict[str, Path], tmp_path: Path) -> None:
    bad = rewritten(artefacts["pt2"], tmp_path / "bad.pt2", {"data/aotinductor/model/a.so": b"\x7fELF"})
    with pytest.raises(UserError, match="compiled or pickled"):
        load_network(bad)


def test_files_that_are_something_else_are_refused(artefacts: dict[str, Path], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for content in (b"", b"PK\x03\x04", pickle.dumps(Harm(mark)), pickled(mark)):
        with pytest.raises(UserError, match="not an exported program"):
            Program(content, "x.pt2")
        path = tmp_path / "x.onnx"
        path.write_bytes(content)
        changed = {"sha256": sha256_of(path), "size_bytes": len(content)}
        write_manifest(path, dataclasses.replace(read_manifest(artefacts["onnx"]), **changed))
        with pytest.raises(UserError, match="not an ONNX file"):
            load_network(path)
    assert not mark.exists()


# --- latency


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_latency(artefacts: dict[str, Path], network: Pyramid, kind: str) -> None:
    measured = copy.deepcopy(network).eval() if kind == "torch" else load_network(artefacts["onnx"], threads=1)
    before = torch.get_num_threads()
    latency = measure_latency(measured, (3, *SIZE), warmup=1, runs=20, threads=1, batch=4)
    assert torch.get_num_threads() == before
    assert 0 < latency.median_ms <= latency.p95_ms
    assert latency.throughput_img_s > 0
    assert (latency.batch, latency.threads, latency.runs) == (4, 1, 20)


def test_latency_is_the_time_of_the_call() -> None:
    import time

    latency = measure_latency(lambda x: time.sleep(0.01 * len(x)), (1,), warmup=0, runs=5, batch=2)
    assert 10 <= latency.median_ms < 20
    assert 50 < latency.throughput_img_s <= 100


def test_export_with_calibration_gives_int8_and_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(x).relu()}

    path = export(
        TaskModel(network=Small()), tmp_path / "s.onnx", SIZE, about=About(classes=["a"]), calibration=[images(3)]
    )
    assert (capfd.readouterr(), [r for r in caplog.records if r.levelname == "WARNING"]) == (("", ""), [])
    assert read_manifest(path).precision == "int8"
    assert read_manifest(path).about.classes == ["a"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.onnx", manifest_path(path).name]
