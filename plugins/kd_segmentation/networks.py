"""Segmentation networks: PSPNet, ESPNet, and a small encoder-decoder that trains on a CPU in seconds.

Every network gives `logits` (N, classes, h, w) at its own resolution; criterion and decoder bring them to the size they
need. PSPNet adds `aux` in train mode.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS
from kd_tasks.vision.backbones import build_backbone, kaiming_init, out_of_place, scaled
from kd_tasks.vision.pooling import region_means
from kd_tasks.vision.small import LateralDecoder, SmallEncoder

PSP_CHANNELS = {"resnet50": 512, "resnet101": 512}
PSP_CHANNELS_OTHERS = 128


class ConvBNAct(nn.Sequential):
    """Convolution without bias (padding keeps the size), batch normalisation, activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, activation: nn.Module, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), activation)


class PyramidPooling(nn.Module):
    """Averages over 1, 4, 9 and 36 regions, each projected, enlarged and joined to the input (PSPNet, section 3.2).

    The output of this module is the feature that structured distillation compares.

    Args:
        inputs: channels of the maps that come in.
        channels: channels of each projection and of the output.
        bins: regions along each side.
        dropout: probability of dropping a channel of the output in training.
    """

    def __init__(self, inputs: int, channels: int, bins: Sequence[int] = (1, 2, 3, 6), dropout: float = 0.1) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.projections = nn.ModuleList(ConvBNAct(inputs, channels, 1, nn.LeakyReLU(0.01)) for _ in self.bins)
        self.fuse = ConvBNAct(inputs + len(self.bins) * channels, channels, 3, nn.LeakyReLU(0.01))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, channels, h, w)."""
        size = maps.shape[-2:]
        levels = [
            F.interpolate(projection(region_means(maps, n, n)), size=size, mode="bilinear", align_corners=True)
            for n, projection in zip(self.bins, self.projections, strict=True)
        ]
        return self.dropout(self.fuse(torch.cat([maps, *levels], dim=1)))


@NETWORKS.register
class PSPNet(nn.Module):
    """PSPNet (Zhao et al., CVPR 2017) at output stride 8, as structured distillation (Liu et al., CVPR 2019) uses it.

    Taps: `backbone.layer1` to `backbone.layer4`, `psp` (the pyramid feature, `channels` deep), `logits`, and in train
    mode `aux`, a second prediction from `backbone.layer3`.

    *Deviations* from the authors' code of structured distillation: ordinary batch normalisation with LeakyReLU 0.01
    where that code has in-place ABN. With `stem='deep'` the geometry and the parameter counts are the same (512x512
    gives 65x65; ResNet-101 70.44 M, ResNet-18 13.07 M, both with `aux`).

    Args:
        backbone: `resnet18`, `resnet34`, `resnet50`, `resnet101` or `mobilenet_v2`.
        num_classes: channels of `logits`.
        channels: depth of the pyramid feature; None for 512 with ResNet-50 and 101, else 128, times `width`.
        aux_head: whether there is an `aux` output.
        pretrained: ImageNet weights for the backbone: True, torchvision's name of the weights, or a file.
        width: factor of the backbone's channel numbers.
        dropout: probability of dropping a channel before the classifiers, in training.
        stem: `torchvision`, one 7x7 convolution; or `deep`, three 3x3 convolutions.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        num_classes: int = 19,
        channels: int | None = None,
        aux_head: bool = True,
        pretrained: bool | str = False,
        width: float = 1.0,
        dropout: float = 0.1,
        stem: str = "torchvision",
    ) -> None:
        super().__init__()
        channels = channels or scaled(PSP_CHANNELS.get(backbone, PSP_CHANNELS_OTHERS), width)
        self.backbone = build_backbone(backbone, 8, stem, width, pretrained)
        inputs = self.backbone.channels
        self.psp = PyramidPooling(inputs[3], channels, dropout=dropout)
        self.head = nn.Conv2d(channels, num_classes, 1)
        self.aux_head = _aux_head(inputs[2], channels, num_classes, dropout) if aux_head else None
        for part in (self.psp, self.head, self.aux_head):
            if part is not None:
                kaiming_init(part)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W), each side at least 32, to `logits` (N, classes, H / 8, W / 8), rounded up."""
        *_, third, fourth = self.backbone(images)
        outputs = {"logits": self.head(self.psp(fourth))}
        if self.training and self.aux_head is not None:
            outputs["aux"] = self.aux_head(third)
        return outputs


class EfficientSpatialPyramid(nn.Module):
    """Reduce, split, transform, merge (ESPNet, section 3): dilated 3x3 convolutions side by side on a narrow input.

    The branches have dilations 1, 2, 4, 8 and 16; all but the first are summed hierarchically before they are
    concatenated, which removes the gridding of large dilations.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: 2 for a 3x3 reduction that halves the size, else 1.
        residual: add the input to the merged branches; needs `inputs == outputs`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual and stride == 1 and inputs == outputs
        branches = min(5, outputs)
        narrow = outputs // branches
        kernel = 3 if stride == 2 else 1
        self.reduce = nn.Conv2d(inputs, narrow, kernel, stride=stride, padding=kernel // 2, bias=False)
        widths = [outputs - (branches - 1) * narrow] + [narrow] * (branches - 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(narrow, width, 3, padding=2**i, dilation=2**i, bias=False) for i, width in enumerate(widths)
        )
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.PReLU(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        reduced = self.reduce(maps)
        first, *others = (branch(reduced) for branch in self.branches)
        merged = torch.cat([first, *itertools.accumulate(others)], dim=1)
        return self.act(self.norm(maps + merged if self.residual else merged))


@NETWORKS.register
class ESPNet(nn.Module):
    """ESPNet (Mehta et al., ECCV 2018), and ESPNet-C, its encoder with a classifier.

    The image, averaged down, is joined to the features at each size (input reinforcement), and each level's first
    features to its last. Taps: `level1`, `level2`, `level3`, `logits`.

    *Deviations*: any image size; where a side is odd, what the transposed convolutions give is cut to size. With fewer
    than five output channels a pyramid has as many branches as channels.

    Args:
        num_classes: channels of `logits`.
        p: pyramid modules at stride 4 (α₂ in the paper).
        q: pyramid modules at stride 8 (α₃ in the paper).
        decoder: True for `logits` at the image's size; False for ESPNet-C, `logits` at an eighth of it.
    """

    def __init__(self, num_classes: int = 19, p: int = 2, q: int = 8, decoder: bool = True) -> None:
        super().__init__()
        self.level1 = ConvBNAct(3, 16, 3, nn.PReLU(16), stride=2)
        self.join1 = _norm_act(16 + 3)
        self.down2 = EfficientSpatialPyramid(16 + 3, 64, stride=2)
        self.level2 = nn.Sequential(*(EfficientSpatialPyramid(64, 64) for _ in range(p)))
        self.join2 = _norm_act(2 * 64 + 3)
        self.down3 = EfficientSpatialPyramid(2 * 64 + 3, 128, stride=2)
        self.level3 = nn.Sequential(*(EfficientSpatialPyramid(128, 128) for _ in range(q)))
        self.join3 = _norm_act(2 * 128)
        self.classifier = nn.Conv2d(2 * 128, num_classes, 1, bias=False)
        self.shrink = nn.AvgPool2d(3, stride=2, padding=1)
        self.decoder = ESPDecoder(num_classes) if decoder else None
        kaiming_init(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `logits` (N, classes, H, W), or (N, classes, H / 8, W / 8) without the decoder."""
        half = self.shrink(images)
        first = self.join1(torch.cat([self.level1(images), half], dim=1))
        start2 = self.down2(first)
        second = self.join2(torch.cat([self.level2(start2), start2, self.shrink(half)], dim=1))
        start3 = self.down3(second)
        logits = self.classifier(self.join3(torch.cat([start3, self.level3(start3)], dim=1)))
        if self.decoder is None:
            return {"logits": logits}
        return {"logits": self.decoder(logits, second, first, images)}


class ESPDecoder(nn.Module):
    """Light decoder of ESPNet: class maps are doubled three times and joined to the encoder's features on the way."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm3 = nn.BatchNorm2d(num_classes)
        self.up3 = nn.ConvTranspose2d(num_classes, num_classes, 2, stride=2, bias=False)
        self.project2 = nn.Conv2d(2 * 64 + 3, num_classes, 1, bias=False)
        self.join2 = nn.Sequential(
            _norm_act(2 * num_classes), EfficientSpatialPyramid(2 * num_classes, num_classes, residual=False)
        )
        self.up2 = nn.ConvTranspose2d(num_classes, num_classes, 2, stride=2, bias=False)
        self.act2 = _norm_act(num_classes)
        self.join1 = ConvBNAct(num_classes + 16 + 3, num_classes, 3, nn.PReLU(num_classes))
        self.up1 = nn.ConvTranspose2d(num_classes, num_classes, 2, stride=2, bias=False)

    def forward(self, logits: Tensor, second: Tensor, first: Tensor, images: Tensor) -> Tensor:
        """Class maps at stride 8, features at stride 4 and 2, and the images, to class maps of the images' size."""
        maps = cut(self.up3(self.norm3(logits)), second)
        maps = self.join2(torch.cat([self.project2(second), maps], dim=1))
        maps = self.act2(cut(self.up2(maps), first))
        maps = self.join1(torch.cat([maps, first], dim=1))
        return cut(self.up1(maps), images)


@NETWORKS.register
class SmallSegNet(nn.Module):
    """A small residual encoder-decoder for demonstrations and tests; `width` makes the teacher and the student.

    With `depth=1` 1.29 M parameters at width 32, 0.73 M at 24, 0.08 M at 8, 0.05 M at 6; multiples of 8 run fastest.
    Taps: `encoder.stage1` to `encoder.stage4`, `decoder` (2·width channels at stride 4), `logits`.

    Args:
        num_classes: channels of `logits`.
        width: channels of the first stage.
        depth: residual blocks in each stage.
    """

    def __init__(self, num_classes: int = 11, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise UserError(f"SmallSegNet: width and depth are at least 1, but are {width} and {depth}.")
        self.encoder = SmallEncoder(width, depth)
        self.decoder = LateralDecoder(self.encoder.channels[1:], 2 * width)
        self.head = nn.Conv2d(2 * width, num_classes, 1)
        kaiming_init(self)
        out_of_place(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `logits` (N, classes, H / 4, W / 4), rounded up."""
        return {"logits": self.head(self.decoder(self.encoder(images)[1:]))}


def cut(maps: Tensor, like: Tensor) -> Tensor:
    """The upper left part of `maps` that has the height and width of `like`."""
    return maps[..., : like.shape[-2], : like.shape[-1]]


def _aux_head(inputs: int, channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    features = ConvBNAct(inputs, channels, 3, nn.LeakyReLU(0.01))
    return nn.Sequential(features, nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))


def _norm_act(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.PReLU(channels))
