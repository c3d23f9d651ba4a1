"""From logits to class numbers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kd_tasks.registry import DECODERS


@DECODERS.register
class TopKDecoder:
    """The `k` most probable classes of each image.

    Args:
        k: how many; all classes if there are fewer.
    """

    def __init__(self, k: int = 5) -> None:
        self.k = k

    def __call__(self, outputs: dict[str, Tensor], meta: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """One dict an image: `label` int64 (k,), the most probable class first, and `scores` float (k,), 0 to 1."""
        probabilities = outputs["logits"].float().softmax(dim=1)
        scores, labels = probabilities.topk(min(self.k, probabilities.shape[1]), dim=1)
        return [{"label": label, "scores": score} for label, score in zip(labels, scores, strict=True)]
