"""Exported files as networks: a tensor in, a dict of named outputs out, like the network they were exported from."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from kd_tasks.deploy.artefact import Manifest, TensorSpec, read_artefact
from kd_tasks.deploy.program import Program
from kd_tasks.errors import UserError
from kd_tasks.task import Outputs, TaskModel


class OnnxNetwork(nn.Module):
    """An ONNX file in ONNX Runtime.

    Args:
        content: the bytes of the file.
        image: the input, as the manifest states it.
        name: what to call the file in messages.
        threads: threads of one operator; 0 leaves the choice to ONNX Runtime.
        cuda: compute on the first CUDA device. Falls back to the CPU never: it is an error if there is none.
    """

    def __init__(self, content: bytes, image: TensorSpec, name: str, threads: int = 0, cuda: bool = False) -> None:
        super().__init__()
        self.image = image
        self.name = name
        available = onnxruntime.get_available_providers()
        if cuda and "CUDAExecutionProvider" not in available:
            raise UserError(f"{name}: this onnxruntime cannot use CUDA (it has {', '.join(available)}).")
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise UserError(
                f"{name}: not an ONNX file that onnxruntime {onnxruntime.__version__} reads: {error}"
            ) from error
        self.output_names = [output.name for output in self.session.get_outputs()]

    def forward(self, image: Tensor) -> Outputs:
        """`image` (N, C, H, W) of the size of export; the outputs are on the device of `image`."""
        check_shape(image, self.image, self.name)
        array = image.detach().to("cpu", torch.float32).contiguous().numpy()
        results = self.session.run(self.output_names, {self.image.name: array})
        pairs = zip(self.output_names, results, strict=True)
        return {name: torch.from_numpy(result).to(image.device) for name, result in pairs}


class ExportedNetwork(nn.Module):
    """An exported program (`.pt2`), run by torch; moves between devices like any module.

    Args:
        content: the bytes of the file.
        image: the input, as the manifest states it.
        output_names: names of the outputs in the program's order.
        name: what to call the file in messages.
    """

    def __init__(self, content: bytes, image: TensorSpec, output_names: list[str], name: str) -> None:
        super().__init__()
        self.image = image
        self.name = name
        self.output_names = output_names
        self.program = Program(content, name)

    def forward(self, image: Tensor) -> Outputs:
        """`image` (N, C, H, W) of the size of export, on the device of this module."""
        check_shape(image, self.image, self.name)
        return dict(zip(self.output_names, self.program(image.float()), strict=True))


def check_shape(image: Tensor, expected: TensorSpec, name: str) -> None:
    """Refuse an image that the file was not exported for.

    Raises:
        UserError: says both shapes.
    """
    good = image.dim() == len(expected.shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(image.shape, expected.shape, strict=False)
    )
    if not good:
        wanted = ", ".join(str(size) for size in expected.shape)
        raise UserError(
            f"{name}: the file takes images ({wanted}) and was given {tuple(image.shape)}. "
            "Resize the images in the test data's transforms, or export with another input size."
        )


def load_network(artefact: str | Path, threads: int = 0, cuda: bool = False) -> nn.Module:
    """The network in `artefact`, after its manifest was checked. Runs no code from either file.

    Args:
        artefact: the exported file.
        threads: threads of one operator of ONNX Runtime; 0 leaves the choice to it. An exported program uses
            `torch.set_num_threads`.
        cuda: run an ONNX file on CUDA. An exported program is moved with `.to(device)`.

    Raises:
        UserError: as `read_manifest`, or if the file cannot be read.
    """
    manifest, content = read_artefact(artefact)
    return network_of(
        content,
        manifest.format,
        manifest.inputs[0],
        [o.name for o in manifest.outputs],
        Path(artefact).name,
        threads,
        cuda,
    )


def network_of(
    content: bytes,
    format: str,
    image: TensorSpec,
    output_names: list[str],
    name: str,
    threads: int = 0,
    cuda: bool = False,
) -> nn.Module:
    """The network in the bytes of an exported file of the format `onnx` or `pt2`, in eval mode."""
    if format == "pt2":
        return ExportedNetwork(content, image, output_names, name).eval()
    return OnnxNetwork(content, image, name, threads, cuda).eval()


def build_deployed(artefact: str | Path, threads: int = 0, cuda: bool = False) -> tuple[TaskModel, Manifest]:
    """The task model around `artefact`, with the preprocessor and the decoder of its manifest, in eval mode.

    Raises:
        UserError: as `load_network`, or if the manifest's configs do not build.
    """
    manifest, content = read_artefact(artefact)
    names = [output.name for output in manifest.outputs]
    network = network_of(content, manifest.format, manifest.inputs[0], names, Path(artefact).name, threads, cuda)
    about = manifest.about
    model = TaskModel(network=network, decoder=about.decoder, data_preprocessor=about.preprocessor)
    return model.eval(), manifest


def largest_differences(
    network: nn.Module, samples: Sequence[Tensor], references: Sequence[Outputs]
) -> dict[str, float]:
    """The largest absolute difference of each output of `network` from `references`, over all samples."""
    found: dict[str, float] = {}
    for sample, reference in zip(samples, references, strict=True):
        with torch.no_grad():
            outputs = network(sample)
        for name, expected in reference.items():
            if outputs[name].shape != expected.shape:
                raise UserError(
                    f"export: the output {name!r} of the file has the shape {tuple(outputs[name].shape)}; "
                    f"the network gives {tuple(expected.shape)}."
                )
            difference = (outputs[name].double() - expected.double()).abs()
            worst = float(difference.max()) if difference.numel() else 0.0
            # max() of Python drops a not-a-number in second place
            found[name] = worst if worst != worst else max(found.get(name, 0.0), worst)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings and log lines; errors are still logged."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
