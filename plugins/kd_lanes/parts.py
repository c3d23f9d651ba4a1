"""What the lane networks share: the existence branch and the checks of sizes."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.errors import UserError
from kd_tasks.vision.pooling import region_means

GRID = (5, 10)
HIDDEN = 128


class Existence(nn.Module):
    """Which lanes there are: class probabilities of small maps, pooled, through two linear layers.

    A 1x1 convolution to one map a class, softmax over the classes, 2x2 means, and linear layers to 128 and to one logit
    a lane, with ReLU in between (SCNN, Pan et al., AAAI 2018; ENet-SAD, Hou et al., ICCV 2019).

    Args:
        channels: of the maps that come in; None if they are the class maps themselves, without softmax.
        num_lanes: lane slots.
        stride: of the maps to the picture.
        input_size: height and width of the pictures; None for any, with means over 5 x 10 regions in place of 2x2.

    *Deviation*: no sigmoid at the end; the criterion and the decoder have it.
    """

    def __init__(
        self, channels: int | None, num_lanes: int, stride: int, input_size: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.size = None if input_size is None else tuple(input_size)
        self.classes = None if channels is None else nn.Conv2d(channels, num_lanes + 1, 1)
        rows, columns = GRID if self.size is None else (-(-side // stride) // 2 for side in self.size)
        if rows < 1 or columns < 1:
            raise UserError(f"input_size {input_size} is too small: the existence branch needs {2 * stride} pixels.")
        self.maps = None if self.size is None else tuple(-(-side // stride) for side in self.size)
        self.hidden = nn.Linear((num_lanes + 1) * rows * columns, HIDDEN)
        self.last = nn.Linear(HIDDEN, num_lanes)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, channels, h, w) to logits (N, lanes).

        Raises:
            UserError: for maps of another size than `input_size` gives.
        """
        shares = (maps if self.classes is None else self.classes(maps)).softmax(dim=1)
        return self.last(F.relu(self.hidden(self._pooled(shares).flatten(1))))

    def _pooled(self, shares: Tensor) -> Tensor:
        if self.maps is None:
            return region_means(shares, *GRID)
        if tuple(shares.shape[-2:]) != self.maps:
            raise UserError(
                f"the existence branch is made for pictures of {self.size} pixels, which give maps of {self.maps}, but "
                f"these are {tuple(shares.shape[-2:])}: change input_size of the network, or leave it out for any size."
            )
        return F.avg_pool2d(shares, 2)


def enlarged(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (N, C, h, w) at the height and width of `like`, as criterion and decoder enlarge logits by default."""
    size = [int(side) for side in like.shape[-2:]]
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def check_sides(images: Tensor, divisor: int, network: nn.Module) -> None:
    """Raise UserError unless height and width of `images` (N, 3, H, W) are multiples of `divisor`."""
    height, width = images.shape[-2:]
    if height % divisor or width % divisor:
        raise UserError(
            f"{type(network).__name__} takes pictures whose sides are multiples of {divisor}, not {height} x {width}; "
            f"set the size of the data set, or pad_divisor={divisor} of the preprocessor."
        )


def check_positive(name: str, **numbers: float) -> None:
    """Raise UserError if one of the arguments of the network called `name` is not above zero."""
    for argument, number in numbers.items():
        if not number > 0:
            raise UserError(f"{name}: {argument} must be above zero, not {number!r}.")
