"""A small residual encoder and a decoder of lateral connections, for light students and networks that train on CPUs."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.vision.backbones import BasicBlock


class ConvNormAct(nn.Sequential):
    """Convolution (padding keeps the size), batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class LateralDecoder(nn.Module):
    """Adds deeper stages, projected and enlarged, to the finest one, and joins them by a 3x3 convolution.

    Cheap where the deconvolutions of simple baselines (Xiao et al., ECCV 2018) cost more than a light backbone does;
    and on small images, whose deepest stage has a few pixels, the place of a point comes from the finer stages.

    Args:
        inputs: channels of the stages, finest first.
        channels: of the maps that go out.
    """

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(n, channels, 1, bias=False) for n in inputs)
        self.fuse = ConvNormAct(channels, channels, 3)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Stages, finest first, to (N, channels, h, w) of the finest one's size."""
        maps = self.laterals[-1](stages[-1])
        for lateral, stage in zip(reversed(self.laterals[:-1]), reversed(stages[:-1]), strict=True):
            maps = lateral(stage) + F.interpolate(maps, size=stage.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse(maps)


class SmallEncoder(nn.Module):
    """Four residual stages at strides 2, 4, 8 and 16 with 1, 2, 4 and 8 times `width` channels."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.channels = tuple(width * 2**i for i in range(4))
        self.stem = ConvNormAct(3, width, 3, stride=2)
        first, second, third, fourth = self.channels
        self.stage1 = _residual_stage(width, first, 1, depth)
        self.stage2 = _residual_stage(first, second, 2, depth)
        self.stage3 = _residual_stage(second, third, 2, depth)
        self.stage4 = _residual_stage(third, fourth, 2, depth)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = self.stage1(self.stem(images))
        second = self.stage2(first)
        third = self.stage3(second)
        return first, second, third, self.stage4(third)


def _residual_stage(inputs: int, outputs: int, stride: int, depth: int) -> nn.Sequential:
    shortcut = None
    if inputs != outputs or stride != 1:  # the stride is a pooling's: see `RESNET_DIVISOR` of the backbones
        conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        shortcut = nn.Sequential(nn.AvgPool2d(1, stride=stride), conv, nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, stride=stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(depth - 1)))
