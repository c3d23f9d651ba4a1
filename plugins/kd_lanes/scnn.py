"""SCNN (Pan et al., AAAI 2018): messages from row to row and column to column, over a dilated VGG-16."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from kd_lanes.parts import Existence, check_positive, check_sides, enlarged
from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS
from kd_tasks.vision.backbones import kaiming_init, load_pretrained, out_of_place, scaled

STRIDE = 8
PLAN: tuple[int | str, ...] = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
LEFT_OUT = (33, 43)  # the last two poolings, by their places in torchvision's VGG-16 with batch normalisation
DILATED = (34, 37, 40)
SMALLEST = 8


class DilatedVGG16(nn.Module):
    """VGG-16 with batch normalisation at stride 8: no fourth and fifth pooling, the last three convolutions dilated.

    Module names, and so the keys of a state dict, are torchvision's `features`.

    Args:
        width: factor of all channel numbers.
        pretrained: see `load_pretrained`.
    """

    def __init__(self, width: float = 1.0, pretrained: bool | str = False) -> None:
        super().__init__()
        plan: list[int | str] = [part if isinstance(part, str) else scaled(part, width, SMALLEST) for part in PLAN]
        self.features = make_layers(plan, batch_norm=True)
        for place in LEFT_OUT:
            self.features[place] = nn.Identity()
        for place in DILATED:
            conv = self.features[place]
            assert isinstance(conv, nn.Conv2d)
            conv.dilation = conv.padding = (2, 2)
        self.channels = scaled(512, width, SMALLEST)
        kaiming_init(self)
        out_of_place(self)
        if pretrained:
            if width != 1.0:
                raise UserError(f"SCNN: there are no ImageNet weights for width {width}; set pretrained=False.")
            load_pretrained(self, "vgg16_bn", pretrained)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, channels, H / 8, W / 8)."""
        return self.features(images)


class MessagePassing(nn.Module):
    """Passes messages down, up, to the right and to the left, each after the other (SCNN, section 3).

    In each direction every slice, a row or a column, gets what the slice before it sends, itself changed by then:
    `x_i + relu(K * x_(i-1))`, with one kernel along the slice for all slices.

    Args:
        channels: of the maps.
        kernel: length of the kernels, odd.

    *Deviation*: kernels start at a normal of variance `2 / (5 · kernel · channels²)`, so that the messages, which add
    up over a hundred slices, are small in a fresh network.
    """

    def __init__(self, channels: int, kernel: int = 9) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"SCNN: the length of the messages' kernels must be odd, not {kernel}.")
        convs = [nn.Conv1d(channels, channels, kernel, padding=kernel // 2, bias=False) for _ in range(4)]
        self.down, self.up, self.right, self.left = convs
        for conv in convs:
            nn.init.normal_(conv.weight, std=(2 / (5 * kernel)) ** 0.5 / channels)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, channels, h, w) to the same."""
        for conv, axis, backwards in ((self.down, 2, False), (self.up, 2, True), (self.right, 3, False)):
            maps = passed(maps, conv, axis, backwards)
        return passed(maps, self.left, 3, True)


def passed(maps: Tensor, conv: nn.Module, axis: int, backwards: bool) -> Tensor:
    """Maps (N, C, h, w) after the messages of one direction.

    Args:
        maps: what is changed, out of place.
        conv: convolves a slice (N, C, length).
        axis: 2 from row to row, 3 from column to column.
        backwards: from the last slice to the first.
    """
    slices = list(maps.unbind(axis))
    order = range(len(slices) - 2, -1, -1) if backwards else range(1, len(slices))
    for place in order:
        before = slices[place + 1 if backwards else place - 1]
        slices[place] = slices[place] + F.relu(conv(before))
    return torch.stack(slices, dim=axis)


@NETWORKS.register
class SCNN(nn.Module):
    """SCNN (Pan et al., AAAI 2018, arXiv 1712.06080) over VGG-16, the usual teacher of a lane network.

    Taps: `backbone` (512 channels), `neck` (128, before the messages), `messages` (128), all at stride 8; `logits`,
    `exist`. Sides of the pictures must be multiples of 8. The messages run one slice after the other, so that a step
    takes 2 (H + W) / 8 small convolutions, and so does the exported graph, whose picture size is fixed.

    Args:
        num_lanes: lane slots; `logits` has a channel more, the background.
        width: factor of all channel numbers.
        kernel: length of the messages' kernels.
        exist: whether there is an `exist` output, from the class maps.
        input_size: height and width of the pictures, for the existence branch; see `ENet`.
        pretrained: ImageNet weights for the backbone: True, torchvision's name of the weights, or a file.
        dropout: probability of dropping a channel before the classifier, in training.
        full_size: give `logits` at the size of the pictures, enlarged as criterion and decoder would. For a teacher
            whose logits are compared with those of ENet.
    """

    def __init__(
        self,
        num_lanes: int = 4,
        width: float = 1.0,
        kernel: int = 9,
        exist: bool = True,
        input_size: Sequence[int] | None = None,
        pretrained: bool | str = False,
        dropout: float = 0.1,
        full_size: bool = False,
    ) -> None:
        super().__init__()
        check_positive("SCNN", num_lanes=num_lanes, width=width)
        self.full_size = full_size
        self.backbone = DilatedVGG16(width, pretrained)
        wide, narrow = (scaled(n, width, SMALLEST) for n in (1024, 128))
        self.neck = nn.Sequential(
            nn.Conv2d(self.backbone.channels, wide, 3, padding=4, dilation=4, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, narrow, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
        )
        self.messages = MessagePassing(narrow, kernel)
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(narrow, num_lanes + 1, 1))
        kaiming_init(self.neck)
        self.existence = Existence(None, num_lanes, STRIDE, input_size) if exist else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `logits` (N, lanes + 1, H / 8, W / 8), and `exist` (N, lanes), logits.

        Raises:
            UserError: if a side is no multiple of 8, or the size not that of the existence branch.
        """
        check_sides(images, STRIDE, self)
        logits = self.head(self.messages(self.neck(self.backbone(images))))
        outputs = {"logits": enlarged(logits, images) if self.full_size else logits}
        if self.existence is not None:
            outputs["exist"] = self.existence(logits)
        return outputs
