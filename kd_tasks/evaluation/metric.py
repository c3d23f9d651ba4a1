"""What the metrics of all tasks share."""

from pathlib import Path
from typing import ClassVar

from mmengine.evaluator import BaseMetric


class Metric(BaseMetric):
    """An mmengine metric whose names stand alone (`mIoU`, not `prefix/mIoU`) unless a config sets a `prefix`.

    Attributes:
        lower_is_better: names of those of its numbers that are errors.
        per_class: after an evaluation, `{class: {metric: value}}` where the metric tells classes apart.
        folder: where files go that a metric writes with its numbers; None where there is no place for any.
    """

    default_prefix: ClassVar[str] = ""
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    per_class: dict[str, dict[str, float]]
    folder: Path | None = None

    @property
    def note(self) -> str:
        """How the numbers are to be read, such as what an error is divided by; stands beside them wherever they do."""
        return ""
