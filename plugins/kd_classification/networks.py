"""Networks that classify whole images: images (N, C, H, W) in, `logits` (N, num_classes) out."""

import functools
from typing import Any, cast
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models

from kd_tasks.errors import UserError, nearest
from kd_tasks.registry import NETWORKS

SEVERAL_OUTPUTS = ("googlenet", "inception_v3")


@NETWORKS.register
class TorchvisionClassifier(nn.Module):
    """A classification network of torchvision, with torchvision's own module names.

    Taps are `layer3` or `avgpool`, without a prefix, and the weights of a trained network load into the torchvision
    model as they are.

    Args:
        architecture: a name from `torchvision.models.list_models(torchvision.models)`, such as `resnet18`.
        num_classes: length of the logits.
        pretrained: start from torchvision's best ImageNet weights; the classifier only if `num_classes` is 1000.

    Raises:
        UserError: for an unknown architecture, one with several outputs, or weights that cannot be downloaded.
    """

    def __init__(self, architecture: str = "resnet18", num_classes: int = 1000, pretrained: bool = False) -> None:
        super().__init__()
        known = [name for name in models.list_models(models) if name not in SEVERAL_OUTPUTS]
        if architecture not in known:
            raise UserError(f"architecture: torchvision has no {architecture!r}.{nearest(architecture, known)}")
        model = models.get_model(architecture, weights=None, num_classes=num_classes)
        if pretrained:
            load_pretrained(model, architecture)
        self.__dict__.update(vars(model))
        self.__class__ = cast(Any, _with_outputs)(type(model))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `logits` (N, num_classes)."""
        return {"logits": super().forward(images)}


@functools.cache
def _with_outputs(network: type[nn.Module]) -> type[nn.Module]:
    """The torchvision class `network` with the forward of `TorchvisionClassifier` around its own."""
    return type(network.__name__, (TorchvisionClassifier, network), {"__module__": __name__})


def load_pretrained(model: nn.Module, architecture: str) -> None:
    """Load torchvision's ImageNet weights where their shapes fit: all but a classifier of another length."""
    weights = models.get_model_weights(architecture)["DEFAULT"]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise UserError(
            f"pretrained: the weights of {architecture} cannot be had from {weights.url} ({error}). "
            f"Put that file into {torch.hub.get_dir()}/checkpoints, or set pretrained=False."
        ) from error
    own = model.state_dict()
    model.load_state_dict({k: v for k, v in state.items() if v.shape == own[k].shape}, strict=False)


@NETWORKS.register
class SmallClassifier(nn.Sequential):
    """A plain convolutional network for images of about 32x32 pixels, with the module names of a ResNet.

    Three stages of convolution, BatchNorm and ReLU; `layer1` keeps the resolution, `layer2` and `layer3` halve it.

    Args:
        width: channels of `layer1`; `layer2` has twice and `layer3` four times as many.
        num_classes: length of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, width: int = 16, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.layer1 = stage(in_channels, width, stride=1)
        self.layer2 = stage(width, 2 * width, stride=2)
        self.layer3 = stage(2 * width, 4 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, in_channels, H, W) to `logits` (N, num_classes)."""
        return {"logits": super().forward(images)}


def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())
