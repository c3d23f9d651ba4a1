"""Networks for facial landmarks: images (N, 3, H, W) to heatmaps or to coordinates.

A heatmap network gives `heatmaps` (N, maps, h, w), as the codec of criterion and decoder has them; one in stages gives
those of its earlier stages in train mode, as `heatmaps_1`, `heatmaps_2` and so on. A coordinate network gives `points`
(N, K, 2): x and y as fractions of the image's width and height, `(x + 0.5) / W` of a pixel centre x. The stacked
hourglass is in `kd_tasks.vision.hourglass`, since other tasks have it too.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from kd_landmarks.markup import MARKUPS
from kd_tasks.errors import UserError, nearest
from kd_tasks.registry import NETWORKS
from kd_tasks.vision.backbones import build_backbone, kaiming_init, load_pretrained, out_of_place, scaled
from kd_tasks.vision.hourglass import Hourglass, stage_outputs
from kd_tasks.vision.pooling import region_means
from kd_tasks.vision.small import ConvNormAct, LateralDecoder, SmallEncoder

__all__ = ["CPM", "CoordinateNet", "FlipTest", "HeatmapNet", "Hourglass", "PatchScorer", "SmallLandmarkNet"]

Norm = Literal["none", "batch"]
HEAD_STD = 1e-3
VGG_CONV4_3 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512)
VGG_DIVISOR = 8
SCORER_SLOPE = 0.2
SCORER_LARGEST = 8
SMALL_STRIDES = (2, 4)


# --- Convolutional pose machine --------------------------------------------------------------------------------------


@NETWORKS.register
class CPM(nn.Module):
    """Convolutional pose machine (Wei et al., CVPR 2016) on VGG-16 to conv4_3: heatmaps at an eighth of the image.

    The first student of TS3 (Dong and Yang, ICCV 2019): 16.70 M parameters with the defaults; fixture `ts3_selection`.
    With `width=0.25` 1.22 M. Taps: `backbone.features`; `features`, which every stage reads; `stages.i`, the heatmaps
    of stage i from 0; `heatmaps`, the last of them. The authors train the stages with 4 times the learning rate of
    `backbone` and `features`, and biases with twice that of weights: `optim_wrapper.paramwise_cfg`.

    *Deviations*: `width` and `norm` are ours, and the weights start by He's rule, those of the heatmaps near 0. That
    the later stages have four 3x3 convolutions is inferred from the authors' number of parameters.

    Args:
        points: number of points.
        stages: predictions, each but the first from `features` and the one before it.
        width: factor of all channel numbers, rounded to multiples of 8.
        norm: `none` as in the papers; `batch`, batch normalisation after every convolution but the stages' last, which
            a network that starts without ImageNet weights needs.
        pretrained: ImageNet weights of VGG-16 for the backbone (with `norm='batch'` of VGG-16-BN): True, torchvision's
            name of the weights, or a file.
        maps: channels of `heatmaps`; None for one a point. A codec with a background map or with offsets needs others:
            its `channels(points)`.

    Raises:
        UserError: for sizes below 1, an unknown norm, or weights that do not fit or cannot be had.
    """

    def __init__(
        self,
        points: int = 68,
        stages: int = 3,
        width: float = 1.0,
        norm: Norm = "none",
        pretrained: bool | str = False,
        maps: int | None = None,
    ) -> None:
        super().__init__()
        maps = maps or points
        _at_least_one("CPM", points=points, stages=stages, maps=maps)
        _above_zero("CPM", width=width)
        if norm not in get_args(Norm):
            raise UserError(f"CPM: norm {norm!r} is not known.{nearest(norm, get_args(Norm))} Known: none, batch.")
        channels, wide = scaled(128, width), scaled(512, width)
        batch = norm == "batch"
        self.backbone = VGGConv4(width, batch)
        self.features = _conv_chain([(self.backbone.channels, 0), (scaled(256, width), 3), (channels, 3)], batch)
        first = [(channels, 0), *[(channels, 3)] * 4, (wide, 1)]
        later = [(channels + maps, 0), *[(channels, 7)] * 3, *[(channels, 3)] * 4, (channels, 1)]
        self.stages = nn.ModuleList(_cpm_stage(later if i else first, maps, batch) for i in range(stages))
        kaiming_init(self)
        for stage in self.stages:
            near_zero(list(stage.children())[-1])
        out_of_place(self)
        if pretrained:
            if width != 1.0:
                raise UserError(f"CPM: there are no ImageNet weights for width {width}; set pretrained=False.")
            load_pretrained(self.backbone, "vgg16_bn" if batch else "vgg16", pretrained)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W), each side at least 8, to `heatmaps` (N, maps, H / 8, W / 8), rounded down."""
        features = self.features(self.backbone(images))
        found = [self.stages[0](features)]
        for stage in self.stages[1:]:
            found.append(stage(torch.cat([features, found[-1]], dim=1)))
        return stage_outputs(found, self.training)


class VGGConv4(nn.Module):
    """VGG-16 (Simonyan and Zisserman, ICLR 2015) from conv1_1 to conv4_3, stride 8; torchvision's module names."""

    def __init__(self, width: float, norm: bool) -> None:
        super().__init__()
        plan = [part if isinstance(part, str) else scaled(part, width, VGG_DIVISOR) for part in VGG_CONV4_3]
        self.features = make_layers(plan, batch_norm=norm)
        self.channels = scaled(512, width, VGG_DIVISOR)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


# --- Light students --------------------------------------------------------------------------------------------------


@NETWORKS.register
class HeatmapNet(nn.Module):
    """A light backbone with a lateral decoder: heatmaps at a quarter of the image's size.

    Parameters with 68 points: ResNet-18 11.28 M, MobileNetV2 1.88 M, MobileNetV2 with `width=0.5` 0.54 M. Taps:
    `backbone.layer1` to `backbone.layer4`, `decoder` (`channels` deep), `heatmaps`.

    Args:
        backbone: `resnet18`, `resnet34`, `resnet50`, `resnet101` or `mobilenet_v2`.
        points: number of points.
        width: factor of the backbone's channel numbers.
        channels: of the decoder.
        pretrained: ImageNet weights for the backbone: True, torchvision's name of the weights, or a file.
        maps: channels of `heatmaps`; None for one a point. A codec with a background map or with offsets needs others:
            its `channels(points)`.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        points: int = 68,
        width: float = 1.0,
        channels: int = 64,
        pretrained: bool | str = False,
        maps: int | None = None,
    ) -> None:
        super().__init__()
        maps = maps or points
        _at_least_one("HeatmapNet", points=points, channels=channels, maps=maps)
        _above_zero("HeatmapNet", width=width)
        self.backbone = build_backbone(backbone, 32, width=width, pretrained=pretrained)
        self.decoder = LateralDecoder(self.backbone.channels, channels)
        self.head = nn.Conv2d(channels, maps, 1)
        kaiming_init(self.decoder)
        near_zero(self.head)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `heatmaps` (N, maps, H / 4, W / 4), rounded up."""
        return {"heatmaps": self.head(self.decoder(self.backbone(images)))}


@NETWORKS.register
class CoordinateNet(nn.Module):
    """A light backbone, its last maps averaged over the cells of a grid, and one linear layer: coordinates.

    The linear layer starts with every point in the middle of the image. Taps: `backbone.layer1` to `backbone.layer4`,
    `project` (`channels` deep), `points`.

    Args:
        backbone: `resnet18`, `resnet34`, `resnet50`, `resnet101` or `mobilenet_v2`.
        points: number of points.
        width: factor of the backbone's channel numbers.
        channels: to which the last maps are projected.
        grid: cells along each side. With 1 this is global average pooling, which forgets places; with as many as the
            maps have pixels they are flattened. The size of the images may change all the same.
        output_stride: 8, 16 or 32: image pixels between neighbouring pixels of the last maps.
        pretrained: ImageNet weights for the backbone: True, torchvision's name of the weights, or a file.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        points: int = 68,
        width: float = 1.0,
        channels: int = 64,
        grid: int = 4,
        output_stride: int = 16,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        _at_least_one("CoordinateNet", points=points, channels=channels, grid=grid)
        _above_zero("CoordinateNet", width=width)
        self.grid = grid
        self.backbone = build_backbone(backbone, output_stride, width=width, pretrained=pretrained, dilated=False)
        self.project = ConvNormAct(self.backbone.channels[-1], channels, 1)
        self.head = nn.Linear(channels * grid**2, 2 * points)
        kaiming_init(self.project)
        near_zero(self.head)
        nn.init.constant_(self.head.bias, 0.5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `points` (N, K, 2), fractions of width and height."""
        cells = region_means(self.project(self.backbone(images)[-1]), self.grid, self.grid)
        return {"points": self.head(cells.flatten(1)).unflatten(1, (-1, 2))}


@NETWORKS.register
class SmallLandmarkNet(nn.Module):
    """A small residual encoder with a lateral decoder, for faces of 64 to 96 pixels, demonstrations and tests on CPUs.

    With 68 points 0.33 M parameters at width 16, 0.08 M at 8, 1.30 M at 32; multiples of 8 run fastest. Taps:
    `encoder.stage1` to `encoder.stage4`, `decoder` (2·width channels), `heatmaps`.

    Args:
        points: number of points.
        width: channels of the first stage.
        depth: residual blocks in each stage.
        stride: image pixels per pixel of the heatmaps, 4 or 2. With 2 the first stage takes part in the decoder; about
            twice the work.
        maps: channels of `heatmaps`; None for one a point. A codec with a background map or with offsets needs others:
            its `channels(points)`.
    """

    def __init__(
        self, points: int = 68, width: int = 16, depth: int = 1, stride: int = 4, maps: int | None = None
    ) -> None:
        super().__init__()
        maps = maps or points
        _at_least_one("SmallLandmarkNet", points=points, width=width, depth=depth, maps=maps)
        if stride not in SMALL_STRIDES:
            raise UserError(f"SmallLandmarkNet: stride is {stride!r}; it can be 2 or 4.")
        self.skipped = SMALL_STRIDES.index(stride)
        self.encoder = SmallEncoder(width, depth)
        self.decoder = LateralDecoder(self.encoder.channels[self.skipped :], 2 * width)
        self.head = nn.Conv2d(2 * width, maps, 1)
        kaiming_init(self)
        near_zero(self.head)
        out_of_place(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `heatmaps` (N, maps, H / stride, W / stride), rounded up."""
        return {"heatmaps": self.head(self.decoder(self.encoder(images)[self.skipped :]))}


# --- The teacher of TS3 ----------------------------------------------------------------------------------------------


@NETWORKS.register
class PatchScorer(nn.Module):
    """How good heatmaps are for a face: the teacher of TS3 (Dong and Yang, ICCV 2019), built like PatchGAN's critic.

    4x4 convolutions with LeakyReLU, all but the first and the last with instance normalisation. 2.83 M parameters for
    an image with 68 maps; fixture `ts3_teacher`. Images of 64, 128 and 256 pixels give 6x6, 14x14 and 30x30 patches.
    Taps: `layers.i`.

    *Deviations*: that the image's channels come first and that the quality is the mean of the patches are choices; the
    authors' code does not show them.

    Args:
        points: number of points, with a heatmap each.
        width: channels of the first layer; the following have 2, 4, up to 8 times as many.
        halvings: layers of stride 2.
        image_channels: of the image.
        maps: number of heatmaps; None for one a point.

    Raises:
        UserError: for sizes below 1.
    """

    def __init__(
        self,
        points: int = 68,
        width: int = 64,
        halvings: int = 3,
        image_channels: int = 3,
        maps: int | None = None,
    ) -> None:
        super().__init__()
        maps = maps or points
        sizes = {"points": points, "width": width, "halvings": halvings, "image_channels": image_channels}
        _at_least_one("PatchScorer", **sizes, maps=maps)
        self.channels = image_channels + maps
        widths = [width * min(2**i, SCORER_LARGEST) for i in range(halvings + 1)]
        layers: list[nn.Module] = [_patch_conv(self.channels, widths[0], 2), nn.LeakyReLU(SCORER_SLOPE)]
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if i < halvings else 1
            layers += [_patch_conv(inputs, outputs, stride), nn.InstanceNorm2d(outputs), nn.LeakyReLU(SCORER_SLOPE)]
        layers.append(_patch_conv(widths[-1], 1, 1))
        self.layers = nn.Sequential(*layers)
        # halved so often 3 pixels are left; the layers of stride 1 take one each, and a norm needs more than one
        self.smallest = 3 * 2**halvings

    def forward(self, faces: Tensor) -> dict[str, Tensor]:
        """Images with their heatmaps (N, 3 + K, H, W) to `patches` (N, 1, p, q) and their mean, `quality` (N,).

        Raises:
            UserError: if the number of channels is another, or the images are too small.
        """
        channels, height, width = faces.shape[1:]
        if channels != self.channels:
            raise UserError(f"PatchScorer: it reads {self.channels} channels, image and heatmaps, but gets {channels}.")
        if min(height, width) < self.smallest:
            raise UserError(
                f"PatchScorer: images have at least {self.smallest} pixels a side, not {height}x{width}; take fewer "
                "halvings, or larger images."
            )
        patches = self.layers(faces)
        return {"patches": patches, "quality": patches.mean((1, 2, 3))}


# --- Flip test -------------------------------------------------------------------------------------------------------


class MergesFlipped(Protocol):
    """A codec, as far as the flip test needs one."""

    def merge_flipped(self, maps: Tensor, flipped: Tensor, swaps: Sequence[int]) -> Tensor: ...


@NETWORKS.register
class FlipTest(nn.Module):
    """In eval mode, runs `network` on the image and on its mirror image, and merges what it gives; then it is exported.

    In train mode it is `network` alone. Weights are saved and loaded under the names that they have in `network`, so
    that a checkpoint fits with and without the flip test. Module taps begin with `network.`; in eval mode they read
    both images, the mirrored ones after the others. Outputs in eval mode: `heatmaps` or `points` alone.

    Args:
        network: a network with `heatmaps` or `points`.
        swaps: index of each point's mirrored partner; its own for a point in the middle. Or the number of points of a
            known markup: 68 as in 300-W, 98 as in WFLW, 29 as in COFW, 19 as in AFLW-19.
        codec: merges the heatmaps by its `merge_flipped`; None for a network that gives `points`, which are averaged.

    Raises:
        UserError: if `swaps` does not pair points, or is the number of points of no known markup.
    """

    def __init__(self, network: nn.Module, swaps: int | Sequence[int], codec: MergesFlipped | None = None) -> None:
        super().__init__()
        self.swaps = known_swaps(swaps) if isinstance(swaps, int) else [int(i) for i in swaps]
        places = list(range(len(self.swaps)))
        if sorted(self.swaps) != places or any(self.swaps[self.swaps[i]] != i for i in places):
            raise UserError("FlipTest: swaps names the partner of each point, so that swaps[swaps[i]] is i for all i.")
        self.network = network
        self.codec = codec
        self.register_state_dict_post_hook(_without_wrapper)
        self.register_load_state_dict_pre_hook(_with_wrapper)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What `network` gives in train mode; its merged `heatmaps` or `points` in eval mode.

        Raises:
            UserError: if the network lacks what is to be merged, or has another number of points than `swaps`.
        """
        if self.training:
            return self.network(images)
        name = "points" if self.codec is None else "heatmaps"
        outputs, mirrored = self._both(images)
        if name not in outputs:
            raise UserError(
                f"FlipTest: the network gives {', '.join(outputs)}, but no {name}. "
                "It needs a codec for heatmaps, and none for points."
            )
        plain, flipped = outputs[name], mirrored[name]
        merged = self._points(plain, flipped) if self.codec is None else self._maps(plain, flipped)
        return {name: merged}

    def deploy(self) -> None:
        """Let the network drop what only training needs."""
        reduce = getattr(self.network, "deploy", None)
        if reduce is not None:
            reduce()

    def _both(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs for the images and for the mirrored ones."""
        if torch.compiler.is_exporting():  # a batch of any size cannot be doubled and halved there
            return self.network(images), self.network(images.flip(-1))
        outputs = self.network(torch.cat([images, images.flip(-1)]))
        number = len(images)
        return {k: v[:number] for k, v in outputs.items()}, {k: v[number:] for k, v in outputs.items()}

    def _maps(self, plain: Tensor, flipped: Tensor) -> Tensor:
        assert self.codec is not None
        return self.codec.merge_flipped(plain, flipped, self.swaps)

    def _points(self, plain: Tensor, flipped: Tensor) -> Tensor:
        if plain.shape[1] != len(self.swaps):
            raise UserError(f"FlipTest: the network gives {plain.shape[1]} points, but swaps has {len(self.swaps)}.")
        x, y = flipped[:, self.swaps].unbind(-1)
        return (plain + torch.stack([1 - x, y], dim=-1)) / 2


def known_swaps(points: int) -> list[int]:
    """The mirrored partners of the markup with so many points.

    Raises:
        UserError: if there is none.
    """
    if points not in MARKUPS:
        raise UserError(f"FlipTest: swaps is {points}; known are the markups of {', '.join(map(str, MARKUPS))} points.")
    return list(MARKUPS[points].swaps)


def _without_wrapper(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """State-dict hook: `network.` is left out of the names."""
    _renamed(state, f"{prefix}network.", prefix)


def _with_wrapper(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Hook before loading: names get `network.`."""
    _renamed(state, prefix, f"{prefix}network.")


def _renamed(state: dict[str, Any], old: str, new: str) -> None:
    """Replace the beginning `old` of all names in `state` by `new`, in place and in order."""
    items = [(new + key.removeprefix(old) if key.startswith(old) else key, value) for key, value in state.items()]
    state.clear()
    state.update(items)


# --- Parts -----------------------------------------------------------------------------------------------------------


def near_zero(layer: nn.Module) -> None:
    """Start a layer that predicts with weights near 0, so that training begins at the bias."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.normal_(layer.weight, std=HEAD_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _conv_chain(plan: Sequence[tuple[int, int]], norm: bool) -> nn.Sequential:
    """Convolutions with ReLU: (channels, kernel) of each, after the channels that come in."""
    layers: list[nn.Module] = []
    for (inputs, _), (outputs, kernel) in itertools.pairwise(plan):
        layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*layers)


def _cpm_stage(plan: Sequence[tuple[int, int]], maps: int, norm: bool) -> nn.Sequential:
    return nn.Sequential(*_conv_chain(plan, norm), nn.Conv2d(plan[-1][0], maps, 1))


def _patch_conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1)


def _at_least_one(name: str, **sizes: int) -> None:
    for key, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}: {key} is at least 1, not {size}.")


def _above_zero(name: str, **factors: float) -> None:
    for key, factor in factors.items():
        if not factor > 0:
            raise UserError(f"{name}: {key} is above 0, not {factor}.")
