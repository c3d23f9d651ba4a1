"""From a checkpoint to a file to deploy, and what that file is worth: metrics, differences, size, speed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kd_tasks import paths
from kd_tasks.deploy.artefact import About, Manifest
from kd_tasks.deploy.export import export
from kd_tasks.deploy.latency import Latency, measure_latency
from kd_tasks.deploy.quantise import quantise
from kd_tasks.deploy.runtimes import build_deployed, load_network
from kd_tasks.engine.build import (
    build_loader,
    build_task_model,
    deployed_model_config,
    deployed_size,
    without_pretrained,
)
from kd_tasks.engine.evaluate import EvaluationResult, evaluate
from kd_tasks.engine.files import sha256_of
from kd_tasks.engine.progress import track
from kd_tasks.errors import UserError
from kd_tasks.evaluation.comparison import COST
from kd_tasks.evaluation.cost import file_size, multiply_adds, parameters
from kd_tasks.evaluation.runs import read_metrics
from kd_tasks.task import TaskModel

CALIBRATION_IMAGES = 64
COMPARED_IMAGES = 8


# --- Export ----------------------------------------------------------------------------------------------------------


def export_checkpoint(
    cfg: Config,
    checkpoint: str | Path,
    format: str = "onnx",
    int8: bool = False,
    size: tuple[int, int] | None = None,
    out: str | Path | None = None,
) -> list[Path]:
    """Write the deployed network of `checkpoint` as an artefact with its manifest.

    Args:
        cfg: the config of the run; its preprocessor, decoder, metric and test data go into the manifest.
        checkpoint: a `student.pth`, a run's checkpoint or a run folder.
        format: `onnx` or `pt2`.
        int8: also write a quantised ONNX file `<name>.int8.onnx`, calibrated on training images.
        size: (H, W) of the input; that of the test images if not given.
        out: the file; `student.<format>` beside the checkpoint if not given.

    Returns:
        The files that were written.

    Raises:
        UserError: if the network cannot be exported, the size is unknown, or `int8` is asked of another format.
    """
    if int8 and format != "onnx":
        raise UserError("--int8 needs --format onnx; an exported program (.pt2) stays float32.")
    weights = weights_file(checkpoint)
    path = Path(out) if out is not None else weights.with_name(f"student.{format}")
    model = build_task_model(cfg, str(weights))
    height_width = size or input_size(cfg)
    about = about_checkpoint(cfg, weights, path)
    images = test_images(cfg, model, height_width)
    written = [export(model, path, height_width, format, about, images)]
    if int8:
        batches = list(calibration_batches(cfg, model, height_width))
        written.append(quantise(path, track(batches, "Calibrating int8"), path.with_suffix(".int8.onnx")))
    return written


def weights_file(checkpoint: str | Path) -> Path:
    """The file that `checkpoint` names; a run folder stands for its `student.pth`."""
    path = Path(checkpoint)
    file = path / "student.pth" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint. Train the config first, or correct the path.")
    return file


def input_size(cfg: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of the test images after their transforms, from the config or else from the first image."""
    size = deployed_size(cfg)
    if size is not None:
        return size
    if cfg.get("test_dataloader") is None:
        raise UserError("the input size is unknown, since the config has no test data. Give --size HEIGHT WIDTH.")
    height, width = build_loader(cfg["test_dataloader"]).dataset[0]["inputs"].shape[-2:]
    return int(height), int(width)


def about_checkpoint(cfg: Mapping[str, Any], weights: Path, artefact: Path) -> About:
    """What the manifest says about task, data and checkpoint."""
    model = deployed_model_config(cfg)
    loader = cfg.get("test_dataloader")
    dataset: Any = build_loader(loader).dataset if loader is not None else None
    info = getattr(dataset, "metainfo", {})
    return About(
        task=cfg.get("task", ""),
        classes=list(info.get("classes") or []),
        palette=[list(colour) for colour in info.get("palette") or []],
        preprocessor=plain(model.get("data_preprocessor") or {"type": "ImagePreprocessor"}),
        decoder=plain(model.get("decoder")),
        evaluator=plain(cfg.get("test_evaluator")),
        test_dataloader=plain(loader),
        network=plain(without_pretrained(model)["network"]),
        checkpoint={"path": _beside(weights, artefact), "sha256": sha256_of(weights)},
        checkpoint_metrics=dict(read_metrics(weights.parent, weights, (loader or {}).get("dataset")).metrics),
    )


def plain(value: Any) -> Any:
    """A part of a config as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _beside(weights: Path, artefact: Path) -> str:
    """The checkpoint's path as the manifest holds it: relative to the artefact where it lies beside or below it."""
    folder = artefact.resolve().parent
    whole = weights.resolve()
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def test_images(cfg: Mapping[str, Any], model: TaskModel, size: tuple[int, int]) -> Tensor | None:
    """A few normalised test images (N, 3, H, W) of the size of export; None if there are none of that size."""
    if cfg.get("test_dataloader") is None:
        return None
    found: list[Tensor] = []
    for inputs in _normalised(build_loader(cfg["test_dataloader"]), model):
        if tuple(inputs.shape[-2:]) != tuple(size):
            return None
        found.append(inputs)
        if sum(map(len, found)) >= COMPARED_IMAGES:
            break
    return torch.cat(found)[:COMPARED_IMAGES] if found else None


def calibration_batches(cfg: Mapping[str, Any], model: TaskModel, size: tuple[int, int]) -> Iterator[Tensor]:
    """Normalised training images, through the transforms of the test data, for int8.

    Raises:
        UserError: if the config has no training data, or its images are not of the size of export.
    """
    train, test = cfg.get("train_dataloader"), cfg.get("test_dataloader")
    if train is None:
        raise UserError("--int8 needs training images to calibrate on, and the config has no train_dataloader.")
    source = test if test is not None else train
    dataset = {**plain(train["dataset"]), "transforms": plain(source["dataset"].get("transforms", []))}
    dataset["test_mode"] = True
    loader = build_loader({"batch_size": 1, "num_workers": 0, "dataset": dataset}, shuffle=True)
    for inputs in islice(_normalised(loader, model), CALIBRATION_IMAGES):
        if tuple(inputs.shape[-2:]) != tuple(size):
            raise UserError(
                f"--int8: a training image has the size {tuple(inputs.shape[-2:])} after the transforms of the test "
                f"data, and the file takes {tuple(size)}. Add a Resize to test_dataloader.dataset.transforms."
            )
        yield inputs


def _normalised(loader: DataLoader, model: TaskModel) -> Iterator[Tensor]:
    for batch in loader:
        yield model.data_preprocessor(batch, False)["inputs"]


# --- Evaluation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArtefactEvaluation:
    """What an exported file is worth.

    Attributes:
        path: the file.
        manifest: its manifest.
        result: its metrics on the test data.
        checkpoint_metrics: those of the checkpoint that it was exported from.
        differences: largest absolute difference of each output from the checkpoint's, on test images; empty where the
            checkpoint is not to be found.
        cost: see `kd_tasks.evaluation.comparison.Measured`; `parameters` and `multiply_adds` are the checkpoint's.
    """

    path: Path
    manifest: Manifest
    result: EvaluationResult
    checkpoint_metrics: Mapping[str, float | None]
    differences: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Metrics beside the checkpoint's, then size and speed, for a terminal."""
        metrics = Table(
            title=f"{self.path.name} ({self.manifest.format}, {self.manifest.precision})", title_justify="left"
        )
        for name in ("metric", "exported file", "checkpoint", "difference"):
            metrics.add_column(name, justify="left" if name == "metric" else "right")
        for name, value in self.result.metrics.items():
            before = self.checkpoint_metrics.get(name)
            known = [f"{before:.2f}", f"{value - before:+.2f}"] if before is not None else ["-", "-"]
            metrics.add_row(name, f"{value:.2f}", *known)
        if self.result.note:
            metrics.caption, metrics.caption_justify = self.result.note, "left"
        facts = Table(title="Cost and differences", title_justify="left", show_header=False)
        for label, shown in self._facts():
            facts.add_row(label, shown)
        return [metrics, facts]

    def _facts(self) -> list[tuple[str, str]]:
        cost = [(COST[name][0], COST[name][1](value)) for name, value in self.cost.items() if name in COST]
        differences = self.differences or self.manifest.differences
        seen = "on test images" if self.differences else "at export; the checkpoint is not to be found"
        return cost + [(f"largest difference of '{k}' ({seen})", f"{v:.1e}") for k, v in differences.items()]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**self.result.to_dict(), "differences": dict(self.differences), "cost": dict(self.cost)}


def evaluate_artefact(path: str | Path, data_root: str | Path | None = None) -> ArtefactEvaluation:
    """Measure an exported file with the preprocessor, decoder, metric and test data of its manifest.

    Args:
        path: the file; its manifest lies beside it and is checked first.
        data_root: the folder of the test data, if not the one that the manifest names.

    Raises:
        UserError: if the manifest does not fit the file, names no test data, or the data are missing.
    """
    path = Path(path)
    model, manifest = build_deployed(path)
    about = manifest.about
    if about.test_dataloader is None or about.evaluator is None:
        raise UserError(f"{path}: its manifest names no test data. Export it again with a config that has some.")
    loader_cfg = with_data_root(about.test_dataloader, data_root)
    root = loader_cfg["dataset"].get("data_root")
    if root is not None and not paths.data_root(root).is_dir():
        raise UserError(f"{path}: its test data are not in {root}: there is no such folder. Name it with --data-root.")
    loader = build_loader(loader_cfg)
    result = evaluate(model, loader, about.evaluator, description=f"Testing {path.name}")
    original = checkpoint_of(path, manifest)
    differences = _differences(model, original, loader) if original is not None else {}
    cost = artefact_cost(path, manifest, original)
    return ArtefactEvaluation(path, manifest, result, about.checkpoint_metrics, differences, cost)


def with_data_root(loader: Mapping[str, Any], data_root: str | Path | None) -> dict[str, Any]:
    """A loader config that reads its data from `data_root`, if given."""
    if data_root is None:
        return dict(loader)
    return {**loader, "dataset": {**loader["dataset"], "data_root": str(data_root)}}


def checkpoint_of(path: Path, manifest: Manifest) -> TaskModel | None:
    """The task model with the checkpoint that `path` came from; None unless that very file is there.

    It is built from the manifest, whose types are checked: a config file beside the weights is never run.
    """
    about = manifest.about
    if about.checkpoint is None or about.network is None:
        return None
    weights = path.parent / about.checkpoint["path"]
    if not weights.is_file() or sha256_of(weights) != about.checkpoint["sha256"]:
        return None
    model = {"network": about.network, "data_preprocessor": about.preprocessor, "decoder": about.decoder}
    return build_task_model({"model": {"type": "TaskModel", **model}}, str(weights))


@torch.no_grad()
def _differences(deployed: TaskModel, original: TaskModel, loader: DataLoader) -> dict[str, float]:
    found: dict[str, float] = {}
    for inputs in islice(_normalised(loader, original), COMPARED_IMAGES):
        ours, theirs = deployed.network(inputs), original.network(inputs)
        for name in ours:
            difference = float((ours[name] - theirs[name]).abs().max())
            found[name] = max(found.get(name, 0.0), difference)
    return found


def artefact_cost(path: Path, manifest: Manifest, original: TaskModel | None = None) -> dict[str, float]:
    """File size and speed of an artefact; parameters and multiply-adds of the checkpoint if there is one."""
    shape = tuple(int(size) for size in manifest.inputs[0].shape[1:])
    known = network_size(original.network, shape) if original is not None else {}
    speed = speed_of(measure_latency(load_network(path, threads=1), shape))
    return {**known, "file_bytes": float(file_size(path)), **speed}


def checkpoint_cost(model: TaskModel, weights: Path, size: tuple[int, int]) -> dict[str, float]:
    """Size and speed of a checkpoint's network in torch, on one thread of the CPU."""
    shape = (3, *size)
    speed = speed_of(measure_latency(model.network, shape))
    return {**network_size(model.network, shape), "file_bytes": float(file_size(weights)), **speed}


def network_size(network: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """Parameters, and multiply-adds of one image of `shape` (3, H, W)."""
    return {"parameters": float(parameters(network)), "multiply_adds": float(multiply_adds(network, (1, *shape)))}


def speed_of(latency: Latency) -> dict[str, float]:
    """A measured latency under the names that comparisons use."""
    return {
        "latency_ms": latency.median_ms,
        "latency_p95_ms": latency.p95_ms,
        "images_per_second": latency.throughput_img_s,
    }
