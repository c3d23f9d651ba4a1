"""ENet (Paszke et al. 2016), and ENet-SAD (Hou et al., ICCV 2019): the lane network with one more encoder block."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lanes.parts import Existence, check_positive, check_sides
from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS
from kd_tasks.vision.backbones import scaled

STRIDE = 8
REDUCTION = 4
FIRST_DROPOUT = 0.01
# The convolution in the middle of each block of E2, E3 and E4: its kind, and dilation or kernel.
KINDS = (
    ("regular", 1),
    ("dilated", 2),
    ("asymmetric", 5),
    ("dilated", 4),
    ("regular", 1),
    ("dilated", 8),
    ("asymmetric", 5),
    ("dilated", 16),
)


class InitialBlock(nn.Module):
    """A strided convolution beside a max-pool of the picture: (N, 3, H, W) to (N, outputs, H / 2, W / 2)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, outputs - 3, 3, stride=2, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.PReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.norm(torch.cat([self.conv(images), self.pool(images)], dim=1)))


class Bottleneck(nn.Module):
    """Reduces the channels to a quarter, convolves, expands them, and adds the input (ENet, section 4).

    Args:
        channels: that come in and go out.
        kind: of the convolution: `regular` 3x3; `dilated` 3x3 with dilation `extent`; `asymmetric`, `extent` x 1 and
            1 x `extent` one after the other.
        extent: dilation or kernel.
        dropout: probability of dropping a channel of what is added, in training.
        activation: `prelu` in the encoder, `relu` in the decoder.
    """

    def __init__(
        self, channels: int, kind: str = "regular", extent: int = 1, dropout: float = 0.1, activation: str = "prelu"
    ) -> None:
        super().__init__()
        narrow = channels // REDUCTION
        self.branch = nn.Sequential(
            *_conv_norm_act(channels, narrow, 1, activation),
            *_middle(narrow, kind, extent, activation),
            *_conv_norm_act(narrow, channels, 1, activation),
            nn.Dropout2d(dropout),
        )
        self.act = _activation(activation)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, channels, h, w) to the same."""
        return self.act(maps + self.branch(maps))


class Downsampling(nn.Module):
    """A bottleneck that halves the size; beside it a max-pool, whose places the decoder needs.

    Args:
        inputs: channels that come in.
        outputs: channels that go out, more than `inputs`: the pooled maps are filled up by zeros.
        dropout: see `Bottleneck`.
    """

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        narrow = inputs // REDUCTION
        self.filled = outputs - inputs
        self.branch = nn.Sequential(
            *_conv_norm_act(inputs, narrow, 2, "prelu", stride=2),
            *_conv_norm_act(narrow, narrow, 3, "prelu", padding=1),
            *_conv_norm_act(narrow, outputs, 1, "prelu"),
            nn.Dropout2d(dropout),
        )
        self.act = nn.PReLU()

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(N, inputs, h, w) to (N, outputs, h / 2, w / 2), and the place y * w + x of each maximum of `maps`."""
        pooled, places = F.max_pool2d(maps, 2, stride=2, return_indices=True)
        return self.act(F.pad(pooled, (0, 0, 0, 0, 0, self.filled)) + self.branch(maps)), places


class Upsampling(nn.Module):
    """A bottleneck that doubles the size; beside it an unpooling to the places of a max-pool of the encoder."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        narrow = inputs // REDUCTION
        self.main = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.branch = nn.Sequential(
            *_conv_norm_act(inputs, narrow, 1, "relu"),
            nn.ConvTranspose2d(narrow, narrow, 2, stride=2, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.Dropout2d(dropout),
        )
        self.act = nn.ReLU()

    def forward(self, maps: Tensor, places: Tensor) -> Tensor:
        """(N, inputs, h, w) and places (N, outputs, h, w) to (N, outputs, 2 h, 2 w)."""
        return self.act(unpooled(self.main(maps), places) + self.branch(maps))


class Encoder(nn.Module):
    """Bottlenecks of one size, one after the other; `blocks` may be shared with other encoder blocks."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, maps: Tensor) -> Tensor:
        return self.blocks(maps)


@NETWORKS.register
class ENet(nn.Module):
    """ENet (Paszke et al. 2016, arXiv 1606.02147) with the lane-existence branch of ENet-SAD.

    Taps: the encoder blocks `e1` (64 channels at stride 4), `e2` and `e3` (128 at stride 8), the decoder blocks `d1`
    (64 at stride 4) and `d2` (16 at stride 2), `logits`, `exist`.

    Sides of the pictures must be multiples of 8. Unpooling is written as a scatter, which equals `F.max_unpool2d` and
    which ONNX has.

    *Deviations* from the paper's code, as in the ports that lane detection uses: the pooling of the initial block is
    3x3; slopes of PReLU are one a layer.

    Args:
        num_lanes: lane slots; `logits` has a channel more, the background.
        width: factor of all channel numbers.
        depth: bottlenecks in `e1`, and in each of the later encoder blocks: the first ones of regular, dilated 2,
            asymmetric, dilated 4, regular, dilated 8, asymmetric, dilated 16.
        share: use the bottlenecks of `e2` in the later encoder blocks too.
        exist: whether there is an `exist` output, from the last encoder block.
        input_size: height and width of the pictures, for which the existence branch has a weight at each place, as its
            authors have it; others are refused then. None: its maps are averaged over 5 x 10 regions first, so that
            any size will do.
        dropout: probability of dropping a channel in training; in `e1` a tenth of it.
    """

    extra = False

    def __init__(
        self,
        num_lanes: int = 4,
        width: float = 1.0,
        depth: Sequence[int] = (4, 8),
        share: bool = False,
        exist: bool = True,
        input_size: Sequence[int] | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check_depth(depth)
        check_positive(type(self).__name__, num_lanes=num_lanes, width=width)
        thin = scaled(16, width, REDUCTION)
        middle, wide = 4 * thin, 8 * thin
        self.initial = InitialBlock(thin)
        self.down1 = Downsampling(thin, middle, dropout * FIRST_DROPOUT / 0.1)
        self.e1 = Encoder(nn.Sequential(*(Bottleneck(middle, dropout=dropout / 10) for _ in range(depth[0]))))
        self.down2 = Downsampling(middle, wide, dropout)
        stages = self._stages(wide, depth[1], dropout, share)
        self.e2 = next(stages)
        self.e3 = next(stages)
        if self.extra:
            self.e4 = next(stages)
        self.up1 = Upsampling(2 * wide if self.extra else wide, middle, dropout)
        self.d1 = Encoder(nn.Sequential(*(Bottleneck(middle, dropout=dropout, activation="relu") for _ in range(2))))
        self.up2 = Upsampling(middle, thin, dropout)
        self.d2 = Bottleneck(thin, dropout=dropout, activation="relu")
        self.head = nn.ConvTranspose2d(thin, num_lanes + 1, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.existence = Existence(wide, num_lanes, STRIDE, input_size) if exist else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `logits` (N, lanes + 1, H, W) and `exist` (N, lanes), logits.

        Raises:
            UserError: if a side is no multiple of 8, or the size not that of the existence branch.
        """
        check_sides(images, STRIDE, self)
        first, places1 = self.down1(self.initial(images))
        first = self.e1(first)
        second, places2 = self.down2(first)
        last = joined = self.e3(self.e2(second))
        if self.extra:
            last = self.e4(joined)
            joined = torch.cat([joined, last], dim=1)
        maps = self.d2(self.up2(self.d1(self.up1(joined, places2)), places1))
        outputs = {"logits": self.head(maps)}
        if self.existence is not None:
            outputs["exist"] = self.existence(last)
        return outputs

    def _stages(self, channels: int, depth: int, dropout: float, share: bool) -> Iterator[Encoder]:
        blocks = _set_of_blocks(channels, depth, dropout)
        while True:
            yield Encoder(blocks)
            blocks = blocks if share else _set_of_blocks(channels, depth, dropout)


@NETWORKS.register
class ENetSAD(ENet):
    """ENet with a fourth encoder block, joined to the third, for self attention distillation (Hou et al., ICCV 2019).

    Taps as of `ENet`, and `e4` (128 channels at stride 8), from which the existence branch reads. At 288 x 800, with
    the existence branch of that size, 1.106 M parameters, of which 0.577 M in that branch; 0.817 M with `share`.

    Args:
        num_lanes: see `ENet`.
        width: see `ENet`.
        depth: see `ENet`.
        share: see `ENet`.
        exist: see `ENet`.
        input_size: see `ENet`.
        dropout: see `ENet`.
    """

    extra = True


def unpooled(maps: Tensor, places: Tensor) -> Tensor:
    """Maps (N, C, h, w) at the `places` (N, C, h, w) of a 2x2 max-pool, zeros elsewhere: (N, C, 2 h, 2 w)."""
    height, width = 2 * maps.shape[2], 2 * maps.shape[3]
    empty = maps.new_zeros(maps.shape[0], maps.shape[1], height * width)
    return empty.scatter(2, places.flatten(2), maps.flatten(2)).unflatten(2, (height, width))


def _set_of_blocks(channels: int, depth: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(*(Bottleneck(channels, kind, extent, dropout) for kind, extent in KINDS[:depth]))


def _middle(channels: int, kind: str, extent: int, activation: str) -> list[nn.Module]:
    if kind == "asymmetric":
        half = extent // 2
        return [
            *_conv_norm_act(channels, channels, (extent, 1), activation, padding=(half, 0)),
            *_conv_norm_act(channels, channels, (1, extent), activation, padding=(0, half)),
        ]
    return _conv_norm_act(channels, channels, 3, activation, padding=extent, dilation=extent)


def _conv_norm_act(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    activation: str,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), _activation(activation)]


def _activation(name: str) -> nn.Module:
    return nn.ReLU() if name == "relu" else nn.PReLU()


def _check_depth(depth: Sequence[int]) -> None:
    if not isinstance(depth, Sequence) or len(depth) != 2 or depth[0] < 1 or not 1 <= depth[1] <= len(KINDS):
        raise UserError(
            f"ENet: depth is {depth!r}; it is the bottlenecks in e1, at least 1, and in each later encoder block, "
            f"1 to {len(KINDS)}, such as (4, 8)."
        )
