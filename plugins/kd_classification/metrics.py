"""Accuracy of classification."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd_tasks.errors import UserError
from kd_tasks.evaluation.metric import Metric
from kd_tasks.registry import METRICS


@METRICS.register_module()
class Accuracy(Metric):
    """Share of images whose class is among the `k` most probable ones, in percent: `top1`, `top5`.

    With fewer than `k` classes it is among all of them, so the number is 100. After an evaluation `per_class` holds
    the same numbers over the images of each class; a class without images is left out.

    Args:
        topk: the values of `k`.
        collect_device: where results of several processes meet, `cpu` or `gpu`.
        prefix: stands before the names, as in `val/top1`.
    """

    def __init__(self, topk: Sequence[int] = (1, 5), collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = tuple(topk)
        self.per_class: dict[str, dict[str, float]] = {}

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        """`data_samples` as `TopKDecoder` gives them; `data_batch` has the targets' `label` (N,)."""
        truth = data_batch["targets"]["label"]
        pairs = zip(truth, data_samples, strict=True)
        self.results += [(int(label), rank_of(int(label), sample["label"])) for label, sample in pairs]
        self._check_length(len(data_samples[0]["label"]))

    def compute_metrics(self, results: list[tuple[int, int | None]]) -> dict[str, float]:
        """Percent over all images; sets `per_class`."""
        labels = sorted({label for label, _ in results})
        names = (self.dataset_meta or {}).get("classes") or [str(i) for i in range(labels[-1] + 1)]
        self.per_class = {names[c]: self._percent([rank for label, rank in results if label == c]) for c in labels}
        return self._percent([rank for _, rank in results])

    def _percent(self, ranks: list[int | None]) -> dict[str, float]:
        hits = {k: sum(rank is not None and rank < k for rank in ranks) for k in self.topk}
        return {f"top{k}": 100.0 * count / len(ranks) for k, count in hits.items()}

    def _check_length(self, length: int) -> None:
        classes = len((self.dataset_meta or {}).get("classes", ())) or max(self.topk)
        needed = min(max(self.topk), classes)
        if length < needed:
            raise UserError(
                f"top{needed} needs the {needed} most probable classes of each image and the decoder gives {length}: "
                f"set decoder=dict(type='TopKDecoder', k={needed}) or the metric's topk."
            )


def rank_of(label: int, ranked: Tensor) -> int | None:
    """Position of `label` in the class numbers `ranked` (k,), 0 for the first; None if it is not among them."""
    places = torch.nonzero(ranked == label)
    return int(places[0]) if len(places) else None
