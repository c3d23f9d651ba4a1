"""The task loss of classification."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.errors import UserError
from kd_tasks.registry import CRITERIA


@CRITERIA.register
class CrossEntropy(nn.Module):
    """Cross-entropy between `logits` (N, C) and the target `label` (N,), averaged over the batch.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes, 0 to 1.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, outputs: dict[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`dict(cross_entropy=scalar)`, in nats, computed in float32.

        Raises:
            UserError: on a CPU, if a label is beyond the logits.
        """
        logits, label = outputs["logits"].float(), targets["label"]
        try:
            return {"cross_entropy": F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)}
        except IndexError:
            raise UserError(
                f"there is a label {int(label.max())}, but the network has {logits.shape[1]} classes (0 to "
                f"{logits.shape[1] - 1}). Set num_classes of the network to the number of classes of the data."
            ) from None
