"""What a transfer hands to its loss beside the taps: other targets, places, modules, gradients to the picture."""

from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from kd_tasks.errors import UserError
from kd_tasks.losses import Loss
from kd_tasks.registry import NETWORKS
from kd_tasks.transfer import Transfer


class Places(Loss):
    """Remembers the context it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def compute(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        self.seen.append(index)
        return (student - teacher).square().mean()


class Alone(Loss):
    """Reads the student alone."""

    reads_teacher = False

    def compute(self, student: Tensor, teacher: None, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(student, label)


class Norms(Loss):
    """Reads the batch normalisation behind the teacher's tap."""

    def __init__(self) -> None:
        super().__init__()
        self.modules_read: list[nn.Module] = []

    def read_teacher(self, modules: list[nn.Module]) -> None:
        if not isinstance(modules[0], nn.BatchNorm2d):
            raise ValueError("Norms reads batch normalisation; tap one.")
        self.modules_read = modules

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        return student.square().mean() + teacher.mean()


class Slopes(Loss):
    """Compares the gradients of both sides with respect to the picture."""

    needs_image_gradient = True
    detach_teacher = False

    def compute(self, student: Tensor, teacher: Tensor, image: Tensor) -> Tensor:
        ours, theirs = (torch.autograd.grad(x.square().sum(), image, create_graph=True)[0] for x in (student, teacher))
        return (ours - theirs.detach()).square().mean()


def run(model: toys.Distiller, batch: dict[str, Any] | None = None) -> dict[str, Tensor]:
    data = model.data_preprocessor(batch or toys.batch(), True)
    return model(**data, mode="loss")


def on_logits(loss: Loss, **more: Any) -> dict[str, dict[str, Any]]:
    return {"some": {"on": "logits", "loss": loss, **more}}


def test_a_target_reaches_the_loss_under_the_name_it_knows() -> None:
    model = toys.distiller(transfers=on_logits(toys.ToyLabelled(), context={"label": "kind"})).eval()
    batch = toys.batch()
    label = batch["targets"]["label"]
    batch["targets"] |= {"kind": torch.zeros_like(label)}
    renamed = run(model, batch)["kd.some"]
    batch["targets"] |= {"kind": torch.ones_like(label)}
    assert run(model, batch)["kd.some"] == 0
    assert renamed > 0


def test_a_target_that_no_batch_has_is_named() -> None:
    model = toys.distiller(transfers=on_logits(toys.ToyLabelled(), context={"label": "mask"}))
    with pytest.raises(UserError, match=r"model\.transfers\.some\.context: .*'mask'.*label, image"):
        run(model)


def test_a_name_that_the_loss_does_not_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"some\.context: ToyLabelled reads no 'labels'.*label"):
        Transfer("some", toys.ToyLabelled(), on="logits", context={"labels": "mask"})


def test_a_loss_learns_the_places_of_the_samples() -> None:
    loss = Places()
    model = toys.distiller(transfers=on_logits(loss))
    batch = toys.batch()
    for place, meta in zip((7, 3, 5, 1), batch["meta"], strict=True):
        meta["index"] = place
    run(model, batch)
    assert loss.seen[-1].tolist() == [7, 3, 5, 1]


def test_samples_without_a_place_are_refused() -> None:
    with pytest.raises(UserError, match="'index'"):
        run(toys.distiller(transfers=on_logits(Places())))


def test_a_loss_on_the_student_alone_needs_no_teacher() -> None:
    model = toys.distiller(transfers={"some": {"student": "logits", "loss": Alone()}}, teacher=None).eval()
    batch = toys.batch()
    found = run(model, batch)
    torch.testing.assert_close(found["kd.some"], found["task.labels"])


@pytest.mark.parametrize("taps", [{"on": "logits"}, {"student": "a", "teacher": "b"}, {"student": "a", "target": "b"}])
def test_a_loss_on_the_student_alone_takes_no_other_tap(taps: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"model\.transfers\.some: .*student alone"):
        Transfer("some", Alone(), **taps)


def test_a_loss_on_the_student_alone_takes_no_connector() -> None:
    with pytest.raises(UserError, match=r"some: Alone reads no teacher"):
        recipe = {"some": {"student": "logits", "loss": Alone(), "connector": "linear"}}
        toys.distiller(transfers=recipe, teacher=None)


def test_a_loss_reads_the_module_behind_the_teachers_tap_before_it_is_folded() -> None:
    teacher = toys.randomised(NETWORKS.build({"type": "ToyNet"}))
    weight = teacher.stage1[1].weight.detach().clone()
    loss = Norms()
    recipe = {"some": {"on": "stage1.1", "loss": loss}}
    toys.distiller(teacher={"type": "ToyNet", "prepare": {"fold_batchnorm": True}}, transfers=recipe)
    assert isinstance(loss.modules_read[0], nn.BatchNorm2d)
    own = toys.distiller(student=teacher, teacher=None, transfers={"some": {**OWN_STAGES, "loss": loss}})
    assert loss.modules_read[0] is own.network.stage1[1]
    torch.testing.assert_close(loss.modules_read[0].weight, weight)


OWN_STAGES = {"student": "stage1.0", "target": "stage1.1"}


def test_a_module_of_another_kind_is_refused_with_its_place() -> None:
    with pytest.raises(UserError, match=r"model\.transfers\.some: Norms reads batch normalisation"):
        toys.distiller(transfers={"some": {"student": "stage1", "teacher": "stage1", "loss": Norms()}})


def test_gradients_to_the_picture_reach_through_both_networks() -> None:
    torch.manual_seed(0)
    model = toys.distiller(transfers=on_logits(Slopes()))
    teacher = model.teachers["teacher"].network
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    value = run(model)["kd.some"]
    assert value > 0
    value.backward()
    assert model.network.head.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_other_transfers_have_no_graph_through_the_teacher() -> None:
    received = []

    class Spy(Loss):
        detach_teacher = False

        def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
            received.append(teacher.requires_grad)
            return (student - teacher).square().mean()

    run(toys.distiller(transfers=on_logits(Spy())))
    assert received[-1] is False


def test_the_probe_is_as_large_as_the_loss_needs() -> None:
    received = []

    class Triples(Loss):
        smallest_batch = 5

        def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
            received.append(len(student))
            return (student - teacher).square().mean()

    toys.distiller(transfers=on_logits(Triples()))
    assert received == [5]
