"""The codec of networks that give, for every point, a distribution over the positions of the map."""

import math

import torch
from torch import Tensor

from kd_tasks.registry import CODECS
from kd_tasks.vision.heatmaps.base import Size, offsets, strides
from kd_tasks.vision.heatmaps.gaussian import outer
from kd_tasks.vision.heatmaps.peak import PeakHeatmap

TINY = 1e-30


@CODECS.register
class SoftmaxHeatmap(PeakHeatmap):
    """A distribution over the positions of the map, of which the network gives logits; the target is a Gaussian.

    Its task loss is the cross-entropy between both, `HeatmapLoss(kind='cross_entropy')`, and distillation over
    positions compares the same distributions. From a random start it gets to usable points several times as fast as
    the squared error of maps, most of whose pixels are empty. `decode` is the mean of the distribution around its
    maximum, as `PeakHeatmap` reads a map; the score is the probability there. Pixel x of the input is
    (x + 0.5) / stride - 0.5 in the map. Mirroring is exact; maps of a mirrored picture are averaged as logits.

    Args:
        sigma: of the target, in pixels of the *input*.
        radius: of the patch around the peak, pixels of the map; 4 gives 9 x 9.
    """

    logits = True

    def __init__(self, sigma: float = 6.0, radius: int = 4) -> None:
        super().__init__(sigma, background=False, radius=radius)

    def draw(self, centres: Tensor, usable: Tensor, input_size: Size, map_size: Size) -> tuple[Tensor, Tensor]:
        x, y = (
            offset * stride
            for offset, stride in zip(offsets(centres, map_size), strides(input_size, map_size), strict=True)
        )
        maps = outer(x, y, self.sigma)
        total = maps.sum(dim=(-2, -1))
        weights = usable & (total > TINY)
        maps = maps / total.clamp_min(TINY)[..., None, None]
        return torch.where(weights[..., None, None], maps, 0), weights.to(centres)

    def read(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return super().read(probabilities(maps))

    def as_output(self, drawn: Tensor) -> Tensor:
        return drawn.clamp_min(TINY).log()

    def pictures(self, maps: Tensor, input_size: Size) -> Tensor:
        across, down = strides(input_size, (maps.shape[-2], maps.shape[-1]))
        return probabilities(maps) * (2 * math.pi * self.sigma**2 / (across * down))


def probabilities(maps: Tensor) -> Tensor:
    """Logits (N, C, h, w) as distributions over the positions; what is not finite counts as none."""
    return maps.nan_to_num(nan=-torch.inf, posinf=None).flatten(2).softmax(dim=-1).nan_to_num(nan=0.0).view(maps.shape)
