"""Task loss of re-identification: cross-entropy of identities and the batch-hard triplet."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_reid.losses import BatchHardTriplet
from kd_tasks.errors import UserError, nearest
from kd_tasks.losses.base import full_precision
from kd_tasks.registry import CRITERIA

Smoothing = Literal["torchreid", "fastreid"]
UNLABELLED = -1


@CRITERIA.register
class ReIDLoss(nn.Module):
    """Cross-entropy of the identities on `logits` plus the batch-hard triplet on `features`.

    The usual recipe (Luo et al., Bag of Tricks, CVPRW 2019); fixture `reid_triplet_ce`. Samples whose label is -1 take
    no part; a batch without labelled samples gives 0 with a zero gradient. Computes in float32 under autocast.

    Args:
        label_smoothing: ε, 0 up to but not including 1.
        smoothing: what smoothing means with K classes. `torchreid`: the label has 1 - ε + ε / K and every other class
            ε / K. `fastreid`: the label has 1 - ε and every other class ε / (K - 1).
        triplet_weight: weight of the triplet; 0 leaves it out.
        margin: of the triplet; None for the soft margin.
        normalise: scale the features to length 1 for the triplet.
        id_weight: weight of the cross-entropy; 0 leaves it out, for networks without a classifier.
    """

    def __init__(
        self,
        label_smoothing: float = 0.1,
        smoothing: Smoothing = "torchreid",
        triplet_weight: float = 1.0,
        margin: float | None = 0.3,
        normalise: bool = False,
        id_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if smoothing not in get_args(Smoothing):
            known = get_args(Smoothing)
            raise ValueError(f"smoothing {smoothing!r} is not known.{nearest(smoothing, known)} Known: {known}.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is at least 0 and below 1, not {label_smoothing!r}.")
        if id_weight < 0 or triplet_weight < 0 or id_weight == triplet_weight == 0:
            raise ValueError(f"id_weight={id_weight!r} and triplet_weight={triplet_weight!r}: one must be above 0.")
        self.label_smoothing = label_smoothing
        self.smoothing = smoothing
        self.triplet_weight = triplet_weight
        self.id_weight = id_weight
        self.triplet = BatchHardTriplet(margin, normalise)
        self.skips_outputs = id_weight == 0

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted terms `id` and `triplet`, in nats and in the features' unit.

        Args:
            outputs: `logits` (N, K) and `features` (N, D).
            targets: `label` (N,), 0..K-1, or -1 for a sample without a label.

        Raises:
            UserError: if the network has no classifier, or, on a CPU, if a label is beyond its classes.
        """
        label = targets["label"]
        losses = {}
        if self.id_weight:
            if "logits" not in outputs:
                raise UserError(
                    "ReIDLoss: the network gives no logits. Set its num_classes to the number of identities, or "
                    "id_weight=0 to train without a classifier."
                )
            losses["id"] = self.id_weight * self.cross_entropy(outputs["logits"], label)
        if self.triplet_weight:
            losses["triplet"] = self.triplet_weight * self.triplet(outputs["features"], label=label)
        return losses

    def cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean over the labelled samples of the smoothed cross-entropy of logits (N, K)."""
        classes = logits.shape[1]
        spread = self.label_smoothing
        if self.smoothing == "fastreid" and classes > 1:
            spread *= classes / (classes - 1)
        with torch.autocast(logits.device.type, enabled=False):
            try:
                total = F.cross_entropy(
                    full_precision(logits),
                    label,
                    reduction="sum",
                    ignore_index=UNLABELLED,
                    label_smoothing=spread,
                )
            except IndexError:
                raise UserError(
                    f"there is a label {int(label.max())}, but the network has {classes} classes (0 to {classes - 1}). "
                    "Set num_classes of the network to the number of identities of the training data."
                ) from None
            return total / (label != UNLABELLED).sum().clamp(min=1)
