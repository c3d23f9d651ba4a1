"""One pass over a data set with a task model: the same for checkpoints and exported files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import METRICS
from torch.utils.data import DataLoader

from kd_tasks.engine.progress import track
from kd_tasks.evaluation.metric import Metric
from kd_tasks.task import Prediction, TaskModel


@dataclass
class EvaluationResult:
    """The metrics of a pass by name, the first being the main one, and by class where the metric tells them apart.

    `note` says in words how the numbers are to be read; empty where they need no words.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""

    @property
    def main(self) -> tuple[str, float]:
        """Name and value of the main metric."""
        return next(iter(self.metrics.items()))

    def to_dict(self) -> dict[str, Any]:
        """As `metrics.json` holds it."""
        noted = {"note": self.note} if self.note else {}
        return {"metrics": self.metrics, "per_class": self.per_class, **noted}


@torch.no_grad()
def evaluate(
    model: TaskModel,
    loader: DataLoader,
    evaluator: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    device: str | torch.device = "cpu",
    description: str = "Testing",
    on_batch: Callable[[dict[str, Any], list[Prediction]], None] | None = None,
    folder: Path | None = None,
) -> EvaluationResult:
    """Run `model` over `loader` and compute the metrics that `evaluator` configures.

    Args:
        model: a task model, with a network or with an exported artefact in its place.
        loader: batches as `collate_samples` makes them.
        evaluator: one metric's config, or several.
        device: where the model runs.
        description: what the progress bar says.
        on_batch: called with every batch and its predictions, to save or draw them.
        folder: for files that a metric writes with its numbers.
    """
    metrics = build_metrics(evaluator)
    for metric in metrics:
        if isinstance(metric, Metric):
            metric.folder = folder
    judge = Evaluator(metrics)
    dataset: Any = loader.dataset
    judge.dataset_meta = getattr(dataset, "metainfo", None)
    model.to(device).eval()
    for batch in track(loader, description, len(loader)) if is_main_process() else loader:
        predictions = model.val_step(batch)
        judge.process(data_samples=predictions, data_batch=batch)
        if on_batch is not None:
            on_batch(batch, predictions)
    values = {name: float(value) for name, value in judge.evaluate(len(dataset)).items()}
    return EvaluationResult(values, per_class_of(metrics), note_of(metrics))


def build_metrics(evaluator: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[BaseMetric]:
    """The metrics that a config names."""
    configs = [evaluator] if isinstance(evaluator, Mapping) else evaluator
    return [METRICS.build(dict(cfg)) for cfg in configs]


def per_class_of(metrics: Sequence[BaseMetric]) -> dict[str, dict[str, float]]:
    """What the metrics know by class: `{class: {metric: value}}`."""
    table: dict[str, dict[str, float]] = {}
    for metric in metrics:
        for name, row in getattr(metric, "per_class", {}).items():
            table.setdefault(name, {}).update(row)
    return table


def note_of(metrics: Sequence[BaseMetric]) -> str:
    """What the metrics say about reading their numbers."""
    return " ".join(filter(None, (metric.note for metric in metrics if isinstance(metric, Metric))))
