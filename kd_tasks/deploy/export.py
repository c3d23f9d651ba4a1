"""Export of a task model's network: one file, checked against the network it came from, with its manifest."""

import contextlib
import copy
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from kd_tasks.deploy.artefact import BATCH, FORMATS, About, Manifest, TensorSpec, manifest_path, manifest_text
from kd_tasks.deploy.quantise import quantise
from kd_tasks.deploy.runtimes import largest_differences, network_of, quiet
from kd_tasks.engine.files import atomic_write, sha256_of
from kd_tasks.errors import UserError, nearest
from kd_tasks.task import Outputs, TaskModel

INPUT = "image"
OPSET = 20
TOLERANCE = 1e-3


def export(
    model: TaskModel,
    path: str | Path,
    input_size: Sequence[int],
    format: str = "onnx",
    about: About | None = None,
    inputs: Tensor | None = None,
    calibration: Iterable[Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the network of `model` to `path`, and its manifest beside it. `model` is left as it was.

    A float32 copy in eval mode is exported, with a batch of any size; a network that has a method `deploy` drops by it
    what only training needs. The file is then read back and compared with
    the network, on noise and on `inputs`, before it takes the place of an older one.

    Args:
        model: the task model, or a distiller, whose student is exported.
        path: the file to write.
        input_size: (H, W) of RGB images, or the whole shape of one input, such as (C, H, W).
        format: `onnx` (opset 20, weights inside) or `pt2` (`torch.export`).
        about: what the manifest says about task, data and checkpoint.
        inputs: normalised images (N, C, H, W) to compare on, beside noise.
        calibration: batches of normalised images; with them the file is quantised to int8 (ONNX only).
        progress: called with the number of calibration batches read.

    Returns:
        `path`.

    Raises:
        UserError: if the network cannot be exported; if an output differs by more than 1e-3, relative to the largest
            value of that output where it exceeds 1; if the file cannot be written.
    """
    path = Path(path)
    if format not in FORMATS:
        raise UserError(f"{format!r} is not a format of artefacts.{nearest(format, FORMATS)} Formats: onnx, pt2.")
    if calibration is not None:
        if format != "onnx":
            raise UserError("int8 needs the format 'onnx'; an exported program (.pt2) stays float32.")
        return _export_int8(model, path, input_size, about, inputs, calibration, progress)

    shape = (3, *input_size) if len(input_size) == 2 else tuple(input_size)
    network = _float_copy(model.deployed().network)
    samples = [_noise(1, shape), _noise(3, shape)] + ([] if inputs is None else [inputs.detach().cpu().float()])
    references = [_outputs(network, sample) for sample in samples]
    specs = tuple(_spec(name, references[0][name], references[1][name]) for name in references[0])
    image = TensorSpec(INPUT, (BATCH, *shape), "float32")

    with atomic_write(path) as temporary, atomic_write(manifest_path(path)) as sheet:
        with quiet():
            (_write_onnx if format == "onnx" else _write_pt2)(network, _noise(2, shape), list(references[0]), temporary)
        written = network_of(temporary.read_bytes(), format, image, [s.name for s in specs], path.name)
        differences = largest_differences(written, samples, references)
        _check(differences, references, path)
        manifest = Manifest(
            format=format,
            precision="float32",
            sha256=sha256_of(temporary),
            size_bytes=temporary.stat().st_size,
            inputs=(image,),
            outputs=specs,
            about=about or About(),
            differences=differences,
        )
        sheet.write_text(manifest_text(manifest, path), encoding="utf-8")
    return path


def _export_int8(
    model: TaskModel,
    path: Path,
    input_size: Sequence[int],
    about: About | None,
    inputs: Tensor | None,
    calibration: Iterable[Tensor],
    progress: Callable[[int], None] | None,
) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        whole = export(model, Path(folder) / "float32.onnx", input_size, "onnx", about, inputs)
        return quantise(whole, calibration, path, progress=progress)


def _check(differences: dict[str, float], references: Sequence[Outputs], path: Path) -> None:
    for name, difference in differences.items():
        largest = max(float(r[name].abs().max()) if r[name].numel() else 0.0 for r in references)
        if not difference <= TOLERANCE * max(1.0, largest):
            raise UserError(
                f"{path}: not written: the output {name!r} of the exported file differs from the network's by "
                f"{difference:.3g} (values up to {largest:.3g}). Try the other format, and report the layer."
            )


def _float_copy(network: nn.Module) -> nn.Module:
    copied = copy.deepcopy(network).to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
    reduce = getattr(copied, "deploy", None)
    if reduce is not None:
        reduce()
    return copied.eval().requires_grad_(False)


def _noise(batch: int, shape: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *shape, generator=generator)


def _outputs(network: nn.Module, sample: Tensor) -> Outputs:
    with torch.no_grad():
        outputs = network(sample)
    if not isinstance(outputs, dict) or not all(isinstance(value, Tensor) for value in outputs.values()):
        raise UserError(
            f"{type(network).__name__} gives a {type(outputs).__name__}; "
            "a network that is exported gives a dict of tensors."
        )
    return {name: value.clone() for name, value in outputs.items()}


def _spec(name: str, of_one: Tensor, of_three: Tensor) -> TensorSpec:
    shape = tuple(a if a == b else BATCH for a, b in zip(of_one.shape, of_three.shape, strict=True))
    return TensorSpec(name, shape, str(of_one.dtype).removeprefix("torch."))


class _Tuple(nn.Module):
    """The network with its outputs as a tuple, which is what ONNX has."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(image).values())


def _write_onnx(network: nn.Module, example: Tensor, names: list[str], path: Path) -> None:
    import onnx

    with _explained("ONNX"):
        program = torch.onnx.export(
            _Tuple(network).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=names,
            dynamic_shapes=({0: Dim(BATCH, min=1)},),
            opset_version=OPSET,
        )
        assert program is not None
        proto = program.model_proto
        for graph in (proto.graph, *proto.functions):
            _forget_sources(graph)
        content = proto.SerializeToString()
    path.write_bytes(content)
    onnx.checker.check_model(content)


def _forget_sources(graph: Any) -> None:
    """Drop stack traces and module paths: they tell of the machine of export and are of no use elsewhere."""
    lists = [getattr(graph, name, ()) for name in ("node", "input", "output", "value_info", "initializer")]
    for item in (graph, *(item for items in lists for item in items)):
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget_sources(attribute.g)


def _write_pt2(network: nn.Module, example: Tensor, names: list[str], path: Path) -> None:
    with _explained("pt2"):
        program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim(BATCH, min=1)},))
        for node in program.graph.nodes:
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                node.meta.pop(key, None)
        program._example_inputs = None
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


@contextlib.contextmanager
def _explained(format: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the exporters raise whatever the traced code raises
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise UserError(
            f"the network cannot be exported as {format}: {type(cause).__name__}: {reason} "
            "What depends on the values of tensors (loops, selections, sizes) belongs in the decoder."
        ) from error
