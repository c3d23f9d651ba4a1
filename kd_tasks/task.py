"""The task model: network, criterion, decoder and preprocessor, in one mmengine model.

The same preprocessor and decoder serve training, testing and the exported artefact; only the network is replaced.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import FUNCTIONS
from torch import Tensor, nn

from kd_tasks.registry import CRITERIA, DECODERS, NETWORKS, PREPROCESSORS, TASK_MODELS

Outputs = dict[str, Tensor]
Meta = dict[str, Any]
Prediction = dict[str, Any]


class Criterion(Protocol):
    """Task losses of a batch: `criterion(outputs, targets) -> dict of scalars`.

    One that leaves out outputs which the network computes says so by an attribute `skips_outputs`, true then: what only
    they need gets no gradient, which data-parallel training has to know.
    """

    def __call__(self, outputs: Outputs, targets: Mapping[str, Any]) -> dict[str, Tensor]: ...


class Decoder(Protocol):
    """Predictions in the coordinates of the original images: `decoder(outputs, meta) -> one dict a sample`."""

    def __call__(self, outputs: Outputs, meta: Sequence[Meta]) -> list[Prediction]: ...


@FUNCTIONS.register_module()
def collate_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join samples `dict(inputs, targets, meta)` into a batch; tensors of one shape are stacked, others stay a list."""
    targets = {key: _stack([s["targets"][key] for s in samples]) for key in samples[0]["targets"]}
    return {
        "inputs": _stack([s["inputs"] for s in samples]),
        "targets": targets,
        "meta": [s["meta"] for s in samples],
    }


def _stack(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor) and all(v.shape == values[0].shape for v in values):
        return torch.stack(values)
    return values


@PREPROCESSORS.register
class ImagePreprocessor(BaseDataPreprocessor):
    """Moves a batch to the device, pads images to one size and normalises them: `(image - mean) / std`.

    Args:
        mean: per channel, RGB, in the range 0 to 255.
        std: per channel, RGB, in the range 0 to 255.
        pad_divisor: pad height and width to a multiple of this, at the right and the bottom, with the mean colour.
        channels_last: hand the images on in the channels-last memory format; the network's weights follow. On CPUs with
            AVX-512, oneDNN as of torch 2.15 corrupts memory in strided 1x1 convolutions of fewer than 16 channels then.
    """

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        pad_divisor: int = 1,
        channels_last: bool = False,
    ) -> None:
        super().__init__(non_blocking=True)
        self.pad_divisor = pad_divisor
        self.channels_last = channels_last
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """`data` as `collate_samples` gives it, `inputs` uint8 RGB; returns it with float `inputs` (N, 3, H, W).

        Every meta dict gets `padded_size` (H, W), which a decoder needs to cut the padding off.
        """
        # not meta: its lists, such as the points of lanes, would be looked through number by number
        batch = {name: value if name == "meta" else self.cast_data(value) for name, value in data.items()}
        images = self._one_size(batch["inputs"])
        if "meta" in batch:
            batch = {**batch, "meta": [{**m, "padded_size": tuple(images.shape[-2:])} for m in batch["meta"]]}
        return {**batch, "inputs": self.normalise(images)}

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 or float images in 0..255 to the network's input."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return ((images - self.mean) / self.std).contiguous(memory_format=layout)

    def _one_size(self, images: Tensor | list[Tensor]) -> Tensor:
        sizes = [image.shape[-2:] for image in images]
        height, width = (self._rounded(max(size[i] for size in sizes)) for i in (0, 1))
        if isinstance(images, Tensor) and images.shape[-2:] == (height, width):
            return images
        canvas = self.mean.expand(len(images), -1, height, width).clone()
        for place, image in zip(canvas, images, strict=True):
            place[:, : image.shape[-2], : image.shape[-1]] = image
        return canvas

    def _rounded(self, length: int) -> int:
        return -(-length // self.pad_divisor) * self.pad_divisor


@TASK_MODELS.register
class TaskModel(BaseModel):
    """A network with what it takes to train, test and deploy it.

    Args:
        network: `nn.Module` or its config: images (N, 3, H, W) in, dict of named outputs out.
        criterion: task losses, or its config.
        decoder: predictions from outputs, or its config.
        data_preprocessor: batch to device and to the network's input, or its config.
        checkpoint: weights of the network to start from; a `student.pth` or a run's checkpoint.
    """

    def __init__(
        self,
        network: nn.Module | dict[str, Any],
        criterion: Criterion | dict[str, Any] | None = None,
        decoder: Decoder | dict[str, Any] | None = None,
        data_preprocessor: nn.Module | dict[str, Any] | None = None,
        checkpoint: str | None = None,
    ) -> None:
        preprocessor = data_preprocessor if data_preprocessor is not None else {"type": "ImagePreprocessor"}
        super().__init__(data_preprocessor=_built(preprocessor, PREPROCESSORS.build, "model.data_preprocessor"))
        self.network: nn.Module = _built(network, NETWORKS.build, "model.network")
        self.follow_layout(self.network)
        self.criterion = _built(criterion, CRITERIA.build, "model.criterion")
        self.decoder = _built(decoder, DECODERS.build, "model.decoder")
        if checkpoint is not None:
            from kd_tasks.engine.checkpoints import load_network

            load_network(self.network, checkpoint)

    def forward(
        self,
        inputs: Tensor,
        targets: Mapping[str, Any] | None = None,
        meta: Sequence[Meta] | None = None,
        mode: str = "tensor",
    ) -> Outputs | dict[str, Tensor] | list[Prediction]:
        """Outputs (`tensor`), losses (`loss`) or predictions (`predict`) for preprocessed images.

        Args:
            inputs: (N, 3, H, W), normalised.
            targets: what the criterion reads, for `loss`.
            meta: one dict a sample with `original_size` (H, W) and `input_size` (H, W before padding), for `predict`.
            mode: `tensor`, `loss` or `predict`.
        """
        if mode == "loss":
            return self.losses(inputs, targets or {}, meta or ())
        outputs = self.network(inputs)
        if mode == "tensor":
            return outputs
        if mode == "predict":
            if self.decoder is None:
                raise ValueError("this model has no decoder, so it can give outputs but no predictions")
            return self.decoder(outputs, meta or [])
        raise ValueError(f"mode is {mode!r}; it can be 'tensor', 'loss' or 'predict'")

    def losses(self, inputs: Tensor, targets: Mapping[str, Any], meta: Sequence[Meta] = ()) -> dict[str, Tensor]:
        """Every term of the objective, weighted, by name; their sum is minimised."""
        return self.criterion(self.network(inputs), targets)

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of *all* terms, whatever their names, and the terms for the log."""
        total = torch.stack([value.float() for value in losses.values()]).sum()
        terms = {"loss": total} | losses | {"loss": total}  # first in the log, and hidden by no term of that name
        return total, {name: value.detach() for name, value in terms.items()}

    @property
    def skips_parameters(self) -> bool:
        """Whether some parameters get no gradient in some iterations."""
        return bool(getattr(self.criterion, "skips_outputs", False))

    @classmethod
    def refuse_unfit(cls, model: Mapping[str, Any], train_cfg: Mapping[str, Any]) -> None:
        """Look at a config before anything is built; a method with options of its own says what does not fit.

        Args:
            model: the model's part of the config.
            train_cfg: the training's.

        Raises:
            UserError: for options that do not fit together or to the training; begins with the config key.
        """

    def follow_layout(self, network: nn.Module) -> None:
        """Hold a network's weights in the memory format in which the preprocessor hands on images."""
        if getattr(self.data_preprocessor, "channels_last", False):
            network.to(memory_format=torch.channels_last)

    def init_weights(self) -> None:
        """Nothing: a network has its weights when it is built. mmengine's own pass would overwrite loaded ones."""

    def deployed(self) -> "TaskModel":
        """The task model whose network is exported and tested: itself; a distiller answers with its student."""
        return self


def _built(part: Any, build: Callable[..., Any], where: str) -> Any:
    return build(part, where) if isinstance(part, Mapping) else part


def resized_logits(logits: Tensor, meta: Meta, align_corners: bool) -> Tensor:
    """Maps (..., C, h, w) of padded samples at their original size (..., C, H, W): padding cut off, then bilinear.

    `meta` holds for all samples: `original_size`, `input_size` and, where images were padded, `padded_size`.
    """
    height, width = meta["input_size"]
    padded = tuple(meta.get("padded_size", (height, width)))
    maps = logits if logits.dim() == 4 else logits[None]
    if padded != (height, width):
        maps = _enlarged(maps, padded, align_corners)[..., :height, :width]
    maps = _enlarged(maps, tuple(meta["original_size"]), align_corners)
    return maps if logits.dim() == 4 else maps[0]


def _enlarged(maps: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)
