"""Feature extractors: ResNet and MobileNetV2, dilated for dense tasks, with ImageNet weights where asked.

Nothing is computed in place, so that a tap on any layer keeps what that layer gave. The four stages are
always `layer1` to `layer4`; a stage's output is the output of the module of that name.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2 as TorchvisionMobileNetV2
from torchvision.models import get_model_weights
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock as TorchvisionBasicBlock
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck

from kd_tasks.errors import UserError, nearest


class BasicBlock(TorchvisionBasicBlock):
    """torchvision's block with the shortcut added out of place."""

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(TorchvisionBottleneck):
    """torchvision's block with the shortcut added out of place."""

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(branch)) + (x if self.downsample is None else self.downsample(x)))


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
BACKBONES = (*RESNETS, "mobilenet_v2")
STEMS = ("torchvision", "deep")
STRIDES = (8, 16, 32)
# On CPUs with AVX-512, oneDNN's gradient of a strided 1x1 convolution in channels_last writes whole blocks of 16
# channels, past the end of the tensor where there are fewer (seen with torch 2.15).
RESNET_DIVISOR = 16


class Backbone(nn.Module):
    """Images (N, 3, H, W) to the outputs of `layer1` to `layer4`; `channels` and `strides` describe them."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def stem_features(self, images: Tensor) -> Tensor:
        """What `layer1` reads."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps (N, channels[i], H / strides[i], W / strides[i]) of the four stages, finest first."""
        first = self.layer1(self.stem_features(images))
        second = self.layer2(first)
        third = self.layer3(second)
        return first, second, third, self.layer4(third)


class ResNet(Backbone):
    """ResNet (He et al., CVPR 2016) without its classifier, dilated in the later stages.

    Module names, and so the keys of a state dict, are torchvision's. Where a stage keeps its stride 1 for the sake of
    `output_stride`, all its 3x3 convolutions are dilated instead, in the first block as in the others.

    Args:
        name: `resnet18`, `resnet34`, `resnet50` or `resnet101`.
        output_stride: 8, 16 or 32: image pixels between neighbouring pixels of `layer4`.
        stem: `torchvision`, one 7x7 convolution; or `deep`, three 3x3 convolutions to twice the width, followed by a
            max-pool that rounds up (512 pixels become 129), as PSPNet (Zhao et al., CVPR 2017) has it.
        width: factor of all channel numbers, rounded to multiples of 16.
        pretrained: see `load_pretrained`.
        dilated: off, stages that keep their stride 1 are not dilated either ("last stride 1").
    """

    def __init__(
        self,
        name: str = "resnet18",
        output_stride: int = 8,
        stem: str = "torchvision",
        width: float = 1.0,
        pretrained: bool | str = False,
        dilated: bool = True,
    ) -> None:
        super().__init__()
        _one_of("backbone", name, RESNETS)
        _one_of("stem", stem, STEMS)
        block, depths = RESNETS[name]
        widths = [scaled(64 * 2**i, width, RESNET_DIVISOR) for i in range(4)]
        self.stem = stem
        self._add_stem(widths[0])
        self._inputs = widths[0] if stem == "torchvision" else 2 * widths[0]
        geometry = _stage_geometry(output_stride, dilated)
        stages = [_resnet_stage(self, block, *part) for part in zip(widths, depths, geometry, strict=True)]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(block.expansion * w for w in widths)
        self.strides = _strides(output_stride)
        kaiming_init(self)
        out_of_place(self)
        if pretrained:
            _refuse_pretrained(width != 1.0, f"width {width}")
            _refuse_pretrained(stem != "torchvision" and pretrained is True, f"stem {stem!r}")
            load_pretrained(self, name, pretrained)

    def _add_stem(self, width: int) -> None:
        deep = self.stem == "deep"
        self.conv1 = nn.Conv2d(3, width, 3 if deep else 7, stride=2, padding=1 if deep else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        if deep:
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
            self.bn3 = nn.BatchNorm2d(2 * width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=deep)

    def stem_features(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        if self.stem == "deep":
            features = self.relu(self.bn2(self.conv2(features)))
            features = self.relu(self.bn3(self.conv3(features)))
        return self.maxpool(features)


class MobileNetV2(Backbone):
    """MobileNetV2 (Sandler et al., CVPR 2018) without its classifier and last 1x1 convolution, dilated.

    `stem` is torchvision's `features[0:2]`; `layer1` to `layer4` are its blocks 2-3, 4-6, 7-13 and 14-17.

    Args:
        output_stride: 8, 16 or 32: image pixels between neighbouring pixels of `layer4`.
        width: factor of all channel numbers, rounded to multiples of 8.
        pretrained: see `load_pretrained`.
        dilated: as for `ResNet`.
        last_convolution: keep the last 1x1 convolution, to 1280 channels, as the end of `layer4`.
    """

    def __init__(
        self,
        output_stride: int = 8,
        width: float = 1.0,
        pretrained: bool | str = False,
        dilated: bool = True,
        last_convolution: bool = False,
    ) -> None:
        super().__init__()
        network = TorchvisionMobileNetV2(width_mult=width)
        if pretrained:
            _refuse_pretrained(width != 1.0, f"width {width}")
            load_pretrained(network, "mobilenet_v2", pretrained)
        blocks = network.features
        self.stem = blocks[0:2]
        self.layer1, self.layer2, self.layer3 = blocks[2:4], blocks[4:7], blocks[7:14]
        self.layer4 = blocks[14 : 19 if last_convolution else 18]
        geometry = _stage_geometry(output_stride, dilated)
        for stage, (stride, dilation) in zip((self.layer2, self.layer3, self.layer4), geometry[1:], strict=True):
            _dilate(stage, stride, dilation)
        ends = (3, 6, 13, 18 if last_convolution else 17)
        self.channels = tuple(blocks[last].out_channels for last in ends)
        self.strides = _strides(output_stride)
        out_of_place(self)

    def stem_features(self, images: Tensor) -> Tensor:
        return self.stem(images)


def build_backbone(
    name: str,
    output_stride: int = 8,
    stem: str = "torchvision",
    width: float = 1.0,
    pretrained: bool | str = False,
    dilated: bool = True,
) -> Backbone:
    """The backbone called `name`, one of `BACKBONES`; see `ResNet` and `MobileNetV2` for the arguments.

    Raises:
        UserError: for an unknown name or stem, or weights that do not fit or cannot be had.
    """
    _one_of("backbone", name, BACKBONES)
    if name != "mobilenet_v2":
        return ResNet(name, output_stride, stem, width, pretrained, dilated)
    if stem != "torchvision":
        raise UserError(f"backbone 'mobilenet_v2' has no stem {stem!r}; leave 'stem' out.")
    return MobileNetV2(output_stride, width, pretrained, dilated)


def load_pretrained(network: nn.Module, name: str, pretrained: bool | str) -> None:
    """Load ImageNet weights into `network`, the classifier left out.

    Args:
        network: takes the keys of torchvision's model called `name`.
        name: torchvision's name of the model.
        pretrained: True for torchvision's default weights, the name of one of its weights (`IMAGENET1K_V1`), or the
            path of a file with a state dict.

    Raises:
        UserError: if the weights cannot be downloaded (names the file to place), read, or do not fit the network.
    """
    state, source = _pretrained_state(name, pretrained)
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    odd = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    faults = [key for key in missing + odd if not key.startswith(("classifier.", "fc."))]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise UserError(
            f"{source} does not fit the backbone {name!r}: {faults[0]!r}{more} is missing or of another shape."
        )
    network.load_state_dict(
        {key: value for key, value in state.items() if key in wanted and key not in odd}, strict=False
    )


def kaiming_init(module: nn.Module) -> None:
    """He initialisation of all convolutions below `module` (normal, fan-in); normalisation starts as the identity."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def out_of_place(module: nn.Module) -> None:
    """Switch every activation below `module` to out-of-place, so that a tap before it keeps its values."""
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]


def scaled(channels: int, width: float, divisor: int = 8) -> int:
    """`channels x width`, rounded to a multiple of `divisor`, at least `divisor`."""
    return max(divisor, int(channels * width + divisor / 2) // divisor * divisor)


def _resnet_stage(
    network: ResNet,
    block: type[BasicBlock] | type[Bottleneck],
    width: int,
    depth: int,
    geometry: tuple[int, int],
) -> nn.Sequential:
    stride, dilation = geometry
    outputs = block.expansion * width
    inputs = [network._inputs] + [outputs] * (depth - 1)
    network._inputs = outputs
    stage = nn.Sequential(
        *(
            block(
                channels,
                width,
                stride=stride if i == 0 else 1,
                downsample=_shortcut(channels, outputs, stride) if i == 0 else None,
            )
            for i, channels in enumerate(inputs)
        )
    )
    _dilate(stage, stride, dilation)
    return stage


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


def _dilate(stage: nn.Module, stride: int, dilation: int) -> None:
    """Give the 3x3 convolutions of a stage a dilation; with stride 1, undo the stride of its first block."""
    for part in stage.modules():
        if isinstance(part, InvertedResidual) and stride == 1:
            part.stride = 1
        if not isinstance(part, nn.Conv2d) or part.kernel_size != (3, 3):
            continue
        part.dilation = part.padding = (dilation, dilation)
        part.stride = part.stride if stride > 1 else (1, 1)


def _stage_geometry(output_stride: int, dilated: bool = True) -> list[tuple[int, int]]:
    """(stride, dilation) of `layer1` to `layer4`."""
    if output_stride not in STRIDES:
        raise UserError(f"output_stride is {output_stride}; it can be 8, 16 or 32.")
    geometry = {
        8: [(1, 1), (2, 1), (1, 2), (1, 4)],
        16: [(1, 1), (2, 1), (2, 1), (1, 2)],
        32: [(1, 1), (2, 1), (2, 1), (2, 1)],
    }[output_stride]
    return geometry if dilated else [(stride, 1) for stride, _ in geometry]


def _strides(output_stride: int) -> tuple[int, ...]:
    steps = [stride for stride, _ in _stage_geometry(output_stride)]
    return tuple(itertools.accumulate([4, *steps[1:]], lambda a, b: a * b))


def _pretrained_state(name: str, pretrained: bool | str) -> tuple[dict[str, Any], str]:
    if isinstance(pretrained, str) and (Path(pretrained).suffix or Path(pretrained).exists()):
        return _state_of_file(Path(pretrained)), pretrained
    known = get_model_weights(name)
    key = "DEFAULT" if pretrained is True else str(pretrained)
    if key not in known.__members__:
        names = list(known.__members__)
        raise UserError(
            f"pretrained: torchvision has no weights {key!r} for {name!r}.{nearest(key, names)} There are: "
            f"{', '.join(names)}; or give the path of a file."
        )
    url = known[key].url
    try:
        state = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        raise UserError(
            f"the ImageNet weights of {name!r} cannot be downloaded ({error}). Download {url} elsewhere and place it "
            f"as {place}, or set pretrained=False."
        ) from error
    return dict(state), url


def _state_of_file(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"pretrained: there is no file {path}.") from None
    except Exception as error:
        raise UserError(f"pretrained: {path} is not a file of weights ({error}).") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise UserError(f"pretrained: {path} holds a {type(state).__name__}, not a state dict.")
    return state


def _refuse_pretrained(unfit: bool, what: str) -> None:
    if unfit:
        raise UserError(f"torchvision has no ImageNet weights for a backbone with {what}; set pretrained=False.")


def _one_of(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"{key} {value!r} is not known.{nearest(value, known)} Known: {', '.join(known)}.")
