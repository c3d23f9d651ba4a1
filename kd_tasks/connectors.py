"""Connectors: small trainable modules that bring a student tap to the shape that the loss needs.

Nobody types sizes: `prepare` is called once with probed tensors, before the optimiser is built.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.errors import UserError, nearest
from kd_tasks.registry import CONNECTORS
from kd_tasks.vision.pooling import region_means


class Connector(nn.Module):
    """Base of all connectors: `connector(student tap) -> tensor`, sized by `prepare(student tap, teacher tap)`."""

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Create the layers that lead from the student's shape to the teacher's."""
        raise NotImplementedError


def size_to_reach(student: Tensor, teacher: Tensor) -> tuple[int, int] | None:
    """The height and width of the teacher's maps; None if the student's are as large, so at any picture size."""
    height, width = teacher.shape[-2:]
    return None if student.shape[-2:] == teacher.shape[-2:] else (height, width)


def resized(maps: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Maps (N, C, h, w) at `size` (H, W): averaged where they shrink on both sides, else bilinear."""
    if size is None or tuple(maps.shape[-2:]) == size:
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return region_means(maps, *size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


@CONNECTORS.register
class MatchSize(Connector):
    """Resizes student maps to the height and width of the teacher's; channels stay. Nothing to train."""

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        _need_maps(self, student, teacher)
        self.size = size_to_reach(student, teacher)

    def forward(self, student: Tensor) -> Tensor:
        return resized(student, self.size)


@CONNECTORS.register
class Conv1x1(Connector):
    """A 1x1 convolution to the teacher's channels, then a resize to its height and width if they differ.

    Args:
        norm: batch normalisation after the convolution.
        relu: ReLU at the end.
    """

    def __init__(self, norm: bool = False, relu: bool = False) -> None:
        super().__init__()
        self.norm, self.relu = norm, relu

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        _need_maps(self, student, teacher)
        self.size = size_to_reach(student, teacher)
        layers: list[nn.Module] = [nn.Conv2d(student.shape[1], teacher.shape[1], 1, bias=not self.norm)]
        if self.norm:
            layers.append(nn.BatchNorm2d(teacher.shape[1]))
        if self.relu:
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers)

    def forward(self, student: Tensor) -> Tensor:
        return resized(self.layers(student), self.size)


@CONNECTORS.register
class Regressor(Connector):
    """A convolution whose kernel and stride give the teacher's size, batch normalisation, ReLU.

    Twice the teacher's size: 3x3, stride 2. Half of it: 4x4 transposed, stride 2. Otherwise a valid convolution of
    kernel `1 + student - teacher`. FitNets (Romero et al., ICLR 2015) use the valid convolution alone, see `norm`.

    Args:
        norm: batch normalisation and ReLU after the convolution.
    """

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.norm = norm

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        _need_maps(self, student, teacher)
        channels, target = student.shape[1], teacher.shape[1]
        size, wanted = tuple(student.shape[-2:]), tuple(teacher.shape[-2:])
        conv: nn.Module
        if size == tuple(2 * n for n in wanted):
            conv = nn.Conv2d(channels, target, 3, stride=2, padding=1)
        elif tuple(2 * n for n in size) == wanted:
            conv = nn.ConvTranspose2d(channels, target, 4, stride=2, padding=1)
        elif size[0] >= wanted[0] and size[1] >= wanted[1]:
            conv = nn.Conv2d(channels, target, (1 + size[0] - wanted[0], 1 + size[1] - wanted[1]))
        else:
            raise UserError(f"connector 'Regressor' cannot bring maps of {size} to {wanted}; 'Conv1x1' can.")
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(target), nn.ReLU()) if self.norm else nn.Sequential(conv)

    def forward(self, student: Tensor) -> Tensor:
        return self.layers(student)


@CONNECTORS.register
class Linear(Connector):
    """A linear map of embeddings (N, D) to the teacher's width; maps are averaged over their pixels first."""

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        self.layer = nn.Linear(student.shape[1], teacher.shape[1])

    def forward(self, student: Tensor) -> Tensor:
        return self.layer(student.flatten(2).mean(2) if student.dim() > 2 else student)


@CONNECTORS.register
class Pool(Connector):
    """Averages maps (N, C, H, W) over their pixels to embeddings (N, C). Nothing to train."""

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Nothing to size."""

    def forward(self, student: Tensor) -> Tensor:
        return student.flatten(2).mean(2) if student.dim() > 2 else student


SHORT_NAMES = {
    "conv1x1": "Conv1x1",
    "linear": "Linear",
    "pool": "Pool",
    "regressor": "Regressor",
    "resize": "MatchSize",
}


def build_connector(cfg: str | Mapping[str, Any] | None, where: str) -> Connector | None:
    """The connector that a config names: a short name such as `conv1x1`, a dict with a `type`, or none."""
    if cfg is None:
        return None
    if isinstance(cfg, str):
        if cfg not in SHORT_NAMES:
            known = ", ".join(SHORT_NAMES)
            raise UserError(f"{where}: {cfg!r} is not a connector.{nearest(cfg, SHORT_NAMES)} Short names: {known}.")
        cfg = {"type": SHORT_NAMES[cfg]}
    return CONNECTORS.build(cfg, where)


def _need_maps(connector: nn.Module, *tensors: Tensor) -> None:
    if any(t.dim() != 4 for t in tensors):
        shapes = " and ".join(str(tuple(t.shape)) for t in tensors)
        raise UserError(f"connector {type(connector).__name__!r} joins maps (N, C, H, W), but the taps are {shapes}.")
