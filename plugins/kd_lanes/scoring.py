"""What `kd-tasks score` takes: predictions of lanes in the official formats, whoever wrote them."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from kd_lanes import bdd, culane, tusimple
from kd_lanes.lane_files import lines_path
from kd_lanes.metrics import CULaneMetric, TuSimpleMetric
from kd_tasks.engine.evaluate import EvaluationResult
from kd_tasks.errors import UserError

LISTS = Path("list/test_split")
LABELS = "test_label.json"
MASKS = Path("labels/lane/masks/val")
NOTES = 4


def score_culane(
    predictions: Path,
    annotations: Path,
    list_file: str | None = None,
    size: Sequence[int] = culane.SIZE,
    width: int = culane.WIDTH,
    iou: float = culane.IOU,
    odd: str = "error",
    workers: int = 1,
) -> EvaluationResult:
    """The numbers of `CULaneMetric` for a folder of `.lines.txt`.

    Args:
        predictions: see `kd_lanes.culane.evaluate_files`.
        annotations: the folder of CULane.
        list_file: a list, or a folder of the nine lists; None takes `list/test_split` of CULane.
        size: width and height of the pictures in pixels.
        width: of a drawn lane in pixels.
        iou: above which a predicted and an annotated lane belong together.
        odd: see `kd_lanes.culane.evaluate_files`.
        workers: processes that share the pictures.

    Raises:
        UserError: if no picture has a prediction; see `kd_lanes.culane.evaluate_files`.
    """
    judge = CULaneMetric(iou=iou, width=width, size=size)
    chosen = annotations / LISTS if list_file is None else Path(str(list_file))
    pictures = list(chain.from_iterable(culane.read_lists(chosen).values()))
    absent = [file for file in (lines_path(predictions, name) for name in pictures) if not file.is_file()]
    if len(absent) == len(pictures):
        example = f", such as {absent[0]}" if absent else ""
        raise UserError(f"{predictions}: none of the {len(pictures)} pictures of {chosen} has a prediction{example}.")
    found = culane.evaluate_files(predictions, annotations, chosen, (size[0], size[1]), width, odd, workers)
    metrics = judge.compute_metrics([(name, match) for name, matches in found.matches.items() for match in matches])
    lacking = [f"{len(absent)} of {len(pictures)} pictures have no file of predictions."] if absent else []
    return EvaluationResult(metrics, judge.per_class, "\n".join([*lacking, *_first(found.notes)]))


def _first(notes: Sequence[str]) -> list[str]:
    """The first notes, and how many more there are."""
    rest = len(notes) - NOTES
    return [*notes[:NOTES], *([f"And {rest} more such notes."] if rest > 0 else [])]


def score_tusimple(predictions: Path, annotations: Path) -> EvaluationResult:
    """Accuracy, FP, FN and F1 in percent of a file of JSON lines; see `kd_lanes.tusimple.evaluate_files`.

    Args:
        predictions: the file.
        annotations: `test_label.json`, or a folder that has it.
    """
    labels = annotations / LABELS if annotations.is_dir() else annotations
    scores = tusimple.evaluate_files(predictions, labels)
    return EvaluationResult({name: 100 * value for name, value in scores.items()}, note=TuSimpleMetric.rule)


def score_bdd100k(predictions: Path, annotations: Path, thresholds: Sequence[int] = bdd.THRESHOLDS) -> EvaluationResult:
    """Accuracy, IoU and the official F1 in percent of a folder of masks; see `kd_lanes.bdd.evaluate_folder`.

    Args:
        predictions: the folder.
        annotations: a folder of masks, or that of BDD100K, of which those of the validation are taken.
        thresholds: in pixels.
    """
    masks = annotations / MASKS
    table = bdd.evaluate_folder(masks if masks.is_dir() else annotations, predictions, thresholds)
    lane = table.pop("lane")
    means, classes = bdd.by_class(table)
    return EvaluationResult({**lane, **means}, classes)
