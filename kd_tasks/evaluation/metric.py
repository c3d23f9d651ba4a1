"""What the metrics of all tasks share."""

from typing import ClassVar

from mmengine.evaluator import BaseMetric


class Metric(BaseMetric):
    """An mmengine metric whose names stand alone (`mIoU`, not `prefix/mIoU`) unless a config sets a `prefix`.

    Attributes:
        lower_is_better: names of those of its numbers that are errors.
        per_class: after an evaluation, `{class: {metric: value}}` where the metric tells classes apart.
    """

    default_prefix: ClassVar[str] = ""
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    per_class: dict[str, dict[str, float]]
