"""Task losses of lane networks: segmentation into lane slots, overlap, and which lanes there are."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.errors import UserError
from kd_tasks.losses.base import full_precision
from kd_tasks.registry import CRITERIA

TINY = 1e-6


@CRITERIA.register
class LaneLoss(nn.Module):
    """`ce + iou_weight · iou + exist_weight · exist`, the objective of ENet-SAD without its distillation.

    Hou et al., ICCV 2019, section 3 (arXiv 1908.00821); fixture `enet_sad_loss`.

    `ce` is the cross-entropy of the lane slots, a mean weighted by `background_weight` for the background and 1 for
    lanes. `iou` is 1 less the mean, over samples and slots, of `Σ p g / Σ (p + g - p g)`, with p the probability of a
    slot and g the label, over the labelled pixels of a picture; a slot without a lane counts as 1 and has no gradient.
    `exist` is the mean binary cross-entropy of the existence logits, where the network has them.

    Logits are enlarged to the size of the masks. Pixels labelled 255 do not count; without any other, `ce` is 0. A
    batch of background alone has its cross-entropy, unweighted. Computes in float32 under autocast. Memory: three float
    maps of the labels' size and a channel a slot.

    *Deviations*: the printed formula of `iou` has the lane's pixels for the overlap in the numerator, a misprint.

    Args:
        background_weight: weight of background pixels in `ce`.
        iou_weight: weight of `iou`; 0 leaves it out.
        exist_weight: weight of `exist`; 0 leaves it out.
        ignore_index: label of pixels that do not count.
        align_corners: how logits are enlarged; as in the decoder.
    """

    def __init__(
        self,
        background_weight: float = 0.4,
        iou_weight: float = 0.1,
        exist_weight: float = 0.1,
        ignore_index: int = 255,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        if background_weight <= 0 or min(iou_weight, exist_weight) < 0:
            raise UserError(
                f"LaneLoss: background_weight {background_weight} must be above zero, iou_weight {iou_weight} and "
                f"exist_weight {exist_weight} not below it."
            )
        self.background_weight = background_weight
        self.iou_weight = iou_weight
        self.exist_weight = exist_weight
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.skips_outputs = exist_weight == 0

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted terms `ce`, `iou` and `exist`.

        Args:
            outputs: `logits` (N, L + 1, h, w) and, where the network has them, `exist` (N, L).
            targets: `mask` (N, H, W), 0 background, 1 to L, or `ignore_index`; `exist` (N, L), 0 or 1.

        Raises:
            UserError: if the masks of the batch differ in size, have slots that the network has not, or `exist` is
                missing or of another number of lanes.
        """
        logits, mask = outputs["logits"], self._mask(targets, outputs["logits"].shape[1])
        with torch.autocast(logits.device.type, enabled=False):
            maps = full_precision(logits)
            if maps.shape[-2:] != mask.shape[-2:]:
                maps = F.interpolate(maps, mask.shape[-2:], mode="bilinear", align_corners=self.align_corners)
            logs = maps.log_softmax(dim=1)
            losses = {"ce": self.cross_entropy(logs, mask)}
            if self.iou_weight:
                losses["iou"] = self.iou_weight * self.overlap(logs, mask)
            if self.exist_weight and "exist" in outputs:
                losses["exist"] = self.exist_weight * self.existence(full_precision(outputs["exist"]), targets)
        return losses

    def cross_entropy(self, logs: Tensor, mask: Tensor) -> Tensor:
        """Weighted mean over the labelled pixels of `mask` (N, H, W), of log probabilities (N, C, H, W)."""
        weight = logs.new_ones(logs.shape[1])
        weight[0] = self.background_weight
        total = F.nll_loss(logs, mask, weight, ignore_index=self.ignore_index, reduction="sum")
        counts = [(mask == 0).sum(), ((mask != 0) & (mask != self.ignore_index)).sum()]
        counted = self.background_weight * counts[0].to(logs.dtype) + counts[1]
        return total / torch.where(counted > 0, counted, 1)

    def overlap(self, logs: Tensor, mask: Tensor) -> Tensor:
        """1 less the mean overlap of each slot's probabilities and labels, of log probabilities (N, C, H, W)."""
        labelled = (mask != self.ignore_index)[:, None]
        slots = torch.arange(1, logs.shape[1], device=mask.device).view(1, -1, 1, 1)
        labels = mask[:, None] == slots
        p = logs[:, 1:].exp() * labelled
        both = (p * labels).sum(dim=(2, 3))
        either = p.sum(dim=(2, 3)) + labels.sum(dim=(2, 3)) - both
        return 1 - (both / either.clamp(min=TINY)).mean()

    def existence(self, logits: Tensor, targets: Mapping[str, Any]) -> Tensor:
        """Mean binary cross-entropy of existence logits (N, L).

        Raises:
            UserError: if the targets do not have as many lanes.
        """
        exist = targets.get("exist")
        if not isinstance(exist, Tensor) or exist.shape != logits.shape:
            there = tuple(exist.shape) if isinstance(exist, Tensor) else "no"
            raise UserError(
                f"LaneLoss: the network says of {logits.shape[1]} lanes whether they exist, but the batch has {there} "
                "target 'exist': set num_lanes of the network, or leave the branch out by exist=False."
            )
        return F.binary_cross_entropy_with_logits(logits, exist.to(logits.dtype))

    def _mask(self, targets: Mapping[str, Any], classes: int) -> Tensor:
        mask = targets["mask"]
        if not isinstance(mask, Tensor):
            sizes = sorted({tuple(m.shape) for m in mask})
            raise UserError(f"the masks of a training batch differ in size {sizes}; crop or resize to one size.")
        labels = mask.long()
        if labels.device.type == "cpu" and bool(((labels >= classes) & (labels != self.ignore_index)).any()):
            largest = int(labels[labels != self.ignore_index].max())
            raise UserError(
                f"LaneLoss: a mask has lane slot {largest}, but the network has {classes - 1}: set its num_lanes."
            )
        return labels
