"""Checkpoints carry their label order, and a teacher with another one is refused where logits are compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS
from toys import CLASSES, TESTING, ToyDataset, ToyNet, config, distiller, trained

from kd_tasks.engine.checkpoints import class_names, read_checkpoint, save_student
from kd_tasks.engine.classes import network_classes, refuse_missing_classes, refuse_other_label_order
from kd_tasks.engine.train import train
from kd_tasks.errors import UserError
from kd_tasks.evaluation.preflight import preflight
from kd_tasks.losses import Loss, SoftTargets
from kd_tasks.registry import LOSSES, NETWORKS

NAMES = ["0", "1", "2", "3"]
SWAPPED = ["0", "2", "1", "3"]
WIDE = {"type": "ToyNet", "width": 6}


@DATASETS.register_module()
class ToyNamed(ToyDataset):
    """Toy data whose classes have other names; none if `names` is empty."""

    def __init__(self, names: Sequence[str] = (), samples: int = 8) -> None:
        super().__init__(samples)
        self.metainfo = {"classes": list(names)} if names else {}


def on_data(names: Sequence[str]) -> dict[str, Any]:
    return {"train_dataloader.dataset": {"type": "ToyNamed", "names": list(names)}, "train_cfg.max_epochs": 1}


def trained_alone(folder: Path, names: Sequence[str], **changes: Any) -> Path:
    cfg = config(folder, **on_data(names), **changes)
    parts = {"criterion": {"type": "ToyCriterion"}, "decoder": {"type": "ToyDecoder"}}
    cfg.model = ConfigDict({"type": "TaskModel", "network": WIDE, **parts})
    return train(cfg)


def teacher_file(folder: Path, names: Sequence[str], width: int = 6) -> dict[str, Any]:
    """A teacher's config whose checkpoint records `names`."""
    file = folder / f"teacher_{'_'.join(names) or 'nameless'}.pth"
    save_student(ToyNet(width), file, {"classes": list(names)} if names else {})
    return {"type": "ToyNet", "width": width, "checkpoint": str(file)}


def soft(**keys: Any) -> dict[str, Any]:
    return {"soft": {"on": "logits", "loss": {"type": "SoftTargets"}, **keys}}


# --- What is written -------------------------------------------------------------------------------------------------


def test_every_checkpoint_of_a_training_names_the_classes(tmp_path: Path) -> None:
    testing = {key: value for key, value in TESTING.items() if key.startswith("val")}
    best = {"default_hooks": {"checkpoint": {"type": "Checkpoints", "save_best": "top1"}}}
    folder = trained_alone(tmp_path / "run", SWAPPED, **testing, **best)
    for name in ("student.pth", "best.pth", "epoch_1.pth"):
        assert class_names(read_checkpoint(folder / name)["meta"]) == tuple(SWAPPED)


def test_data_without_names_leave_none(tmp_path: Path) -> None:
    folder = trained_alone(tmp_path / "run", [])
    assert class_names(read_checkpoint(folder / "student.pth")["meta"]) == ()
    assert class_names(read_checkpoint(folder / "epoch_1.pth")["meta"]) == ()


@pytest.mark.parametrize("meta", [{}, {"classes": 10}, {"classes": None, "dataset": "mine"}, {"dataset": {}}])
def test_a_strangers_checkpoint_may_say_nothing(meta: dict[str, Any]) -> None:
    assert class_names(meta) == ()


# --- What is refused -------------------------------------------------------------------------------------------------


def test_a_training_with_a_teacher_of_another_order_does_not_begin(tmp_path: Path) -> None:
    taught = {"model.teacher": teacher_file(tmp_path, SWAPPED), **on_data(NAMES)}
    with pytest.raises(UserError, match=r"model\.transfers\.soft.*label 1 means '2'.*model\.teacher.*'1'"):
        trained(tmp_path / "run", **taught)
    assert not (tmp_path / "run" / "epoch_1.pth").exists()
    with pytest.raises(UserError, match=r"label 1 means '2'"):
        preflight(config(tmp_path / "check", **taught))


def test_a_teacher_trained_here_is_taken_or_refused_by_its_own_record(tmp_path: Path) -> None:
    teacher = trained_alone(tmp_path / "teacher", NAMES)
    for checkpoint in (teacher, teacher / "epoch_1.pth"):
        found = {"model.teacher": {**WIDE, "checkpoint": str(checkpoint)}}
        assert (trained(tmp_path / f"right_{checkpoint.stem}", **found, **on_data(NAMES)) / "student.pth").is_file()
        with pytest.raises(UserError, match="label 1"):
            trained(tmp_path / f"wrong_{checkpoint.stem}", **found, **on_data(SWAPPED))


@pytest.mark.parametrize("recorded", [NAMES, [], NAMES[:2], [*NAMES, "4"]], ids=["same", "none", "fewer", "more"])
def test_the_same_order_or_none_is_fine(tmp_path: Path, recorded: list[str]) -> None:
    model = distiller(transfers=soft(), teacher=teacher_file(tmp_path, recorded))
    refuse_other_label_order(model, NAMES)
    refuse_other_label_order(model, [])


def test_the_first_difference_is_named_and_of_the_right_teacher(tmp_path: Path) -> None:
    teachers = {"a": teacher_file(tmp_path, NAMES), "b": teacher_file(tmp_path, ["0", "1", "3", "2"])}
    model = distiller(
        teachers=teachers,
        teacher=None,
        transfers={
            "good": {"student": "logits", "teacher": "a.logits", "loss": {"type": "SoftTargets"}},
            "bad": {"student": "logits", "teacher": ["a.logits", "b.logits"], "loss": {"type": "SoftTargets"}},
        },
    )
    with pytest.raises(UserError, match=r"transfers\.bad.*label 2 means '3'.*model\.teachers\.b.*'2'"):
        refuse_other_label_order(model, NAMES)


@LOSSES.register
class ToyElementwise(Loss):
    """A loss that does not say that it reads logits."""

    def compute(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return (student - teacher).square().mean()


@pytest.mark.parametrize(
    "transfer",
    [
        {"on": "stage2", "connector": "conv1x1", "loss": {"type": "Hint"}},
        {"on": "logits", "loss": {"type": "SimilarityPreserving"}},
        {"on": "logits", "connector": "linear", "loss": {"type": "ToyElementwise"}},
        {"student": "logits", "target": "logits", "loss": {"type": "ToyElementwise"}},
    ],
    ids=["features", "relations", "connector", "own_target"],
)
def test_an_order_that_does_not_matter_is_not_compared(tmp_path: Path, transfer: dict[str, Any]) -> None:
    transfers = {
        "it": transfer,
        "reads_the_teacher": {"on": "stage1", "connector": "conv1x1", "loss": {"type": "Hint"}},
    }
    refuse_other_label_order(distiller(transfers=transfers, teacher=teacher_file(tmp_path, SWAPPED)), NAMES)


@pytest.mark.parametrize("loss", ["SoftTargets", "ToyElementwise", "DIST"])
def test_an_order_that_matters_is(tmp_path: Path, loss: str) -> None:
    model = distiller(transfers=soft(loss={"type": loss}), teacher=teacher_file(tmp_path, SWAPPED))
    with pytest.raises(UserError, match="label 1"):
        refuse_other_label_order(model, NAMES)


def test_what_has_no_teacher_has_nothing_to_refuse() -> None:
    refuse_other_label_order(ToyNet(), NAMES)
    refuse_other_label_order(SoftTargets(), NAMES)


def test_a_network_without_classifier_has_no_classes_to_miss() -> None:
    @NETWORKS.register
    class ToyClassless(ToyNet):
        def __init__(self, num_classes: int = 0) -> None:
            super().__init__(classes=num_classes or CLASSES)

    assert network_classes({"network": {"type": "ToyClassless"}}) is None
    assert network_classes({"network": {"type": "ToyClassless", "num_classes": 3}}) == ("model.network.num_classes", 3)
    refuse_missing_classes({"network": {"type": "ToyClassless"}}, {"classes": NAMES})
    with pytest.raises(UserError, match="3 classes"):
        refuse_missing_classes({"network": {"type": "ToyClassless", "num_classes": 3}}, {"classes": NAMES})
