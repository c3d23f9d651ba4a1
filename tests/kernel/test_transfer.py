"""Transfers: taps, connectors, weights, and what is refused before training."""

from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from kd_tasks.connectors import SHORT_NAMES
from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS
from kd_tasks.transfer import Transfer

HINT = {"type": "Hint"}


def transfer(**cfg: Any) -> Transfer:
    return Transfer("hint", **{"loss": HINT, **cfg})


def losses(distiller: toys.Distiller, **step: Any) -> dict[str, Tensor]:
    batch = distiller.data_preprocessor(toys.batch(**step), True)
    return distiller.losses(batch["inputs"], batch["targets"])


# --- Taps ------------------------------------------------------------------------------------------------------------


def test_on_is_the_tap_of_both_sides() -> None:
    assert transfer(on="a").student_taps == transfer(on="a").teacher_taps == ("a",)
    named = transfer(student="a", teacher="t.b")
    assert (named.student_taps, named.teacher_taps, named.own_target) == (("a",), ("t.b",), False)
    own = transfer(student="a", target="b")
    assert (own.teacher_taps, own.own_target) == (("b",), True)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({}, "needs a tap on both sides"),
        ({"student": "a"}, "needs a tap on both sides"),
        ({"teacher": "a"}, "needs a tap on both sides"),
        ({"on": []}, "needs a tap on both sides"),
        ({"on": "a", "teacher": "b"}, "'on' names the tap of both sides"),
        ({"on": "a", "target": "b"}, "'on' names the tap of both sides"),
        ({"student": "a", "teacher": "b", "target": "c"}, "'teacher' and 'target' exclude each other"),
        (
            {"student": ["a", "b"], "teacher": ["a", "b", "c"], "connector": "pool"},
            "from tap to tap, but there are 2 of the student and 3 of the teacher",
        ),
        ({"on": "a", "begin": "soon"}, "begin: 'soon' is no moment"),
        ({"on": "a", "end": "later"}, "end: 'later' is no moment"),
        ({"on": "a", "weight": {"end": 1}}, "weight: a weight that changes needs 'until'"),
        ({"on": "a", "loss": {"type": "Hints"}}, "loss: 'Hints' is not a known loss. Did you mean 'Hint'"),
        ({"on": "a", "loss": {"type": "Conv1x1"}}, "loss: 'Conv1x1' is not a known loss"),
        ({"on": "a", "loss": {"type": "SoftTargets", "temp": 2}}, "loss: SoftTargets: .*'temp'.*'temperature'"),
        (
            {"on": "a", "loss": {"type": "SoftTargets", "temperature": 0}},
            "loss: SoftTargets: temperature must be above",
        ),
        ({"on": "a", "connector": "conv"}, "connector: 'conv' is not a connector"),
    ],
)
def test_faulty_recipes(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"model\.transfers\.hint.*{message}"):
        transfer(**cfg)


def test_several_taps_reach_the_loss_as_lists() -> None:
    recipe = {"pair": {"on": ["stage1", "stage2"], "loss": {"type": "ToyPaired"}}}
    model = toys.distiller(teacher={"type": "ToyNet"}, transfers=recipe).eval()
    batch = model.data_preprocessor(toys.batch())["inputs"]
    teacher = model.teachers["teacher"].network
    expected = torch.zeros(())
    ours, theirs = batch, batch
    for stage in ("stage1", "stage2"):
        ours, theirs = getattr(model.network, stage)(ours), getattr(teacher, stage)(theirs)
        expected = expected + (ours - theirs).square().mean()
    torch.testing.assert_close(losses(model)["kd.pair"], expected)


def test_one_tap_against_several_drops_none() -> None:
    received = []

    class Spy(toys.Loss):
        def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
            received.append((student, teacher))
            return student.sum()

    recipe = {"pair": {"student": "stage2", "teacher": ["stage1", "stage2"], "loss": Spy()}}
    toys.distiller(transfers=recipe)
    student, teacher = received[-1]
    assert student.shape == (2, 8, 8, 8)
    assert [tuple(t.shape) for t in teacher] == [(2, 6, 16, 16), (2, 12, 8, 8)]


def test_each_of_several_taps_has_a_connector_of_its_own() -> None:
    recipe = {"pair": {"on": ["stage1", "stage2"], "connector": "conv1x1", "loss": {"type": "ToyPaired"}}}
    model = toys.distiller(transfers=recipe)
    shapes = [tuple(part.layers[0].weight.shape[:2]) for part in model.transfers["pair"].connector]
    assert shapes == [(6, 4), (12, 8)]
    losses(model)["kd.pair"].backward()
    assert all(p.grad.abs().max() > 0 for p in model.transfers["pair"].connector.parameters())


def test_one_tap_with_a_connector_against_several() -> None:
    class Spread(toys.Loss):
        def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
            return torch.stack([(student - t).square().mean() for t in teacher]).sum()

    recipe = {"some": {"student": "stage2", "teacher": ["stage2", "stage2"], "connector": "conv1x1", "loss": Spread()}}
    assert losses(toys.distiller(transfers=recipe))["kd.some"] > 0


# --- Time ------------------------------------------------------------------------------------------------------------


def test_off_before_begin_and_from_end_on() -> None:
    timed = transfer(on="a", begin="iter 3", end="epoch 1", weight={"start": 2.0, "end": 4.0, "until": "iter 4"})
    assert [timed.strength(i, 5) for i in range(7)] == [0, 0, 0, 3.5, 4, 0, 0]
    assert timed.ever_off
    assert not transfer(on="a").ever_off
    assert transfer(on="a", weight={"start": 0, "end": 1, "until": "iter 4"}).ever_off


def test_a_transfer_that_is_off_is_absent_and_its_teacher_does_not_run() -> None:
    recipe = {"soft": {"on": "logits", "loss": {"type": "SoftTargets"}, "begin": "epoch 1", "end": "epoch 2"}}
    model = toys.distiller(transfers=recipe)
    passes = []
    model.teachers["teacher"].network.register_forward_hook(lambda *_: passes.append(1))
    present = []
    for iteration in range(6):
        model.set_moment(iteration, 2)
        present.append("kd.soft" in losses(model))
    assert present == [False, False, True, True, False, False]
    assert len(passes) == 2


def test_the_weight_multiplies_the_loss() -> None:
    plain = toys.distiller()
    weighted = toys.distiller()
    weighted.load_state_dict(plain.state_dict())
    for mine, theirs in zip(weighted.teachers.values(), plain.teachers.values(), strict=True):
        mine.network.load_state_dict(theirs.network.state_dict())
    weighted.transfers["soft"].weight.start = weighted.transfers["soft"].weight.end = 2.5
    torch.testing.assert_close(losses(weighted)["kd.soft"], 2.5 * losses(plain)["kd.soft"])


# --- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SHORT_NAMES))
def test_every_connector_finds_its_size_on_maps_that_are_not_square(name: str) -> None:
    widths = {"resize": 4, "pool": 4}
    recipe = {"hint": {"on": "stage2", "connector": name, "loss": HINT}}
    if name in ("linear", "pool"):
        recipe["hint"]["teacher_connector"] = "pool"
    teacher = {"type": "ToyNet", "width": widths.get(name, 6)}
    model = toys.distiller(teacher=teacher, transfers=recipe, input_size=(16, 40))
    images = torch.randn(3, 3, 16, 40)
    assert model.losses(images, {"label": torch.arange(3)})["kd.hint"].isfinite()
    weights = [p for key, p in model.named_parameters() if key.startswith("transfers.hint.connector")]
    assert bool(weights) == (name in ("conv1x1", "linear", "regressor"))


def test_shapes_that_do_not_fit_are_named_with_the_transfer() -> None:
    with pytest.raises(UserError, match=r"model\.transfers\.hint: .*\(2, 8, 8, 8\).*\(2, 12, 8, 8\)"):
        toys.distiller(transfers={"hint": {"on": "stage2", "loss": HINT}})


def test_a_connector_that_cannot_join_is_named_with_the_transfer() -> None:
    with pytest.raises(UserError, match=r"model\.transfers\.hint: .*joins maps.*\(2, 4\)"):
        toys.distiller(transfers={"hint": {"on": "logits", "connector": "conv1x1", "loss": HINT}})


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    class Unreduced(toys.Loss):
        def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
            return (student - teacher).square()

    with pytest.raises(UserError, match=r"model\.transfers\.soft: Unreduced gives \(2, 4\), not a scalar"):
        toys.distiller(transfers={"soft": {"on": "logits", "loss": Unreduced()}})


# --- Gradients -------------------------------------------------------------------------------------------------------


def test_a_tap_before_everything_that_trains_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.transfers\.hint: no gradient can reach the student from stage1:in"):
        toys.distiller(transfers={"hint": {"on": "stage1:in", "loss": HINT}})


@pytest.mark.parametrize("loss", [HINT, {"type": "ToyLabelled"}])
def test_a_tap_behind_frozen_layers_is_refused(loss: dict[str, Any]) -> None:
    student = toys.ToyNet()
    student.stage1.requires_grad_(False)
    with pytest.raises(UserError, match="no gradient can reach the student from stage1"):
        toys.distiller(student=student, transfers={"a": {"on": "stage1", "connector": "conv1x1", "loss": loss}})


def test_a_loss_that_ignores_the_student_is_refused() -> None:
    class Ignores(toys.Loss):
        def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
            return (student.detach() - teacher).square().mean()

    with pytest.raises(UserError, match=r"model\.transfers\.soft: Ignores gives no gradient to logits"):
        toys.distiller(transfers={"soft": {"on": "logits", "loss": Ignores()}})


def test_a_connector_whose_weights_would_stay_random_is_refused() -> None:
    recipe = {"hint": {"on": "stage2", "teacher_connector": "conv1x1", "loss": HINT}}
    with pytest.raises(UserError, match=r"transfers\.hint\.teacher_connector: no gradient reaches its weights"):
        toys.distiller(transfers=recipe)
    recipe = {"hint": {"on": "stage2", "teacher_connector": "conv1x1", "loss": Joint()}}
    assert any("teacher_connector" in name for name, _ in toys.distiller(transfers=recipe).named_parameters())


class Joint(toys.Loss):
    """A loss through which the teacher's side learns too."""

    detach_teacher = False

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean()


def test_context_reaches_the_loss_that_names_it() -> None:
    model = toys.distiller(transfers={"some": {"on": "logits", "loss": {"type": "ToyLabelled"}}}).eval()
    batch = model.data_preprocessor(toys.batch())
    value = model.losses(batch["inputs"], batch["targets"])["kd.some"]
    ours = model.network(batch["inputs"])["logits"]
    theirs = model.teachers["teacher"].network(batch["inputs"])["logits"]
    expected = (ours - theirs).square().mean(1)[[0, 2]].sum() / 4
    torch.testing.assert_close(value, expected)


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.b", "keys", "forward"])
def test_names_that_a_module_cannot_have(name: str) -> None:
    with pytest.raises(UserError, match=rf"model\.transfers\.{name}: a transfer cannot be called"):
        toys.distiller(transfers={name: {"on": "logits", "loss": {"type": "SoftTargets"}}})


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"model\.transfers\.soft: .*'wieght'.*Did you mean 'weight'\?"):
        toys.distiller(transfers={"soft": {"on": "logits", "loss": {"type": "SoftTargets"}, "wieght": 2}})


def test_a_tap_that_does_not_exist_is_found_on_either_side() -> None:
    @NETWORKS.register
    class ToyOther(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, toys.CLASSES, 3, 2)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"logits": self.body(images).mean((2, 3))}

    recipe = {"hint": {"on": "stage2", "loss": HINT}}
    with pytest.raises(UserError, match=r"model\.teacher: no tap 'stage2'.*body"):
        toys.distiller(teacher={"type": "ToyOther"}, transfers=recipe)
    with pytest.raises(UserError, match=r"model\.student: no tap 'stage2'.*body"):
        toys.distiller(student={"type": "ToyOther"}, transfers=recipe)
