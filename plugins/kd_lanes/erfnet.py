"""ERFNet (Romera et al., T-ITS 2018): residual blocks of one-dimensional convolutions, with a lane-existence branch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_lanes.parts import Existence, check_positive, check_sides
from kd_tasks.registry import NETWORKS
from kd_tasks.vision.backbones import scaled

STRIDE = 8
EPS = 1e-3
DILATIONS = (2, 4, 8, 16)
EXISTENCE_CHANNELS = 32
SMALLEST = 4


class NonBottleneck1D(nn.Module):
    """A residual block: 3x1 and 1x3 convolutions, then both again with a dilation (ERFNet, section III)."""

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)),
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)),
            nn.BatchNorm2d(channels, eps=EPS),
            nn.ReLU(),
            nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)),
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)),
            nn.BatchNorm2d(channels, eps=EPS),
            nn.Dropout2d(dropout),
        )
        self.act = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """(N, channels, h, w) to the same."""
        return self.act(maps + self.branch(maps))


class Downsampler(nn.Module):
    """A strided convolution beside a max-pool of the input: (N, inputs, h, w) to (N, outputs, h / 2, w / 2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs - inputs, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2, stride=2)
        self.norm = nn.BatchNorm2d(outputs, eps=EPS)
        self.act = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        return self.act(self.norm(torch.cat([self.conv(maps), self.pool(maps)], dim=1)))


class ERFEncoder(nn.Module):
    """Taps `level1` (stride 2), `level2` (stride 4) and `level3` (stride 8)."""

    def __init__(self, channels: Sequence[int], dropout: float) -> None:
        super().__init__()
        thin, middle, wide = channels
        self.level1 = Downsampler(3, thin)
        few = (NonBottleneck1D(middle, dropout=dropout / 10) for _ in range(5))
        self.level2 = nn.Sequential(Downsampler(thin, middle), *few)
        many = (NonBottleneck1D(wide, dilation, dropout) for dilation in 2 * DILATIONS)
        self.level3 = nn.Sequential(Downsampler(middle, wide), *many)

    def forward(self, images: Tensor) -> Tensor:
        return self.level3(self.level2(self.level1(images)))


@NETWORKS.register
class ERFNet(nn.Module):
    """ERFNet (Romera et al., T-ITS 2018) with a lane-existence branch, as for CULane beside ENet-SAD.

    Taps: `encoder.level1` (16 channels at stride 2), `encoder.level2` (64 at stride 4), `encoder.level3` (128 at stride
    8), `decoder` (16 at stride 2), `logits`, `exist`. 2.06 M parameters with 20 classes and no branch; for lanes with
    the branch of 208 x 976 pictures 2.61 M. Sides of the pictures must be multiples of 8.

    *Deviations*: the existence branch pools by means, as those of SCNN and ENet-SAD, and gives logits.

    Args:
        num_lanes: lane slots; `logits` has a channel more, the background.
        width: factor of all channel numbers.
        exist: whether there is an `exist` output.
        input_size: height and width of the pictures, for the existence branch; see `ENet`.
        dropout: probability of dropping a channel at stride 8, in training; at stride 4 a tenth of it.
    """

    def __init__(
        self,
        num_lanes: int = 4,
        width: float = 1.0,
        exist: bool = True,
        input_size: Sequence[int] | None = None,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_positive("ERFNet", num_lanes=num_lanes, width=width)
        thin = scaled(16, width, SMALLEST)
        middle, wide = 4 * thin, 8 * thin
        self.encoder = ERFEncoder((thin, middle, wide), dropout)
        self.decoder = nn.Sequential(
            *_upsampler(wide, middle),
            *(NonBottleneck1D(middle) for _ in range(2)),
            *_upsampler(middle, thin),
            *(NonBottleneck1D(thin) for _ in range(2)),
        )
        self.head = nn.ConvTranspose2d(thin, num_lanes + 1, 2, stride=2)
        self.existence = _existence(wide, num_lanes, input_size) if exist else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `logits` (N, lanes + 1, H, W) and `exist` (N, lanes), logits.

        Raises:
            UserError: if a side is no multiple of 8, or the size not that of the existence branch.
        """
        check_sides(images, STRIDE, self)
        features = self.encoder(images)
        outputs = {"logits": self.head(self.decoder(features))}
        if self.existence is not None:
            outputs["exist"] = self.existence(features)
        return outputs


def _upsampler(inputs: int, outputs: int) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    return [conv, nn.BatchNorm2d(outputs, eps=EPS), nn.ReLU()]


def _existence(channels: int, num_lanes: int, input_size: Sequence[int] | None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, EXISTENCE_CHANNELS, 3, padding=4, dilation=4, bias=False),
        nn.BatchNorm2d(EXISTENCE_CHANNELS, eps=EPS),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        Existence(EXISTENCE_CHANNELS, num_lanes, STRIDE, input_size),
    )
