"""Networks for re-identification: images (N, 3, H, W) to one embedding a picture.

All have the same head: pooling, an optional projection to `width`, the BNNeck, a classifier of identities. Outputs:
`embedding` (N, width), for retrieval, after the neck; `features` (N, width), before it, for the triplet loss and for
distillation; `logits` (N, num_classes), if there are classes. An exported network gives `embedding` alone.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kd_tasks.errors import UserError, nearest
from kd_tasks.losses.base import full_precision
from kd_tasks.registry import NETWORKS
from kd_tasks.vision.backbones import (
    RESNET_DIVISOR,
    Backbone,
    BasicBlock,
    MobileNetV2,
    build_backbone,
    kaiming_init,
    out_of_place,
    scaled,
)

Pooling = Literal["avg", "gem"]
LAST_STRIDES = {1: 16, 2: 32}
STREAMS = 4
BOTTLENECK = 4
GATE_REDUCTION = 16
CLASSIFIER_STD = 0.01


class GeneralisedMean(nn.Module):
    """Generalised-mean pooling: `(mean of x^p)^(1/p)` with a learnt p, from average (1) towards maximum pooling.

    Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2019, equation 3. Values below
    `eps` count as `eps`.

    Args:
        p: where the exponent starts.
        eps: the smallest value.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C)."""
        powers = full_precision(maps).clamp(min=self.eps).pow(self.p)
        return powers.mean((2, 3)).pow(1 / self.p).to(maps.dtype)


class AveragePooling(nn.Module):
    """Mean over all places of a map."""

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C)."""
        return maps.mean((2, 3))


POOLINGS: dict[str, type[nn.Module]] = {"avg": AveragePooling, "gem": GeneralisedMean}


class EmbeddingNetwork(nn.Module):
    """A backbone with the head of re-identification.

    Taps: those of the backbone, `pool`, `neck`, and the outputs. The outputs are the same in training and in eval mode,
    so that a frozen teacher has `features` and `logits` too; `deploy` reduces them to `embedding`.

    Args:
        backbone: its last stage is pooled.
        num_classes: identities that the classifier tells apart; 0 for none.
        width: length of the embedding, by a projection without bias; None for the backbone's channels, unprojected.
        neck: batch normalisation between `features` and `embedding`, its bias fixed at 0 (BNNeck, Luo et al., Bag of
            Tricks, CVPRW 2019). Off, both are the same tensor.
        pooling: `avg` or `gem`.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, width: int | None, neck: bool = True, pooling: Pooling = "avg"
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if num_classes < 0 or (width is not None and width < 1):
            raise UserError(f"{name}: num_classes is at least 0 and width at least 1, not {num_classes} and {width}.")
        if pooling not in get_args(Pooling):
            raise UserError(f"{name}: pooling {pooling!r} is not known.{nearest(pooling, POOLINGS)} Known: avg, gem.")
        channels = backbone.channels[-1]
        self.width = width or channels
        self.backbone = backbone
        self.pool = POOLINGS[pooling]()
        self.project: nn.Module = nn.Identity()
        if width is not None:
            self.project = nn.Linear(channels, width, bias=False)
            nn.init.kaiming_normal_(self.project.weight, nonlinearity="linear")
        self.neck: nn.Module = nn.BatchNorm1d(self.width) if neck else nn.Identity()
        if isinstance(self.neck, nn.BatchNorm1d):
            self.neck.bias.requires_grad_(False)
        self.classifier: nn.Linear | None = None
        if num_classes > 0:
            self.classifier = nn.Linear(self.width, num_classes, bias=False)
            nn.init.normal_(self.classifier.weight, std=CLASSIFIER_STD)
        self.deployed = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `embedding` (N, width), `features` (N, width) and `logits` (N, num_classes)."""
        features = self.project(self.pool(self.backbone(images)[-1]))
        embedding = self.neck(features)
        if self.deployed:
            return {"embedding": embedding}
        outputs = {"embedding": embedding, "features": features}
        if self.classifier is not None:
            outputs["logits"] = self.classifier(embedding)
        return outputs

    def deploy(self) -> None:
        """Drop what only training needs: the classifier, and every output but `embedding`."""
        self.classifier = None
        self.deployed = True


@NETWORKS.register
class ReIDNetwork(EmbeddingNetwork):
    """ResNet or MobileNetV2 for re-identification, with last stride 1 and BNNeck (Luo et al., Bag of Tricks, 2019).

    Taps: `backbone.layer1` to `backbone.layer4`, `pool`, `neck`, `embedding`, `features`, `logits`. A MobileNetV2 keeps
    its last convolution, to 1280 channels.

    *Deviations*: with `width`, the triplet loss's `features` are what the projection gives; fast-reid takes them before
    its projection.

    Args:
        backbone: `resnet18`, `resnet34`, `resnet50`, `resnet101` or `mobilenet_v2`.
        num_classes: identities of the training data; 0 for a network without classifier.
        width: length of the embedding; None for the backbone's: 512, 2048 or 1280.
        last_stride: 1 keeps the resolution in the last stage (256x128 gives 16x8), without dilation; 2 halves it.
        neck: see `EmbeddingNetwork`.
        pooling: `avg` or `gem`.
        pretrained: ImageNet weights for the backbone: True, torchvision's name of the weights, or a file.
        width_multiplier: factor of the backbone's channel numbers.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 0,
        width: int | None = None,
        last_stride: int = 1,
        neck: bool = True,
        pooling: Pooling = "avg",
        pretrained: bool | str = False,
        width_multiplier: float = 1.0,
    ) -> None:
        if last_stride not in LAST_STRIDES:
            raise UserError(f"ReIDNetwork: last_stride is {last_stride!r}; it can be 1 or 2.")
        stride = LAST_STRIDES[last_stride]
        built: Backbone
        if backbone == "mobilenet_v2":
            built = MobileNetV2(stride, width_multiplier, pretrained, dilated=False, last_convolution=True)
        else:
            built = build_backbone(backbone, stride, "torchvision", width_multiplier, pretrained, dilated=False)
        super().__init__(built, num_classes, width, neck, pooling)


# --- OSNet -----------------------------------------------------------------------------------------------------------


class LiteConv(nn.Sequential):
    """A 3x3 convolution in two: 1x1 without activation, then depthwise 3x3, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class AggregationGate(nn.Module):
    """Weights channels by what they hold on average: a two-layer perceptron with a sigmoid, of the pooled map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // GATE_REDUCTION)
        self.weights = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Sigmoid()
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.weights(maps.mean((2, 3), keepdim=True))


class OmniScaleBlock(nn.Module):
    """Residual bottleneck whose middle has four streams of 1 to 4 lite convolutions, summed through one shared gate."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = outputs // BOTTLENECK
        self.reduce = nn.Sequential(_pointwise(inputs, middle), nn.ReLU())
        self.streams = nn.ModuleList(
            nn.Sequential(*(LiteConv(middle, middle) for _ in range(depth))) for depth in range(1, STREAMS + 1)
        )
        self.gate = AggregationGate(middle)
        self.restore = _pointwise(middle, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else _pointwise(inputs, outputs)
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        reduced = self.reduce(maps)
        streams = [stream(reduced) for stream in self.streams]
        first, *others = (self.gate(stream) for stream in streams)
        for other in others:
            first = first + other
        return self.relu(self.restore(first) + self.shortcut(maps))


class OSNetBackbone(Backbone):
    """The stages of OSNet: `layer1` and `layer2` end in a transition that halves the size, `layer4` is a 1x1."""

    strides = (8, 16, 16, 16)

    def __init__(self, width_multiplier: float) -> None:
        super().__init__()
        stem, first, second, third = (scaled(n, width_multiplier) for n in (64, 256, 384, 512))
        self.channels = (first, second, third, third)
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.layer1 = _omni_scale_stage(stem, first, transition=True)
        self.layer2 = _omni_scale_stage(first, second, transition=True)
        self.layer3 = _omni_scale_stage(second, third, transition=False)
        self.layer4 = nn.Sequential(_pointwise(third, third), nn.ReLU())
        kaiming_init(self)

    def stem_features(self, images: Tensor) -> Tensor:
        return self.stem(images)


@NETWORKS.register
class OSNet(EmbeddingNetwork):
    """OSNet (Zhou et al., Omni-Scale Feature Learning for Person Re-Identification, ICCV 2019), a light network.

    2.2 M parameters at `width_multiplier=1.0`, 1.3 M at 0.75, 0.6 M at 0.5, 0.2 M at 0.25, without a classifier; 979,
    572, 273 and 82 million multiply-adds for an image of 256x128. Taps: `backbone.layer1` to `backbone.layer4`, `pool`,
    `neck`, `embedding`, `features`, `logits`.

    *Deviations*: BNNeck where the paper has batch normalisation and ReLU after the last linear layer. There are no
    ImageNet weights: torchvision has no OSNet.

    Args:
        num_classes: identities of the training data; 0 for a network without classifier.
        width: length of the embedding; None for the backbone's channels, without a linear layer.
        width_multiplier: factor of the channel numbers of all stages.
        neck: see `EmbeddingNetwork`.
        pooling: `avg` or `gem`.
    """

    def __init__(
        self,
        num_classes: int = 0,
        width: int | None = 512,
        width_multiplier: float = 1.0,
        neck: bool = True,
        pooling: Pooling = "avg",
    ) -> None:
        super().__init__(OSNetBackbone(width_multiplier), num_classes, width, neck, pooling)


# --- A small network -------------------------------------------------------------------------------------------------


class SmallBackbone(Backbone):
    """Four residual stages at strides 2, 4, 8 and 8; channels are multiples of 16, see `RESNET_DIVISOR`."""

    strides = (2, 4, 8, 8)

    def __init__(self, width_multiplier: float, depth: int) -> None:
        super().__init__()
        first, *others = (scaled(n, width_multiplier, RESNET_DIVISOR) for n in (16, 32, 64, 128))
        self.channels = (first, *others)
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        self.layer1 = _residual_stage(first, first, 1, depth)
        self.layer2 = _residual_stage(first, others[0], 2, depth)
        self.layer3 = _residual_stage(others[0], others[1], 2, depth)
        self.layer4 = _residual_stage(others[1], others[2], 1, depth)
        kaiming_init(self)
        out_of_place(self)

    def stem_features(self, images: Tensor) -> Tensor:
        return self.stem(images)


@NETWORKS.register
class SmallReIDNet(EmbeddingNetwork):
    """A small residual network for pictures of 64x32 pixels, for demonstrations and tests on CPUs.

    0.32 M parameters with the defaults, 1.2 M with `width_multiplier=2`, 0.08 M with 0.5. Taps: `backbone.layer1` to
    `backbone.layer4`, `pool`, `neck`, `embedding`, `features`, `logits`.

    Args:
        num_classes: identities of the training data; 0 for a network without classifier.
        width: length of the embedding; None for the backbone's channels.
        width_multiplier: factor of the channel numbers 16, 32, 64 and 128, rounded to multiples of 16.
        depth: residual blocks in each stage.
        neck: see `EmbeddingNetwork`.
        pooling: `avg` or `gem`.
    """

    def __init__(
        self,
        num_classes: int = 0,
        width: int | None = 64,
        width_multiplier: float = 1.0,
        depth: int = 1,
        neck: bool = True,
        pooling: Pooling = "avg",
    ) -> None:
        if depth < 1 or width_multiplier <= 0:
            raise UserError(
                f"SmallReIDNet: depth is at least 1 and width_multiplier above 0, not {depth} and {width_multiplier}."
            )
        super().__init__(SmallBackbone(width_multiplier, depth), num_classes, width, neck, pooling)


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _omni_scale_stage(inputs: int, outputs: int, transition: bool) -> nn.Sequential:
    blocks: list[nn.Module] = [OmniScaleBlock(inputs, outputs), OmniScaleBlock(outputs, outputs)]
    if transition:
        blocks += [nn.Sequential(_pointwise(outputs, outputs), nn.ReLU()), nn.AvgPool2d(2, stride=2)]
    return nn.Sequential(*blocks)


def _residual_stage(inputs: int, outputs: int, stride: int, depth: int) -> nn.Sequential:
    shortcut = None
    if inputs != outputs or stride != 1:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, stride=stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(depth - 1)))
