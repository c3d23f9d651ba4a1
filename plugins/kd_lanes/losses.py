"""What self attention distillation needs for lanes alone: a block that learns to look where the labels are."""

from typing import ClassVar, get_args

from torch import Tensor

from kd_tasks.losses import SAD
from kd_tasks.losses.base import Loss, check_option
from kd_tasks.registry import LOSSES
from kd_tasks.vision.pooling import region_means

IGNORED = 255


@LOSSES.register
class LabelAttention(Loss):
    """The released variant of self attention distillation: the last block learns to look where the lanes are.

    `mean over samples of the sum over cells of (G - T)^2`, with the attention map G of `SAD` and T the share of lane
    pixels in each cell of the map, scaled to the sum 1. A sample without lanes adds 0.

    Hou et al. 2019: the authors' released code, in which block 3 mimics block 4 (a transfer with `SAD`), and block 4
    the labels (this one), and block 2 nothing.

    Args:
        map_norm: see `SAD`.
        reduction: over cells, see `SAD`.
        ignore_index: label of pixels that do not count.

    Shapes: maps (N, C, h, w) of the student; no teacher. Context `mask` (N, H, W), 0 the background, from 1 on lanes.
    Invariant to the batch size.

    *Deviations*: how the labels become a map is not known in words; T is what a softmax over the map can reach.
    """

    paper: ClassVar[str] = SAD.paper
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 0.1
    usual_tap: ClassVar[str] = "e4"
    reads_teacher: ClassVar[bool] = False

    def __init__(
        self,
        map_norm: SAD.MapNorm = "none",
        reduction: SAD.Reduction = "sum",
        ignore_index: int = IGNORED,
    ) -> None:
        super().__init__()
        check_option(map_norm, get_args(SAD.MapNorm), "map_norm", self)
        check_option(reduction, get_args(SAD.Reduction), "reduction", self)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.sad = SAD(map_norm=map_norm)

    def compute(self, student: Tensor, teacher: None, mask: Tensor) -> Tensor:
        if student.ndim != 4 or mask.ndim != 3 or len(student) != len(mask):
            raise ValueError(
                f"LabelAttention compares maps (N, C, h, w) with masks (N, H, W), but their shapes are "
                f"{tuple(student.shape)} and {tuple(mask.shape)}."
            )
        size = (student.shape[2], student.shape[3])
        lanes = region_means(self.lanes(mask).to(student.dtype)[:, None], *size)[:, 0]
        total = lanes.sum(dim=(1, 2), keepdim=True)
        squares = (self.sad.attention(student, size) - lanes / total.clamp(min=1e-12)).square() * (total > 0)
        return squares.mean() if self.reduction == "mean" else squares.sum(dim=(1, 2)).mean()

    def lanes(self, mask: Tensor) -> Tensor:
        """Which pixels (N, H, W) are of a lane."""
        return (mask > 0) & (mask != self.ignore_index)
