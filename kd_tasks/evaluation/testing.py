"""A checkpoint on its test data: metrics, tables, saved predictions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from rich.table import Table
from torch import Tensor

from kd_tasks.engine.evaluate import EvaluationResult
from kd_tasks.engine.train import test
from kd_tasks.errors import UserError

MAPS, LINES = "predictions", "predictions.jsonl"


def test_checkpoint(cfg: Config, checkpoint: str | Path, out: str | Path | None = None) -> EvaluationResult:
    """The metrics of `checkpoint` on the test data of `cfg`.

    Args:
        cfg: a config with test data; a distillation's student is what is tested.
        checkpoint: a `student.pth`, a run's checkpoint or a run folder.
        out: a folder for `metrics.json` and the predictions, see `PredictionWriter`.

    Raises:
        UserError: if the config has no test data, or the checkpoint does not fit.
    """
    if out is None:
        return test(cfg, str(checkpoint))
    with PredictionWriter(Path(out)) as writer:
        return test(cfg, str(checkpoint), Path(out), on_batch=writer)


class PredictionWriter:
    """Saves predictions while a model is evaluated.

    A map of class numbers (H, W), 0 to 255, becomes a grey PNG of the original image's size,
    `predictions/<path of the image>.png`; everything else goes into `predictions.jsonl`, one line an image. The class
    numbers are those of the metric, not those of a benchmark's submission format.

    Args:
        folder: where to write.

    Raises:
        UserError: if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = (folder / LINES).open("w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder}: predictions cannot be written there: {error}. Choose another folder.") from None

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    def __call__(self, batch: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> None:
        """Save the predictions of one batch."""
        for meta, prediction in zip(batch["meta"], predictions, strict=True):
            maps = {name: value for name, value in prediction.items() if is_class_map(value)}
            for name, value in maps.items():
                self._write_map(Path(meta["path"]), value, name if len(maps) > 1 else "")
            rest = {name: as_json(value) for name, value in prediction.items() if name not in maps}
            if rest:
                self._lines.write(json.dumps({"path": str(meta["path"]), **rest}) + "\n")

    def _write_map(self, image: Path, classes: Tensor, name: str) -> None:
        inside = Path(*(part for part in image.parts if part not in ("..", image.anchor)))
        file = (self.folder / MAPS / inside).with_suffix(f".{name}.png" if name else ".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(file), classes.cpu().numpy().astype(np.uint8)):
            raise UserError(f"{file}: the prediction could not be written. Is the disk full?")


def is_class_map(value: object) -> bool:
    """Whether `value` is a whole-number map (H, W) of an image."""
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()


def as_json(value: Any) -> Any:
    """Tensors and arrays as nested lists, also those in lists, tuples and dicts; anything else as it is."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: as_json(one) for name, one in value.items()}
    return [as_json(one) for one in value] if isinstance(value, list | tuple) else value


def result_tables(result: EvaluationResult) -> list[Table]:
    """The metrics, and the metrics of each class where the task has them, for a terminal."""
    metrics = Table(title="Test data", title_justify="left", caption=result.note or None, caption_justify="left")
    metrics.add_column("metric")
    metrics.add_column("value", justify="right")
    for name, value in result.metrics.items():
        metrics.add_row(name, f"{value:.2f}")
    return [*([class_table(result.per_class)] if result.per_class else []), metrics]


def class_table(per_class: Mapping[str, Mapping[str, float]]) -> Table:
    """One line a class, one column a metric."""
    names = list(dict.fromkeys(name for row in per_class.values() for name in row))
    table = Table(title="Class by class", title_justify="left")
    table.add_column("class")
    for name in names:
        table.add_column(name, justify="right")
    for label, row in per_class.items():
        table.add_row(label, *(class_cell(row[name]) if name in row else "-" for name in names))
    return table


def class_cell(value: float) -> str:
    """A number as a table of classes shows it: a count as it is, anything else to two places."""
    return str(value) if isinstance(value, int) else f"{value:.2f}"
