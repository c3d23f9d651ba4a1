"""Pictures that belong to no data set, with what a model predicts for them drawn in: file by file, and as a video."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from mmengine.device import get_device
from mmengine.registry import DATASETS

from kd_tasks import plugins
from kd_tasks.deploy.runtimes import build_deployed
from kd_tasks.engine.build import build_loader, build_task_model
from kd_tasks.engine.config import load_config
from kd_tasks.engine.progress import track
from kd_tasks.errors import UserError
from kd_tasks.evaluation.deployed import weights_file
from kd_tasks.evaluation.runs import ARTEFACT_SUFFIXES, CONFIG, Run
from kd_tasks.report.pictures import SHARED, predicted
from kd_tasks.task import TaskModel, collate_samples
from kd_tasks.vision.dataset import VisionDataset
from kd_tasks.vision.drawing import Drawing, Image, SetDrawing, fitted, grid, png_bytes
from kd_tasks.vision.images import IMAGE_SUFFIXES, write_bytes

VIDEO = "predictions.mp4"
FPS = 10.0


class Outlook(NamedTuple):
    """What it takes to predict.

    Attributes:
        model: the task model.
        task: its task's name.
        dataset: config of the data set that pictures are prepared like.
        metainfo: of that data set.
    """

    model: TaskModel
    task: str
    dataset: Mapping[str, Any]
    metainfo: Mapping[str, Any]


@dataclass(frozen=True)
class Predicted:
    """What was written.

    Attributes:
        files: the drawn pictures.
        video: the video, if one was asked for.
    """

    files: tuple[Path, ...]
    video: Path | None = None


def predict(
    model: str | Path,
    pictures: str | Path,
    out: str | Path,
    config: str | None = None,
    video: bool = False,
    fps: float = FPS,
) -> Predicted:
    """Draw predictions for pictures without annotation, which are prepared like the model's test data.

    Args:
        model: an exported file; a run folder, or weights in one; or any weights, if `config` names theirs.
        pictures: an image, or a folder whose images are taken in the order of their names, folders below included.
        out: the folder for the drawn pictures, PNGs under the names of the originals.
        config: of the weights: a file or a shipped config; that of the run folder if not given.
        video: also write all pictures as one video, `predictions.mp4`, each at the size of the first.
        fps: pictures a second.

    Raises:
        UserError: if there are no pictures, one is faulty, the model cannot be read, or its task draws no prediction
            for a picture alone.
    """
    if fps <= 0:
        raise UserError(f"{fps:g} pictures a second make no video; give a positive number.")
    source, out = Path(pictures), Path(out)
    files = find_pictures(source)
    folder = source if source.is_dir() else source.parent
    if out.resolve() == folder.resolve() or (source.is_dir() and out.resolve().is_relative_to(folder.resolve())):
        raise UserError(f"{out}: the drawn pictures would lie among the originals in {folder}. Choose another folder.")
    written = drawn_names(out, folder, files)
    outlook = outlook_of(Path(model), config)
    drawn = drawn_predictions(outlook, _drawing(outlook), folder, files)
    with Video(out / VIDEO if video else None, fps) as film:
        for path, picture in zip(written, drawn, strict=True):
            write_bytes(path, png_bytes(picture))
            film.add(picture)
    return Predicted(tuple(written), film.path)


def find_pictures(source: Path) -> list[Path]:
    """The image that `source` is, or those in the folder that it is, by name, numbers as numbers.

    Raises:
        UserError: if there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such image or folder of images.")
    found = [path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not found:
        raise UserError(f"{source}: holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """By which numbers in names are ordered as numbers: 2.jpg before 10.jpg."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def drawn_names(out: Path, folder: Path, files: list[Path]) -> list[Path]:
    """Where the drawn picture of each file goes; the old suffix stays in the name where two differ in it alone."""
    names = [out / file.relative_to(folder) for file in files]
    stems = Counter(name.with_suffix("") for name in names)
    return [
        name.with_suffix(".png") if stems[name.with_suffix("")] == 1 else name.with_name(f"{name.name}.png")
        for name in names
    ]


def outlook_of(model: Path, config: str | None = None) -> Outlook:
    """The model of an exported file or of weights, with the config of its test data; see `predict`.

    Raises:
        UserError: if files are missing or do not fit, or no test data are named.
    """
    if model.suffix in ARTEFACT_SUFFIXES:
        if config is not None:
            raise UserError(f"{model}: an exported file has its config in its manifest; leave --config out.")
        deployed, manifest = build_deployed(model)
        about = manifest.about
        info = {"classes": about.classes, "palette": about.palette}
        return Outlook(deployed, about.task, _dataset(about.test_dataloader, model), info)
    weights = weights_file(model)
    if config is None and not (weights.parent / CONFIG).is_file():
        raise UserError(f"{weights}: there is no {CONFIG} beside it. Name the config of these weights by --config.")
    cfg = Run(weights.parent).cfg if config is None else load_config(config)
    dataset = _dataset(cfg.get("test_dataloader"), weights)
    return Outlook(build_task_model(cfg, str(weights)), cfg.get("task", ""), dataset, _metainfo(cfg))


def _dataset(loader: Mapping[str, Any] | None, model: Path) -> Mapping[str, Any]:
    plugins.load_all()
    if loader is None:
        raise UserError(f"{model}: its config names no test data, by which it would be known how to prepare a picture.")
    dataset: Mapping[str, Any] = loader["dataset"]
    return dataset


def _metainfo(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """That of the test data; empty where they are not there, so that what their class knows has to do."""
    try:
        dataset: Any = build_loader(cfg["test_dataloader"]).dataset
    except UserError:
        return {}
    return getattr(dataset, "metainfo", {})


def _drawing(outlook: Outlook) -> Drawing:
    reference = plugins.get(outlook.task).drawing if outlook.task else None
    if reference is None:
        raise UserError(f"the task {outlook.task!r} has no drawing, so there is nothing to show.")
    kind = _class(outlook)
    known = {"classes": list(kind.classes), "palette": [list(colour) for colour in kind.palette]}
    drawing: Drawing = plugins.resolve(reference)({**known, **{k: v for k, v in outlook.metainfo.items() if v}})
    if isinstance(drawing, SetDrawing):
        raise UserError(
            f"the task {outlook.task!r} draws predictions for a whole test data set, which mean nothing for a picture "
            "alone. 'kd-tasks browse' with --checkpoint shows them."
        )
    return drawing


def _class(outlook: Outlook) -> type[VisionDataset]:
    kind = DATASETS.get(outlook.dataset["type"])
    if not (isinstance(kind, type) and issubclass(kind, VisionDataset)):
        raise UserError(
            f"the task {outlook.task!r}: its test data are a {outlook.dataset['type']}, which cannot say how to "
            "prepare a picture of its own; only data sets of the class VisionDataset can."
        )
    return kind


def drawn_predictions(outlook: Outlook, drawing: Drawing, folder: Path, files: list[Path]) -> Iterator[Image]:
    """Each of `files`, which are below `folder`, with the prediction drawn in, uint8 RGB; one at a time."""
    dataset = _class(outlook).of_pictures(folder, files, outlook.dataset)
    model = outlook.model.to(get_device()).eval()
    for index in track(range(len(files)), "Predicting", len(files)):
        item = _prepared(dataset, index, outlook.task)
        prediction = _predicted(model, item, outlook.task)
        image = dataset.load(index)["image"]
        shown = drawing.panels(image, {"meta": item["meta"]}, prediction)
        own = [panel for panel in shown if panel[0] not in SHARED]
        if not own:
            raise UserError(
                f"the task {outlook.task!r} draws no prediction for a picture alone. 'kd-tasks browse' with "
                "--checkpoint shows its predictions on test data."
            )
        yield own[0][1] if len(own) == 1 else grid(own)


def _prepared(dataset: VisionDataset, index: int, task: str) -> dict[str, Any]:
    try:
        return dataset[index]
    except KeyError as error:
        raise _unknown(dataset.items[index], task, error.args) from error


def _predicted(model: TaskModel, item: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    try:
        return predicted(model, collate_samples([dict(item)]))[0]
    except KeyError as error:
        if not error.args or error.args[0] in item["meta"]:
            raise
        raise _unknown(item["meta"]["path"], task, error.args) from error


def _unknown(path: object, task: str, needed: tuple[object, ...]) -> UserError:
    """The refusal of a task that needs more than a picture, such as the box of a face."""
    what = f"{needed[0]!r}" if needed else "something"
    return UserError(
        f"{path}: the task {task!r} needs {what} of each sample, which its data set knows and a picture alone does not "
        "tell. 'kd-tasks browse' with --checkpoint shows predictions on test data."
    )


class Video:
    """An mp4 that is written picture by picture, in a context; pictures of other sizes are fitted into the first's.

    Args:
        path: the file; None writes nothing.
        fps: pictures a second.
    """

    def __init__(self, path: Path | None, fps: float = FPS) -> None:
        self.path = path
        self.fps = fps
        self.size = (0, 0)
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()

    def add(self, picture: Image) -> None:
        """Append a picture, uint8 RGB (H, W, 3).

        Raises:
            UserError: if no video can be written here.
        """
        if self.path is None:
            return
        if self._writer is None:
            self.size = picture.shape[0] + picture.shape[0] % 2, picture.shape[1] + picture.shape[1] % 2
            self._writer = self._opened(self.path)
        frame = picture if picture.shape[:2] == self.size else self._fitted(picture)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def _fitted(self, picture: Image) -> Image:
        height, width = self.size
        missing = height - picture.shape[0], width - picture.shape[1]
        if not all(0 <= rows <= 1 for rows in missing):
            return fitted(picture, height, width)
        return np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")

    def _opened(self, path: Path) -> cv2.VideoWriter:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error}. Choose another folder.") from None
        fourcc = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(path), fourcc, self.fps, self.size[::-1])
        if not writer.isOpened():
            raise UserError(f"{path}: this OpenCV writes no mp4 there. Leave --video out to get the pictures alone.")
        return writer
