"""Pictures of data and predictions: for the report card, and as files to browse."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device

from kd_tasks import plugins
from kd_tasks.engine.build import build_loader, build_task_model
from kd_tasks.engine.evaluate import build_metrics, evaluate
from kd_tasks.engine.files import atomic_write
from kd_tasks.engine.progress import track
from kd_tasks.errors import UserError
from kd_tasks.evaluation.comparison import ALONE, DISTILLED, TEACHER, Comparison
from kd_tasks.evaluation.runs import Run
from kd_tasks.task import Prediction, TaskModel, collate_samples
from kd_tasks.vision.drawing import (
    Drawing,
    Entry,
    Image,
    Panel,
    Row,
    SetDrawing,
    grid,
    legend_picture,
    png_bytes,
    resized,
)

Panels = Sequence[Panel]

SHARED = ("image", "input", "label")
CANDIDATES, EACH = 48, 3
WIDTH, WIDE = 360, 900
SMALLEST, GAP = 160, 10


@dataclass(frozen=True)
class Picture:
    """One picture of the card: a data URI with its title, and what it shows for those who cannot see it."""

    title: str
    uri: str
    description: str


@dataclass(frozen=True)
class Sample:
    """One image of the test data as every model sees it; wide pictures stand below each other."""

    title: str
    pictures: tuple[Picture, ...]
    wide: bool = False


@dataclass(frozen=True)
class Gallery:
    """The pictures of a report card, with the legend of their colours."""

    samples: tuple[Sample, ...] = ()
    legend: tuple[Entry, ...] = ()
    explanation: str = ""


EXPLANATION = (
    "Test images as each model sees them: first those on which the distilled student does worst, then typical ones "
    "(around its median). They are taken from {count} images spread evenly over the test data, not picked by hand."
)


def gallery_of(comparison: Comparison, each: int = EACH, candidates: int = CANDIDATES) -> Gallery:
    """Predictions of teacher, student alone and distilled student on the worst and on typical test images.

    The images are chosen by the distilled student's main metric on each image alone, or by the drawing where it needs
    the whole test data (`SetDrawing`), which every model then goes through. The gallery is empty where the task's
    plugin has no drawing or there is no run of a student.

    Args:
        comparison: with run folders; the first run of each part is shown.
        each: how many worst, and how many typical images.
        candidates: how many images they are chosen from.
    """
    models = _shown_models(comparison)
    subject = next((name for name in (DISTILLED, ALONE, TEACHER) if name in models), None)
    if subject is None:
        return Gallery()
    cfg, _ = models[subject]
    drawing = drawing_of(cfg)
    if drawing is None or cfg.get("test_dataloader") is None:
        return Gallery()
    if isinstance(drawing, SetDrawing):
        return _gallery_of_set(drawing, subject, models, 2 * each)
    dataset = dataset_of(cfg["test_dataloader"])
    indices = spread(len(dataset), candidates)
    scores = _scores(models[subject][1], dataset, cfg["test_evaluator"], indices)
    chosen = _worst_and_typical(scores, each, comparison.lower_is_better)
    samples = tuple(_sample(dataset, index, title, models, drawing) for index, title in chosen)
    return Gallery(samples, tuple(drawing.legend()), EXPLANATION.format(count=len(indices)))


def _gallery_of_set(
    drawing: SetDrawing, subject: str, models: Mapping[str, tuple[Config, TaskModel]], count: int
) -> Gallery:
    roles = [subject, *(role for role in models if role != subject)]
    rows = rows_of_set(drawing, models[subject][0], {role: models[role][1] for role in roles}, count)
    samples = (Sample(row.title, tuple(_wide_picture(row.title, *panel) for panel in row.panels), True) for row in rows)
    return Gallery(tuple(samples), tuple(drawing.legend()), drawing.explanation)


def _wide_picture(row: str, title: str, image: Image) -> Picture:
    return Picture(title, data_uri(image, WIDE), f"{row}: {title}")


def rows_of_set(drawing: SetDrawing, cfg: Config, models: Mapping[str, TaskModel], count: int) -> list[Row]:
    """What `drawing` shows of the predictions of every model on the whole test data of `cfg`."""
    loader = build_loader(cfg["test_dataloader"])
    batches: list[dict[str, Any]] = []
    predictions: dict[str, list[Prediction]] = {}
    for name, model in models.items():
        batches, predictions[name] = [], []
        collect = partial(_collect, batches, predictions[name])
        evaluate(model, loader, [], get_device(), f"Pictures: {name}" if name else "Predicting", collect)
    samples = [sample for batch in batches for sample in _taken_apart(batch)]
    dataset: Any = loader.dataset
    return drawing.gallery(lambda index: original_image(dataset, index), samples, predictions, count)


def _collect(
    batches: list[dict[str, Any]], predictions: list[Prediction], batch: dict[str, Any], found: list[Prediction]
) -> None:
    batches.append({key: batch[key] for key in ("targets", "meta")})
    predictions.extend(found)


def _taken_apart(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`targets` and `meta` of each sample of a batch as `collate_samples` gives it."""
    targets = batch["targets"]
    return [
        {"targets": {name: values[place] for name, values in targets.items()}, "meta": meta}
        for place, meta in enumerate(batch["meta"])
    ]


def drawing_of(cfg: Mapping[str, Any]) -> Drawing | None:
    """The drawing of the config's task, for the classes of its test or training data; None if it has none."""
    plugins.load_all()
    reference = plugins.get(cfg["task"]).drawing if cfg.get("task") else None
    if reference is None:
        return None
    loader = cfg.get("test_dataloader") or cfg.get("train_dataloader")
    if loader is None:
        return None
    drawing: Drawing = plugins.resolve(reference)(dataset_of(loader).metainfo)
    return drawing


def dataset_of(loader: Mapping[str, Any]) -> Any:
    """The data set of a loader's config."""
    return build_loader(loader).dataset


def spread(length: int, count: int) -> list[int]:
    """`count` indices, or fewer, spread evenly over `length`."""
    return sorted({round(i) for i in np.linspace(0, length - 1, min(count, length))})


def _shown_models(comparison: Comparison) -> dict[str, tuple[Config, TaskModel]]:
    rows = {role: comparison.row(role) for role in (TEACHER, ALONE, DISTILLED)}
    runs = {role: Run(row.members[0].path) for role, row in rows.items() if row and row.members[0].path.is_dir()}
    return {role: (run.cfg, build_task_model(run.cfg, str(run.checkpoint))) for role, run in runs.items()}


def _scores(model: TaskModel, dataset: Any, evaluator: Any, indices: Sequence[int]) -> dict[int, float]:
    found = {}
    for index in track(indices, "Choosing pictures", len(indices)):
        batch = collate_samples([dataset[index]])
        metric = build_metrics(evaluator)[0]
        metric.dataset_meta = dataset.metainfo
        metric.process(batch, predicted(model, batch))
        numbers = metric.evaluate(1)
        found[index] = float(next(iter(numbers.values())))
    return {index: score for index, score in found.items() if np.isfinite(score)}


@torch.no_grad()
def predicted(model: TaskModel, batch: dict[str, Any]) -> list[Prediction]:
    """The predictions for a batch as `collate_samples` gives it."""
    found: list[Prediction] = model.val_step(batch)
    return found


def _worst_and_typical(scores: Mapping[int, float], each: int, lower_is_better: bool) -> list[tuple[int, str]]:
    order = sorted(scores, key=lambda index: (scores[index], index), reverse=lower_is_better)
    worst = order[:each]
    rest = order[each:]
    start = max(0, (len(rest) - each) // 2)
    typical = rest[start : start + each]
    named = [(index, "Worst") for index in worst] + [(index, "Typical") for index in typical]
    return [(index, f"{kind}: {scores[index]:.1f} on this image alone") for index, kind in named]


def _sample(
    dataset: Any, index: int, title: str, models: Mapping[str, tuple[Config, TaskModel]], drawing: Any
) -> Sample:
    item = dataset[index]
    image = original_image(dataset, index, item)
    seen: dict[str, Image] = {}
    for role, (_, model) in models.items():
        prediction = predicted(model, collate_samples([item]))[0]
        for name, panel in drawing.panels(image, known_of(item), prediction):
            shared = name in SHARED
            seen.setdefault(name if shared else f"{name}, {role}", panel)
    path = str(item["meta"].get("path", index))
    pictures = tuple(Picture(name, data_uri(panel), f"{name} of {path}") for name, panel in seen.items())
    return Sample(f"{title} ({path})", pictures)


def known_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """What a drawing is told of a sample: its targets, and its `meta` under that name."""
    return {**item["targets"], "meta": item["meta"]}


def original_image(dataset: Any, index: int, item: Mapping[str, Any] | None = None) -> Image:
    """The image (H, W, 3) uint8 RGB at its original size, in whose coordinates predictions are."""
    if hasattr(dataset, "load"):
        image: Image = dataset.load(index)["image"]
        return image
    item = item or dataset[index]
    height, width = item["meta"]["original_size"]
    return np.asarray(cv2.resize(as_image(item), (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def as_image(item: Mapping[str, Any]) -> Image:
    """The transformed image of a sample as (H, W, 3) uint8 RGB."""
    return np.ascontiguousarray(item["inputs"].permute(1, 2, 0).numpy())


def data_uri(image: Image, width: int = WIDTH) -> str:
    """`image` (H, W, 3) uint8 RGB as a PNG in a data URI, made smaller if it is wider than `width`."""
    encoded = base64.b64encode(png_bytes(_narrowed(image, width))).decode("ascii")
    return f"data:image/png;base64,{encoded}"


def _narrowed(image: Image, width: int) -> Image:
    if image.shape[1] <= width:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return resized(image, height, width)


# --- Browsing --------------------------------------------------------------------------------------------------------


def browse(
    cfg: Config, out: str | Path, count: int = 12, checkpoint: str | Path | None = None, rows: int = 6
) -> list[Path]:
    """Write sheets of pictures: training samples after their transforms, or predictions on test data.

    Args:
        cfg: a config.
        out: the folder for `data_1.png`, `data_2.png`, … or `predictions_1.png`, …
        count: how many samples, spread evenly over the data; of a `SetDrawing`, those it shows first.
        checkpoint: weights to predict with; without them the training data are shown.
        rows: samples on one sheet.

    Returns:
        The files.

    Raises:
        UserError: if the task has no drawing, or the config lacks the data.
    """
    drawing = drawing_of(cfg)
    if drawing is None:
        raise UserError(f"the task {cfg.get('task')!r} has no drawing, so there is nothing to show.")
    name = "train_dataloader" if checkpoint is None else "test_dataloader"
    if cfg.get(name) is None:
        raise UserError(f"the config has no {name}, so there is nothing to show.")
    stem = "data" if checkpoint is None else "predictions"
    if checkpoint is not None and isinstance(drawing, SetDrawing):
        chosen = rows_of_set(drawing, cfg, {"": build_task_model(cfg, str(checkpoint))}, count)
        return _sheets([row.panels for row in chosen], drawing, Path(out), stem, rows)
    dataset = dataset_of(cfg[name])
    shown = _transformed(dataset, drawing) if checkpoint is None else _predicted(cfg, checkpoint, dataset, drawing)
    indices = spread(len(dataset), count)
    return _sheets((_enlarged(shown(index)) for index in indices), drawing, Path(out), stem, rows)


def _sheets(samples: Iterable[Panels], drawing: Drawing, folder: Path, stem: str, rows: int) -> list[Path]:
    written: list[Path] = []
    remaining = iter(samples)
    while sheet := list(islice(remaining, rows)):
        path = folder / f"{stem}_{len(written) + 1}.png"
        written.append(_write_png(path, _sheet(sheet, drawing.legend())))
    return written


def _transformed(dataset: Any, drawing: Drawing) -> Callable[[int], Panels]:
    def shown(index: int) -> Panels:
        item = dataset[index]
        return drawing.panels(as_image(item), known_of(item), None)

    return shown


def _predicted(cfg: Config, checkpoint: str | Path, dataset: Any, drawing: Drawing) -> Callable[[int], Panels]:
    model = build_task_model(cfg, str(checkpoint))

    def shown(index: int) -> Panels:
        item = dataset[index]
        prediction = predicted(model, collate_samples([item]))[0]
        return drawing.panels(original_image(dataset, index, item), known_of(item), prediction)

    return shown


def _sheet(rows: Sequence[Panels], legend: Sequence[Entry]) -> Image:
    """One row of titled pictures a sample, and the legend below."""
    parts = [grid(row) for row in rows] + ([legend_picture(legend)] if legend else [])
    width = max(part.shape[1] for part in parts)
    padded = [np.pad(p, ((0, GAP), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in parts]
    return np.concatenate(padded)


def _enlarged(panels: Panels) -> Panels:
    """Panels that are narrower than a readable title, made larger by whole factors."""
    factor = max(1, -(-SMALLEST // panels[0][1].shape[1]))
    return [(title, resized(image, image.shape[0] * factor, image.shape[1] * factor)) for title, image in panels]


def _write_png(path: Path, image: Image) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_bytes(png_bytes(image))
    return path
