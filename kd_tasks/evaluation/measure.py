"""The numbers of one run or artefact: metrics, cost, likeness to the teacher; measured once and kept."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.device import get_device
from torch import Tensor

from kd_tasks.deploy.artefact import manifest_path, read_manifest
from kd_tasks.distiller import TEACHER_KEYS
from kd_tasks.engine.build import build_loader, build_task_model, without_pretrained
from kd_tasks.engine.evaluate import EvaluationResult, evaluate
from kd_tasks.engine.files import sha256_of, write_json
from kd_tasks.engine.progress import track
from kd_tasks.errors import UserError
from kd_tasks.evaluation.deployed import checkpoint_cost, evaluate_artefact, input_size, plain
from kd_tasks.evaluation.fidelity import measure_fidelity
from kd_tasks.evaluation.runs import (
    METRICS,
    Run,
    finite,
    numbers,
    read_metrics,
    same_data,
)
from kd_tasks.taps import Taps
from kd_tasks.teachers import FrozenTeacher

LOGITS = "logits"
IGNORED = 255
MAP_DIMENSIONS = 4
FIDELITY_FILE = "fidelity.json"
EVALUATION_SUFFIX = ".metrics.json"


# --- Metrics ---------------------------------------------------------------------------------------------------------


def measure_metrics(run: Run, reference: Run) -> EvaluationResult:
    """The metrics of `run` on the test data of `reference`.

    They are read from `metrics.json` if they belong to the run's `student.pth` and both runs are tested alike, and
    measured otherwise: with the run's own transforms, on the reference's data, by the reference's metric.

    Raises:
        UserError: if the reference has no test data.
    """
    own = tested_alike(run, reference)
    known = read_metrics(run.folder, run.checkpoint)
    if own and known.metrics:
        return EvaluationResult(known.metrics, known.per_class, known.note)
    cfg = reference.cfg
    if cfg.get("test_dataloader") is None or cfg.get("test_evaluator") is None:
        raise UserError(f"{reference.folder}: its config has no test data, so nothing can be compared on it.")
    loader = plain(cfg["test_dataloader"])
    if run.cfg.get("test_dataloader") is not None:
        loader["dataset"]["transforms"] = plain(run.cfg["test_dataloader"]["dataset"].get("transforms", []))
    model = build_task_model(run.cfg, str(run.checkpoint))
    metric, words = cfg["test_evaluator"], f"Testing {run.folder.name}"
    result = evaluate(model, build_loader(loader), metric, get_device(), words)
    if own:
        write_json(run.folder / METRICS, {**finite(result.to_dict()), "checkpoint_sha256": sha256_of(run.checkpoint)})
    return result


def tested_alike(run: Run, reference: Run) -> bool:
    """Whether both are tested on the same samples by the same metric; transforms may differ."""
    ours, theirs = (r.cfg.get("test_dataloader") for r in (run, reference))
    if ours is None or theirs is None:
        return run is reference
    same_metric = plain(run.cfg.get("test_evaluator")) == plain(reference.cfg.get("test_evaluator"))
    return same_metric and same_data(ours["dataset"], theirs["dataset"])


def measure_cost(run: Run) -> dict[str, float]:
    """Parameters, multiply-adds, file size and speed of the run's deployed network."""
    return checkpoint_cost(build_task_model(run.cfg, str(run.checkpoint)), run.checkpoint, input_size(run.cfg))


def measure_artefact(path: Path) -> tuple[dict[str, Any], bool]:
    """The evaluation of an artefact as plain values, and whether it had to be measured.

    It is kept in `<artefact>.metrics.json` for as long as the file and its manifest, which names the test data, stay
    the same.
    """
    kept = Path(f"{path}{EVALUATION_SUFFIX}")
    read_manifest(path)  # refuses a file that was changed after export
    known, digest = read_json(kept), sha256_of(manifest_path(path))
    if known.get("manifest_sha256") == digest:
        return known, False
    known = {"manifest_sha256": digest, **finite(evaluate_artefact(path).to_dict())}
    write_json(kept, known)
    return known, True


# --- Likeness to the teacher -----------------------------------------------------------------------------------------


def measure_likeness(run: Run, pupil: Run, teacher_weights: Path) -> dict[str, float]:
    """How near the run's outputs are to a teacher's, on the run's test data.

    Args:
        run: a student, distilled or alone.
        pupil: the distilled run that names the teacher, how it sees the images, and the features to compare.
        teacher_weights: the teacher's checkpoint.

    Returns:
        `agreement` in percent, `kl` in nats and `cka`; empty for networks without `logits`, or with another number of
        classes. Kept in `fidelity.json` of the run's folder for as long as both checkpoints stay the same.
    """
    taps = compared_taps(pupil)
    key = {
        "student": sha256_of(run.checkpoint),
        "teacher": sha256_of(teacher_weights),
        "taps": [list(pair) for pair in taps],
        "data": plain(run.cfg["test_dataloader"]["dataset"]),
    }
    known = read_json(run.folder / FIDELITY_FILE)
    if known.get("key") != key:
        known = {"key": key, "fidelity": finite(_likeness(run, pupil, teacher_weights, taps))}
        write_json(run.folder / FIDELITY_FILE, known)
    return numbers(known["fidelity"])


def compared_taps(pupil: Run) -> list[tuple[str, str]]:
    """The last pair of features that a transfer compares, or the logits where none compares features."""
    pairs = [
        (transfer.get("on") or transfer.get("student"), transfer.get("on") or transfer.get("teacher"))
        for transfer in pupil.cfg.model["transfers"].values()
    ]
    features = [(own, other) for own, other in pairs if _is_feature(own) and _is_feature(other)]
    return features[-1:] or [(LOGITS, LOGITS)]


def _is_feature(tap: Any) -> bool:
    return isinstance(tap, str) and tap != LOGITS


def _likeness(run: Run, pupil: Run, weights: Path, taps: Sequence[tuple[str, str]]) -> dict[str, float]:
    loader = build_loader(run.cfg["test_dataloader"])
    student = build_task_model(run.cfg, str(run.checkpoint)).to(get_device())
    preprocessor = student.data_preprocessor
    first = next(iter(loader))
    probe = preprocessor(first, False)["inputs"]
    teacher = frozen_teacher(pupil, weights, preprocessor)
    teacher.apply(lambda tensor: tensor.to(get_device()))
    own = Taps(student.network, [tap for tap, _ in taps], probe, "student")
    other = Taps(teacher.network, [tap for _, tap in taps], teacher.view(probe), "teacher")
    outputs = own.run(probe)[0], other.run(teacher.view(probe))[0]
    if any(LOGITS not in found for found in outputs) or len({found[LOGITS].shape[1] for found in outputs}) > 1:
        return {}
    is_map = outputs[0][LOGITS].dim() == MAP_DIMENSIONS and "mask" in first["targets"]

    def observer(read: Taps, view: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
        return lambda batch: read.run(view(preprocessor(batch, False)["inputs"]))

    found = measure_fidelity(
        observer(own, lambda inputs: inputs),
        observer(other, teacher.view),
        track(loader, f"Likeness of {run.folder.name} to the teacher", len(loader)),
        LOGITS,
        taps,
        _labelled if is_map else None,
    )
    return {
        "agreement": 100.0 * found.agreement,
        "kl": found.divergence,
        "cka": next(iter(found.similarity.values())),
    }


def frozen_teacher(pupil: Run, weights: Path, preprocessor: Any) -> FrozenTeacher:
    """The teacher of a distilled run with `weights`, seeing the images as it did in training."""
    cfg = plain(pupil.teachers[0])
    own = {key: cfg[key] for key in TEACHER_KEYS if key in cfg and key not in ("checkpoint", "prepare")}
    network = {key: value for key, value in cfg.items() if key not in TEACHER_KEYS}
    network = without_pretrained({"network": network})["network"]
    teacher = FrozenTeacher(network, checkpoint=str(weights), **own)
    mean, std = (getattr(preprocessor, name, None) for name in ("mean", "std"))
    if mean is not None and std is not None:
        teacher.adopt_normalisation(mean, std)
    return teacher


def _labelled(batch: Mapping[str, Any]) -> Tensor:
    """Where pixels have a label, (N, H, W); label maps of different sizes are brought to that of the first."""
    masks = batch["targets"]["mask"]
    size = tuple(masks[0].shape)
    kept = [(mask != IGNORED)[None, None].float() for mask in masks]
    return torch.cat([F.interpolate(mask, size=size, mode="nearest-exact") for mask in kept])[:, 0] > 0


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
