"""int8 by ONNX Runtime's static quantisation, with one scale a weight channel."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from kd_tasks.deploy.artefact import TensorSpec, installed_versions, manifest_path, manifest_text, read_artefact
from kd_tasks.deploy.runtimes import check_shape, largest_differences, network_of, quiet
from kd_tasks.engine.files import atomic_write, sha256_of
from kd_tasks.errors import UserError, nearest

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def quantise(
    artefact: str | Path,
    calibration_batches: Iterable[Tensor],
    path: str | Path,
    method: str = "minmax",
    float_operators: Sequence[str] = (),
    float_last_layers: bool = False,
    reduce_range: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write an int8 version of a float32 ONNX artefact to `path`, with its manifest.

    Inputs and outputs stay float32, so that preprocessor and decoder stay the same. Weights are int8 with one scale an
    output channel, activations uint8 with one scale a tensor, found on `calibration_batches`.

    Args:
        artefact: the float32 ONNX artefact.
        calibration_batches: normalised images (N, C, H, W), as the preprocessor gives them; some hundred images of the
            training data are usual. Read once.
        path: the file to write.
        method: `minmax` (the whole range), `entropy` or `percentile` (cut off outliers; slower, more memory).
        float_operators: ONNX operator types to leave in float32, such as `Resize`.
        float_last_layers: leave the layers next to the outputs in float32, which are often the most sensitive.
        reduce_range: weights in 7 bits. CPUs without VNNI add 8-bit products in 16 bits with saturation, and there
            outputs are wrong without this; on others it costs a little accuracy.
        progress: called with the number of batches read so far.

    Raises:
        UserError: if the artefact is not float32 ONNX, there are no calibration images, or an output is not finite.
    """
    artefact, path = Path(artefact), Path(path)
    manifest, content = read_artefact(artefact)
    if manifest.format != "onnx" or manifest.precision != "float32":
        raise UserError(
            f"{artefact}: int8 is made from a float32 ONNX artefact; this is {manifest.precision} {manifest.format}."
        )
    if method not in METHODS:
        raise UserError(
            f"{method!r} is no calibration method.{nearest(method, METHODS)} Methods: {', '.join(METHODS)}."
        )

    reader = _Reader(calibration_batches, manifest.inputs[0], artefact.name, progress)
    names = [output.name for output in manifest.outputs]
    with atomic_write(path) as temporary, atomic_write(manifest_path(path)) as sheet:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            checked, prepared = Path(folder) / "checked.onnx", Path(folder) / "prepared.onnx"
            checked.write_bytes(content)
            quant_pre_process(checked, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared).graph
            kept = _of_types(graph, float_operators)
            quantize_static(
                prepared,
                temporary,
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=kept + (_last_layers(graph) if float_last_layers else []),
                calibrate_method=METHODS[method],
            )
        assert reader.first is not None
        whole = network_of(content, "onnx", manifest.inputs[0], names, artefact.name)
        small = network_of(temporary.read_bytes(), "onnx", manifest.inputs[0], names, path.name)
        with torch.no_grad():
            differences = largest_differences(small, [reader.first], [whole(reader.first)])
        wrong = next((name for name, difference in differences.items() if not math.isfinite(difference)), None)
        if wrong is not None:
            raise UserError(f"{path}: not written: the int8 output {wrong!r} is not finite. Try another method.")
        changed = dataclasses.replace(
            manifest,
            precision="int8",
            sha256=sha256_of(temporary),
            size_bytes=temporary.stat().st_size,
            differences=differences,
            versions=installed_versions(),
        )
        sheet.write_text(manifest_text(changed, path), encoding="utf-8")
    return path


class _Reader(CalibrationDataReader):
    """Calibration batches in the form that ONNX Runtime asks for."""

    def __init__(
        self, batches: Iterable[Tensor], image: TensorSpec, name: str, progress: Callable[[int], None] | None
    ) -> None:
        self.first: Tensor | None = None
        self._arrays = self._read(batches, image, name, progress)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._arrays, None)

    def _read(
        self, batches: Iterable[Tensor], image: TensorSpec, name: str, progress: Callable[[int], None] | None
    ) -> Iterator[dict[str, Any]]:
        for count, batch in enumerate(batches, start=1):
            check_shape(batch, image, name)
            batch = batch.detach().to("cpu", torch.float32).contiguous()
            self.first = batch if self.first is None else self.first
            yield {image.name: batch.numpy()}
            if progress is not None:
                progress(count)
        if self.first is None:
            raise UserError(f"{name}: there are no calibration images. Give at least one batch.")


def _of_types(graph: Any, operators: Sequence[str]) -> list[str]:
    present = sorted({node.op_type for node in graph.node})
    for operator in operators:
        if operator not in present:
            raise UserError(
                f"the network has no operator {operator!r} to leave in float32.{nearest(operator, present)} "
                f"It has: {', '.join(present)}."
            )
    return [node.name for node in graph.node if node.op_type in operators]


def _last_layers(graph: Any) -> list[str]:
    """Names of the layers with weights that each output comes from, with nothing but weightless nodes in between."""
    producers = {output: node for node in graph.node for output in node.output}
    waiting, found, seen = [output.name for output in graph.output], [], set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in _LAYERS:
            found.append(node.name)
        else:
            waiting.extend(node.input)
    return found
