"""Stacked hourglass networks: heatmaps of keypoints, for every task that looks for points."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.errors import UserError, nearest
from kd_tasks.registry import NETWORKS

Form = Literal["fpd", "ts3"]
STRIDE = 4
EXPANSION = 2
CHANNELS_DIVISOR = 8


class PreActivation(nn.Sequential):
    """Batch normalisation, ReLU, convolution with bias (padding keeps the size)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


class Residual(nn.Module):
    """Pre-activation bottleneck: 1x1 to half the outputs, 3x3, 1x1, added to its input.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        normalised: where the widths differ, batch normalisation and ReLU before the 1x1 projection of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, normalised: bool = False) -> None:
        super().__init__()
        middle = outputs // EXPANSION
        self.branch = nn.Sequential(
            PreActivation(inputs, middle), PreActivation(middle, middle, 3), PreActivation(middle, outputs)
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = PreActivation(inputs, outputs) if normalised else nn.Conv2d(inputs, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.branch(maps) + self.shortcut(maps)


class HourglassModule(nn.Module):
    """One hourglass: `depth` halvings, at each of which residuals work on the finer and on the coarser maps.

    Args:
        channels: of the maps, the same everywhere.
        depth: halvings; height and width are multiples of `2**depth`.
        residuals: residual blocks at each place.
    """

    def __init__(self, channels: int, depth: int, residuals: int) -> None:
        super().__init__()
        self.upper = _residuals(channels, residuals)
        self.before = _residuals(channels, residuals)
        inner = HourglassModule(channels, depth - 1, residuals) if depth > 1 else _residuals(channels, residuals)
        self.inner: nn.Module = inner
        self.after = _residuals(channels, residuals)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, channels, h, w), and so is the result."""
        lower = self.after(self.inner(self.before(F.max_pool2d(maps, 2))))
        return self.upper(maps) + F.interpolate(lower, scale_factor=2.0, mode="nearest")


@NETWORKS.register
class Hourglass(nn.Module):
    """Stacked hourglass (Newell et al., ECCV 2016): heatmaps at a quarter of the image's size, refined stack by stack.

    Taps: `stem`; of stack i, from 0, `stacks.i` (its hourglass), `features.i` (what its heatmaps are read from,
    `channels` deep) and `scores.i` (its heatmaps); `heatmaps`, the last of them.

    With the defaults but `points=16` this is the network of FPD (Zhang et al., CVPR 2019), 13.02 M
    parameters; 25.59 M with `stacks=8`, 3.29 M with `channels=128`; fixture `fpd_hourglass_forward`. The second student
    of TS3 (Dong and Yang, ICCV 2019), 24.97 M, has `points=68`, `residuals=2` and `form='ts3'`; fixture
    `ts3_selection`. Small: 0.12 M with `channels=32, stacks=2`.

    *Deviations*: none known; the weights start as torch's layers do.

    Args:
        points: number of points.
        stacks: hourglasses, each of which gives heatmaps.
        channels: of the maps within the hourglasses, a multiple of 8; the stem has a quarter and a half of it.
        residuals: residual blocks at each place.
        depth: halvings within an hourglass: height and width of the images are multiples of `4 * 2**depth`.
        form: where the authors' networks differ. `fpd`: the stem goes from a quarter of the channels to a half, and
            after the pooling to all; a shortcut that changes the width is a 1x1 convolution. `ts3`: after the pooling a
            block at half the channels comes first; such a shortcut has batch normalisation and ReLU before it.
        maps: channels of `heatmaps`; None for one a point. A codec with a background map or with offsets needs others:
            its `channels(points)`.

    Raises:
        UserError: for sizes below 1, channels that cannot be halved often enough, or an unknown form.
    """

    def __init__(
        self,
        points: int = 68,
        stacks: int = 4,
        channels: int = 256,
        residuals: int = 1,
        depth: int = 4,
        form: Form = "fpd",
        maps: int | None = None,
    ) -> None:
        super().__init__()
        maps = maps or points
        sizes = {"points": points, "stacks": stacks, "channels": channels, "residuals": residuals, "depth": depth}
        for name, size in {**sizes, "maps": maps}.items():
            if size < 1:
                raise UserError(f"Hourglass: {name} is at least 1, not {size}.")
        if channels % CHANNELS_DIVISOR:
            raise UserError(f"Hourglass: channels is a multiple of {CHANNELS_DIVISOR}, not {channels}.")
        if form not in get_args(Form):
            known = get_args(Form)
            raise UserError(f"Hourglass: form {form!r} is not known.{nearest(form, known)} Known: {', '.join(known)}.")
        self.divisor = STRIDE * 2**depth
        self.stem = _stem(channels, form)
        self.stacks = nn.ModuleList(HourglassModule(channels, depth, residuals) for _ in range(stacks))
        self.features = nn.ModuleList(
            nn.Sequential(_residuals(channels, residuals), nn.Conv2d(channels, channels, 1), _norm_act(channels))
            for _ in range(stacks)
        )
        self.scores = nn.ModuleList(nn.Conv2d(channels, maps, 1) for _ in range(stacks))
        self.feature_returns = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(stacks - 1))
        self.score_returns = nn.ModuleList(nn.Conv2d(maps, channels, 1) for _ in range(stacks - 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `heatmaps` (N, maps, H / 4, W / 4).

        In train mode the earlier stacks' are there too: `heatmaps_1`, `heatmaps_2` and so on.

        Raises:
            UserError: if height or width is not a multiple of `4 * 2**depth`.
        """
        self._check_size(images)
        maps = self.stem(images)
        scores: list[Tensor] = []
        for i, stack in enumerate(self.stacks):
            features = self.features[i](stack(maps))
            scores.append(self.scores[i](features))
            if i + 1 < len(self.stacks):
                maps = maps + self.feature_returns[i](features) + self.score_returns[i](scores[i])
        return stage_outputs(scores, self.training)

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.divisor or width % self.divisor:
            raise UserError(
                f"Hourglass: height and width of the images are multiples of {self.divisor} (4 * 2**depth), not "
                f"{height}x{width}. Change the size of the images, or choose a smaller depth."
            )


def stage_outputs(stages: list[Tensor], training: bool) -> dict[str, Tensor]:
    """Named outputs of a network in stages: the last as `heatmaps`; in training the earlier ones, counted from 1."""
    outputs = {"heatmaps": stages[-1]}
    if training:
        outputs |= {f"heatmaps_{i}": maps for i, maps in enumerate(stages[:-1], start=1)}
    return outputs


def _stem(channels: int, form: Form) -> nn.Sequential:
    quarter, half, normalised = channels // 4, channels // 2, form == "ts3"
    middle = half if form == "ts3" else channels
    return nn.Sequential(
        nn.Conv2d(3, quarter, 7, stride=2, padding=3),
        _norm_act(quarter),
        Residual(quarter, half, normalised),
        nn.MaxPool2d(2),
        Residual(half, middle, normalised),
        Residual(middle, channels, normalised),
    )


def _residuals(channels: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(channels, channels) for _ in range(number)))


def _norm_act(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
