"""The lane networks: ENet, ENet-SAD, ERFNet and SCNN from their modules, and ResNets with a light decoder.

Every network gives `logits` (N, lanes + 1, h, w), channel 0 the background, and `exist` (N, lanes), logits of which
lane slots have a lane, in training as in testing.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lanes.enet import ENet, ENetSAD
from kd_lanes.erfnet import ERFNet
from kd_lanes.parts import Existence, check_positive, enlarged
from kd_lanes.scnn import SCNN
from kd_tasks.registry import NETWORKS
from kd_tasks.vision.backbones import build_backbone, kaiming_init, scaled

__all__ = ["SCNN", "ENet", "ENetSAD", "ERFNet", "LaneResNet"]

DECODER_CHANNELS = 128


@NETWORKS.register
class LaneResNet(nn.Module):
    """A dilated ResNet with a light decoder, the heavier students and a teacher beside ENet-SAD (Hou et al. 2019).

    `layer4`, reduced to 128 channels and enlarged, and a projection of `layer1` are added and convolved once. Taps:
    `backbone.layer1` to `backbone.layer4`, `reduce` (128 channels at stride 8), `fuse` (128 at stride 4), `logits`,
    `exist`. Pictures may have any size.

    *Deviation*: the paper does not print its decoder; this one is a choice.

    Args:
        backbone: `resnet18` or `resnet34`, or another of `build_backbone`.
        num_lanes: lane slots; `logits` has a channel more, the background.
        width: factor of all channel numbers.
        output_stride: 8, 16 or 32: image pixels between neighbouring pixels of `layer4`.
        exist: whether there is an `exist` output, from `reduce`.
        input_size: height and width of the pictures, for the existence branch; see `ENet`.
        pretrained: ImageNet weights for the backbone: True, torchvision's name of the weights, or a file.
        dropout: probability of dropping a channel before the classifier, in training.
        full_size: give `logits` at the size of the pictures; see `SCNN`.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        num_lanes: int = 4,
        width: float = 1.0,
        output_stride: int = 8,
        exist: bool = True,
        input_size: Sequence[int] | None = None,
        pretrained: bool | str = False,
        dropout: float = 0.1,
        full_size: bool = False,
    ) -> None:
        super().__init__()
        self.full_size = full_size
        check_positive("LaneResNet", num_lanes=num_lanes, width=width)
        self.backbone = build_backbone(backbone, output_stride, width=width, pretrained=pretrained)
        first, last, channels = self.backbone.channels[0], self.backbone.channels[3], scaled(DECODER_CHANNELS, width)
        self.reduce = _conv_norm_relu(last, channels)
        self.lateral = nn.Conv2d(first, channels, 1, bias=False)
        self.fuse = _conv_norm_relu(channels, channels)
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_lanes + 1, 1))
        for part in (self.reduce, self.lateral, self.fuse):
            kaiming_init(part)
        self.existence = Existence(channels, num_lanes, output_stride, input_size) if exist else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `logits` (N, lanes + 1, H / 4, W / 4), rounded up, and `exist` (N, lanes), logits.

        Raises:
            UserError: if the size is not that of the existence branch.
        """
        first, _, _, last = self.backbone(images)
        reduced = self.reduce(last)
        logits = self.head(self.fuse(enlarged(reduced, first) + self.lateral(first)))
        outputs = {"logits": enlarged(logits, images) if self.full_size else logits}
        if self.existence is not None:
            outputs["exist"] = self.existence(reduced)
        return outputs


def _conv_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
