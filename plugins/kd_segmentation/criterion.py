"""Task loss of segmentation: cross-entropy at label size."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.errors import UserError
from kd_tasks.losses.base import full_precision
from kd_tasks.registry import CRITERIA


@CRITERIA.register
class SegmentationLoss(nn.Module):
    """Mean cross-entropy over the labelled pixels, of logits enlarged to label size, and the same for `aux`.

    `ce + aux_weight · aux_ce`, as PSPNet (Zhao et al., CVPR 2017) is trained and as structured distillation (Liu et
    al., CVPR 2019) has it; fixture `skd_dsn_ce`. A batch without a labelled pixel gives 0 with zero gradient. Computes
    in float32 under autocast. Memory: each of the two terms keeps float maps of the labels' size and `num_classes`
    channels for the gradient, 160 MB for 8 crops of 512x512 with 19 classes.

    Args:
        aux_weight: weight of `aux_ce`; 0 leaves it out.
        ignore_index: label of pixels that do not count.
        align_corners: how logits are enlarged.
        class_weight: one weight a class; the mean is then weighted by it.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        aux_weight: float = 0.4,
        ignore_index: int = 255,
        align_corners: bool = True,
        class_weight: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.aux_weight = aux_weight
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer("class_weight", weight, persistent=False)
        self.skips_outputs = aux_weight == 0

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted terms `ce` and, if there is an `aux` output, `aux_ce`.

        Args:
            outputs: `logits` (N, C, h, w) and optionally `aux` (N, C, h', w').
            targets: `mask` (N, H, W), integers 0..C-1 or `ignore_index`.

        Raises:
            UserError: if the masks of the batch differ in size.
        """
        mask = targets["mask"]
        if not isinstance(mask, Tensor):
            sizes = sorted({tuple(m.shape) for m in mask})
            raise UserError(f"the masks of a training batch differ in size {sizes}; crop or resize to one size.")
        losses = {"ce": self.cross_entropy(outputs["logits"], mask)}
        if "aux" in outputs and self.aux_weight:
            losses["aux_ce"] = self.aux_weight * self.cross_entropy(outputs["aux"], mask)
        return losses

    def cross_entropy(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Mean over the labelled pixels of `mask` (N, H, W), of logits (N, C, h, w) enlarged to (H, W)."""
        with torch.autocast(logits.device.type, enabled=False):
            maps = full_precision(logits)
            maps = F.interpolate(maps, size=mask.shape[-2:], mode="bilinear", align_corners=self.align_corners)
            labels = mask.long()
            weight = None if self.class_weight is None else self.class_weight.to(maps.dtype)
            terms = F.cross_entropy(maps, labels, weight, ignore_index=self.ignore_index, reduction="none")
            return terms.sum() / self._weight_of(labels, weight).to(maps.dtype)

    def _weight_of(self, labels: Tensor, weight: Tensor | None) -> Tensor:
        """What the sum is divided by; 1 where nothing counts."""
        valid = labels != self.ignore_index
        if weight is None:
            return valid.sum().clamp(min=1)
        counted = torch.where(valid, weight[labels.where(valid, 0)], 0).sum()
        return torch.where(counted > 0, counted, 1)
