"""Task losses of landmarks: of heatmaps and of coordinates."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.errors import UserError, nearest
from kd_tasks.losses.base import full_precision
from kd_tasks.registry import CRITERIA
from kd_tasks.vision.heatmaps import HeatmapCodec, UDPHeatmap

HeatmapKind = Literal["mse", "awing", "cross_entropy"]
Reduction = Literal["mean", "annotated"]
CoordinateKind = Literal["wing", "l1", "smooth_l1", "mse"]
PictureSize = int | Sequence[int] | None
FOREGROUND_FROM = 0.2
DISC_MAPS = 3


class LandmarkCriterion(nn.Module):
    """What both task losses share: whose points count, and the size of the pictures.

    Args:
        input_size: see `HeatmapLoss`.
    """

    def __init__(self, input_size: PictureSize) -> None:
        super().__init__()
        sides = (input_size, input_size) if isinstance(input_size, int) else input_size
        if sides is not None and (len(sides) != 2 or min(sides) < 1):
            raise ValueError(f"input_size is a number of pixels or (height, width), not {input_size!r}.")
        self.input_size = None if sides is None else (int(sides[0]), int(sides[1]))

    def picture(self, targets: Mapping[str, Any]) -> tuple[int, int]:
        """(H, W) of the pictures that the network saw.

        Raises:
            UserError: if neither the configuration nor the targets say it.
        """
        if self.input_size is not None:
            return self.input_size
        if "input_size" not in targets:
            raise UserError(
                f"{type(self).__name__} does not know how large the pictures are. Set its input_size to the size that "
                "the data set cuts faces to: (height, width)."
            )
        height, width = targets["input_size"][0].tolist()
        return int(height), int(width)

    @staticmethod
    def counted(targets: Mapping[str, Any]) -> Tensor:
        """Points that take part, bool (N, K): visible, finite, of a labelled sample."""
        points = targets["points"]
        counted = points.isfinite().all(dim=-1)
        if "visible" in targets:
            counted = counted & targets["visible"].bool()
        if "labelled" in targets:
            counted = counted & targets["labelled"].bool().view(-1, 1)
        return counted


@CRITERIA.register
class HeatmapLoss(LandmarkCriterion):
    """Difference between predicted heatmaps and those that a codec draws of the points, for every stage.

    `mse`: the mean over pixels of `(h - t)^2`, and the mean of that over the maps of visible points. `awing`, Adaptive
    Wing (Wang et al., ICCV 2019, equation 3), in place of the square: with d = |h - t| and e = alpha - t,
    `omega log(1 + (d / epsilon)^e)` for d < theta, else `A d - C`, A and C such that value and slope have no jump.
    `cross_entropy`, for maps that are logits (`SoftmaxHeatmap`): between the drawn distribution over positions and the
    network's, in nats; the mean over the maps of visible points.
    Computes in float32 under autocast. A point that is not visible and a sample that is not labelled take no part; a
    batch without any gives 0 with zero gradient.

    With a codec of discs and offsets (UDP, `combined`) the offsets count within the disc alone, as its authors have it.

    Args:
        codec: draws the heatmaps; the same as the decoder's.
        input_size: (height, width) of the pictures that the network sees, or one number for both. None: the targets say
            it, as `input_size` (N, 2).
        kind: `mse`, `awing` or `cross_entropy`.
        reduction: `mean`, over pixels and visible maps, so that the value depends neither on the batch size nor on the
            size of the maps. `annotated`: the sum over pixels and visible maps, over twice the number of samples with a
            visible point, as in SBR (Dong et al., CVPR 2018) and TS3; fixture `landmark_targets_loss`. It is larger
            than the mean by half the number of maps times that of pixels, which their learning rates rely on.
        stage_weights: weight of each stage, the last being that of `heatmaps`; None for 1 each.
        foreground: pixels at and around which the target is at least 0.2 weigh 1 + this, the others 1; the authors of
            Adaptive Wing have 10.
        weight: of all terms.
        alpha: of `awing`, above 2.
        omega: of `awing`.
        epsilon: of `awing`.
        theta: of `awing`, where it becomes linear.

    *Deviations*: none known from SBR, whose authors divide by the samples of a batch that are annotated. The coordinate
    and boundary channels of Wang et al. belong to their network and are not offered.

    Raises:
        ValueError: for an unknown word, or a number that makes no sense.
    """

    def __init__(
        self,
        codec: HeatmapCodec,
        input_size: int | Sequence[int] | None = None,
        kind: HeatmapKind = "mse",
        reduction: Reduction = "mean",
        stage_weights: Sequence[float] | None = None,
        foreground: float = 0.0,
        weight: float = 1.0,
        alpha: float = 2.1,
        omega: float = 14.0,
        epsilon: float = 1.0,
        theta: float = 0.5,
    ) -> None:
        super().__init__(input_size)
        _check_word("kind", kind, get_args(HeatmapKind))
        _check_word("reduction", reduction, get_args(Reduction))
        if foreground < 0:
            raise ValueError(f"foreground is at least 0, not {foreground!r}.")
        if codec.logits != (kind == "cross_entropy"):
            fit = "cross_entropy" if codec.logits else "mse' or 'awing"
            raise ValueError(f"kind {kind!r} does not fit {type(codec).__name__}; it takes kind='{fit}'.")
        if kind == "cross_entropy" and (foreground or reduction != "mean"):
            raise ValueError("kind='cross_entropy' takes neither foreground nor reduction='annotated'.")
        if stage_weights is not None and (not stage_weights or min(stage_weights) < 0):
            raise ValueError(f"stage_weights are at least 0, one for each stage, not {stage_weights!r}.")
        if alpha <= 2 or min(omega, epsilon, theta) <= 0:
            raise ValueError(
                f"alpha is above 2 (targets go up to 1), and omega, epsilon and theta are above 0; they are {alpha!r}, "
                f"{omega!r}, {epsilon!r} and {theta!r}."
            )
        self.codec = codec
        self.kind = kind
        self.reduction = reduction
        self.stage_weights = None if stage_weights is None else tuple(stage_weights)
        self.foreground = foreground
        self.weight = weight
        self.alpha, self.omega, self.epsilon, self.theta = alpha, omega, epsilon, theta
        self.skips_outputs = 0 in (self.stage_weights or ())

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted terms `heatmaps` and, of earlier stages, `heatmaps_1`, `heatmaps_2` and so on.

        Args:
            outputs: `heatmaps` (N, C, h, w), and those of earlier stages.
            targets: `points` (N, K, 2), pixels of the input; `visible` bool (N, K) and `labelled` bool (N,), without
                which all are.

        Raises:
            UserError: if the network gives no heatmaps, or not as many as the codec draws, or has not as many stages as
                there are weights; or if the size of the pictures is not known.
        """
        stages = stages_of(outputs)
        weights = self.stage_weights or (1.0,) * len(stages)
        # earlier stages are outputs in train mode alone
        if len(weights) != len(stages) and (self.training or len(stages) > 1):
            raise UserError(f"HeatmapLoss: {len(weights)} stage_weights for a network of {len(stages)} stages.")
        chosen = {
            name: self.weight * weight for name, weight in zip(stages, weights[-len(stages) :], strict=True) if weight
        }
        drawn: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        losses = {}
        for name, weight in chosen.items():
            maps = full_precision(stages[name])
            if maps.shape not in drawn:
                drawn[maps.shape] = self.draw(maps, targets)
            losses[name] = weight * self.compare(maps, *drawn[maps.shape])
        return losses

    def draw(self, maps: Tensor, targets: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Heatmaps of the points (N, C, h, w), as `maps` are, and their weights (N, C), 0 or 1."""
        points = targets["points"]
        expected = self.codec.channels(points.shape[1])
        if maps.shape[1] != expected:
            raise UserError(
                f"HeatmapLoss: the network gives {maps.shape[1]} heatmaps, but {type(self.codec).__name__} has "
                f"{expected} for {points.shape[1]} points. Set the network's maps to {expected}."
            )
        counted = self.counted(targets)
        size = (maps.shape[-2], maps.shape[-1])
        drawn, weights = self.codec.encode(points, counted, self.picture(targets), size)
        return drawn.to(maps), weights.to(maps)

    def compare(self, maps: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """The loss of heatmaps (N, C, h, w) against drawn ones, with weights (N, C)."""
        with torch.autocast(maps.device.type, enabled=False):
            if self.kind == "cross_entropy":
                entropies = -(target * maps.flatten(2).log_softmax(-1).view(maps.shape)).sum((2, 3))
                return (entropies * weights).sum() / weights.sum().clamp(min=1)
            errors = (maps - target).square() if self.kind == "mse" else self.adaptive_wing(maps, target)
            if self.foreground:
                near = F.max_pool2d(target, 3, stride=1, padding=1) >= FOREGROUND_FROM
                errors = errors * (1 + self.foreground * near)
            if isinstance(self.codec, UDPHeatmap) and self.codec.kind == "combined":
                errors = within_discs(errors, target)
            total = (errors.sum((2, 3)) * weights).sum()
            if self.reduction == "annotated":
                return total / (weights > 0).any(dim=1).sum().clamp(min=1) / 2
            return total / (weights.sum().clamp(min=1) * math.prod(maps.shape[2:]))

    def adaptive_wing(self, maps: Tensor, target: Tensor) -> Tensor:
        """Adaptive Wing of every pixel."""
        exponent = self.alpha - target
        ratio = self.theta / self.epsilon
        power = ratio**exponent
        slope = self.omega * exponent * ratio ** (exponent - 1) / (self.epsilon * (1 + power))
        offset = self.theta * slope - self.omega * torch.log1p(power)
        distance = (maps - target).abs()
        near = distance < self.theta
        curved = self.omega * torch.log1p((distance.clamp(max=self.theta) / self.epsilon) ** exponent)
        return torch.where(near, curved, slope * distance - offset)


@CRITERIA.register
class CoordinateLoss(LandmarkCriterion):
    """Difference between predicted and true coordinates in pixels of the network's input, the mean over visible points.

    With the difference d in one coordinate: `wing` (Feng et al., CVPR 2018, equation 5): `w log(1 + |d| / epsilon)` for
    |d| < w, else `|d| - w + w log(1 + w / epsilon)`; `l1`: |d|; `smooth_l1`: d^2 / 2 for |d| < 1, else |d| - 1/2;
    `mse`: d^2.
    The mean is over both coordinates. Computes in float32 under autocast. A point that is not visible and a sample that
    is not labelled take no part; a batch without any gives 0 with zero gradient.

    Args:
        kind: `wing`, `l1`, `smooth_l1` or `mse`.
        input_size: see `HeatmapLoss`.
        w: from how many pixels on `wing` is linear; the authors' 10 is for faces of about 256 pixels.
        epsilon: of `wing`, in pixels.
        weight: of the term.

    Raises:
        ValueError: for an unknown kind, or a number that makes no sense.
    """

    def __init__(
        self,
        kind: CoordinateKind = "wing",
        input_size: int | Sequence[int] | None = None,
        w: float = 10.0,
        epsilon: float = 2.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(input_size)
        _check_word("kind", kind, get_args(CoordinateKind))
        if min(w, epsilon) <= 0:
            raise ValueError(f"w and epsilon are above 0, not {w!r} and {epsilon!r}.")
        self.kind = kind
        self.w = w
        self.epsilon = epsilon
        self.weight = weight

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weighted term `points`.

        Args:
            outputs: `points` (N, K, 2), fractions of the picture's width and height.
            targets: as for `HeatmapLoss`.

        Raises:
            UserError: if the network gives no points, or another number of them; or if the size of the pictures is not
                known.
        """
        if "points" not in outputs:
            raise UserError(f"CoordinateLoss: the network gives {', '.join(outputs)}, but no points.")
        points, truth = full_precision(outputs["points"]), targets["points"]
        if points.shape != truth.shape:
            raise UserError(
                f"CoordinateLoss: the network gives {points.shape[1]} points, but the faces have {truth.shape[1]}."
            )
        counted = self.counted(targets)[..., None]
        height, width = self.picture(targets)
        with torch.autocast(points.device.type, enabled=False):
            pixels = points * points.new_tensor((width, height)) - 0.5
            difference = torch.where(counted, pixels - truth.to(pixels), 0)
            total = self.measures[self.kind](difference).sum()
            return {"points": self.weight * total / (2 * counted.sum().clamp(min=1))}

    @property
    def measures(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """What each kind makes of a difference, in each element; 0 of 0."""
        return {"wing": self.wing, "l1": torch.abs, "smooth_l1": smooth_l1, "mse": torch.square}

    def wing(self, difference: Tensor) -> Tensor:
        """Wing of every element."""
        distance = difference.abs()
        constant = self.w - self.w * math.log1p(self.w / self.epsilon)
        curved = self.w * torch.log1p(distance / self.epsilon)
        return torch.where(distance < self.w, curved, distance - constant)


def stages_of(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The heatmaps of all stages, the first stage first and the last, `heatmaps`, at the end.

    Raises:
        UserError: if there are none.
    """
    if "heatmaps" not in outputs:
        raise UserError(f"the network gives {', '.join(outputs)}, but no heatmaps; a codec needs a heatmap network.")
    earlier = sorted((n for n in outputs if n.startswith("heatmaps_")), key=lambda n: int(n.rpartition("_")[2]))
    return {name: outputs[name] for name in (*earlier, "heatmaps")}


def within_discs(errors: Tensor, target: Tensor) -> Tensor:
    """Errors of maps (disc, x, y) of each point (N, 3 K, h, w); those of x and y outside the drawn disc are 0."""
    discs = target.unflatten(1, (-1, DISC_MAPS))[:, :, :1]
    inside = torch.cat([torch.ones_like(discs), discs, discs], dim=2)
    return errors * inside.flatten(1, 2)


def smooth_l1(difference: Tensor) -> Tensor:
    """`d^2 / 2` for |d| < 1, else `|d| - 1/2`, of every element."""
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")


def _check_word(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r} is not known.{nearest(value, known)} Known: {', '.join(known)}.")
