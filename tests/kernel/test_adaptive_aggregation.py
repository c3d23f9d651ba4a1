"""The adaptive knowledge aggregator: one update, what it leaves untouched, what it does to a training."""

import copy
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor, nn

from kd_tasks.catalogue import catalogue
from kd_tasks.engine.build import deployed_model_config, is_distillation
from kd_tasks.engine.checkpoints import latest_checkpoint
from kd_tasks.engine.compat import build_optimisers
from kd_tasks.engine.config import with_options
from kd_tasks.engine.config_check import find_faults
from kd_tasks.engine.train import train
from kd_tasks.errors import UserError
from kd_tasks.losses import LogEuclidean
from kd_tasks.methods.adaptive_aggregation import (
    AdaptiveDistiller,
    ContrastiveRisk,
    JoinedLoss,
    LabelRisk,
    TripletRisk,
    adapted,
)
from kd_tasks.registry import CRITERIA, NETWORKS

FIXTURES = Path(__file__).parents[1] / "fixtures" / "losses"
SGD = {"optimizer": {"type": "SGD", "lr": 0.1}}
NAMES = ("north", "south", "old")
WIDTH = 6
SHARED = "model.transfers.similarity"


@NETWORKS.register
class AggregateNet(nn.Module):
    """One stage of convolution, an embedding of the mean colour of its channels, scores of four classes.

    Args:
        width: of the stage.
        norm: BatchNorm in the stage.
        dropout: probability before the embedding.
    """

    def __init__(self, width: int = 5, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 2)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.embed = nn.Linear(width, WIDTH)
        self.head = nn.Linear(WIDTH, toys.CLASSES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.norm(self.conv(images)).relu()
        embedding = self.embed(self.dropout(maps.mean((2, 3))))
        return {"embedding": embedding, "logits": self.head(embedding)}


@CRITERIA.register
class AggregateCriterion(nn.Module):
    """Cross-entropy of the labelled samples."""

    def forward(self, outputs: dict[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        label = targets["label"]
        total = F.cross_entropy(outputs["logits"], label, ignore_index=-1, reduction="sum")
        return {"labels": total / (label >= 0).sum().clamp_min(1)}


@CRITERIA.register
class AggregateWatching(nn.Module):
    """A risk that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[dict[str, Tensor], dict[str, Any]]] = []

    def forward(self, outputs: dict[str, Tensor], targets: dict[str, Any]) -> dict[str, Tensor]:
        self.seen.append((outputs, targets))
        return {"squares": outputs["embedding"].square().sum(), "sum": outputs["embedding"].sum()}


@DATASETS.register_module()
class AggregateData(toys.ToyDataset):
    """The toys' data set, in which two neighbours are labelled and the next two are not."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if index // 2 % 2:
            sample["targets"]["label"] = torch.tensor(-1)
        return sample


def recipe(loss: dict[str, Any] | None = None, weight: float = 0.1, **changes: Any) -> dict[str, Any]:
    shared = {"student": "embedding", "teacher": [f"{name}.embedding" for name in NAMES]}
    return {"similarity": {**shared, "loss": loss or {"type": "LogEuclidean"}, "weight": weight, **changes}}


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        "student": {"type": "AggregateNet"},
        "teachers": {name: {"type": "AggregateNet", "width": 7} for name in NAMES},
        "aggregate": "similarity",
        "transfers": recipe(),
        "criterion": {"type": "AggregateCriterion"},
        "input_size": (toys.SIZE, toys.SIZE),
        **changes,
    }


def distiller(**changes: Any) -> AdaptiveDistiller:
    torch.manual_seed(1)
    return AdaptiveDistiller(**arguments(**changes)).train()


def batch(labels: tuple[int, ...] = (0, 0, 1, 1, -1, -1, -1, -1), seed: int = 0) -> dict[str, Any]:
    data = toys.batch(len(labels), seed=seed)
    data["targets"] = {"label": torch.tensor(labels)}
    return data


def step(model: AdaptiveDistiller, **changes: Any) -> dict[str, Tensor]:
    return model.train_step(batch(**changes), build_optimisers(model, SGD))


def beta(model: AdaptiveDistiller) -> Tensor:
    return model.transfers["similarity"].loss.beta


# --- One update ------------------------------------------------------------------------------------------------------


def test_it_is_the_reference() -> None:
    with np.load(FIXTURES / "reid_aggregator.npz") as file:
        hp = json.loads(str(file["hp"]))
        x = {name: torch.from_numpy(file[name]) for name in file.files if name not in ("hp", "source")}
    loss, risk = LogEuclidean(eps=hp["eps"]), TripletRisk(hp["margin"])
    teachers = [x[f"in_teacher{k}"] for k in range(3)]
    inner: list[Tensor] = []

    def terms(weights: Mapping[str, Tensor]) -> list[Tensor]:
        found = [loss(x["in_images"] @ weights["W"], teacher) / len(x["in_images"]) for teacher in teachers]
        inner.append(torch.stack(found).detach())
        return found

    def on_labelled(weights: Mapping[str, Tensor]) -> Tensor:
        outputs = {"embedding": x["in_val_images"] @ weights["W"]}
        return risk(outputs, {"label": x["in_val_pid"]})["triplet"]

    found = adapted(terms, on_labelled, {"W": x["param_W"]}, x["in_beta"], hp["lr_student"], hp["lr_alpha"])
    same = {"rtol": 1e-8, "atol": 1e-12}
    torch.testing.assert_close(inner[0].mean(), x["out_inner"], **same)
    torch.testing.assert_close(found.ahead["W"], x["out_W_lookahead"], **same)
    torch.testing.assert_close(found.risk, x["out"], **same)
    torch.testing.assert_close(found.alpha_gradient, x["grad_alpha"], **same)
    torch.testing.assert_close(found.beta_gradient, x["grad_beta"], **same)
    torch.testing.assert_close(found.beta, x["out_beta_new"], **same)
    torch.testing.assert_close(found.alpha, x["out_alpha_new"], **same)


def test_the_closed_form_is_the_derivative_through_the_step() -> None:
    """Against a graph of second order, at weights that are not uniform and with a weight that no term reaches."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"first": (4, 3), "second": (3, 2), "unused": (5,)}
    weights = {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}
    data, wanted = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((6, 4), (3, 6, 2)))
    logits = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64)

    def output(weights: Mapping[str, Tensor]) -> Tensor:
        return (data @ weights["first"]).tanh() @ weights["second"]

    def terms(weights: Mapping[str, Tensor]) -> list[Tensor]:
        return [(output(weights) - target).square().sum() for target in wanted]

    def risk(weights: Mapping[str, Tensor]) -> Tensor:
        return output(weights)[:2].cos().sum() + weights["unused"].square().sum()

    found = adapted(terms, risk, weights, logits, 0.02, 3.0)
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    free = logits.clone().requires_grad_()
    total = (free.softmax(0) * torch.stack(terms(leaves))).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), create_graph=True, allow_unused=True)
    pairs = zip(leaves.items(), gradients, strict=True)
    value = risk({name: w if g is None else w - 0.02 * g for (name, w), g in pairs})
    (expected,) = torch.autograd.grad(value, free)
    torch.testing.assert_close(found.beta_gradient, expected)
    torch.testing.assert_close(found.beta, logits - 3.0 * expected)
    torch.testing.assert_close(found.risk, value.detach())
    assert all(not w.requires_grad and w.grad is None for w in weights.values())


# --- Risks -----------------------------------------------------------------------------------------------------------


def embeddings(count: int = 7) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.4


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
def test_risks_on_pairs_are_the_loops(relu: bool, normalise: bool) -> None:
    label = [0, 0, 0, 1, 1, 2, 0]  # the only sample of 2 is no anchor
    rows = embeddings().relu() if relu else embeddings()
    rows = [row / row.norm() if normalise else row for row in rows]
    anchors, pairs = [], []
    for i, mine in enumerate(rows):
        near = [(mine - rows[j]).norm() for j in range(7) if j != i and label[j] == label[i]]
        far = [(mine - rows[j]).norm() for j in range(7) if label[j] != label[i]]
        if near:
            anchors.append(max(0.0, float(0.3 + max(near) - min(far))))
        for j in range(i):
            distance = float((mine - rows[j]).norm())
            pairs.append(distance**2 if label[i] == label[j] else max(0.0, 1.2 - distance) ** 2)
    given = {"embedding": embeddings()}, {"label": torch.tensor(label)}
    triplet = TripletRisk(relu=relu, normalise=normalise)(*given)["triplet"]
    contrastive = ContrastiveRisk(1.2, relu=relu, normalise=normalise)(*given)["contrastive"]
    assert triplet.item() == pytest.approx(sum(anchors) / len(anchors), rel=1e-9)
    assert contrastive.item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-9)


@pytest.mark.parametrize("label", [[0, 0, 0], [0, 1, 2]], ids=["one identity", "one picture each"])
@pytest.mark.parametrize("equal", [True, False])
def test_without_a_triplet_the_risk_is_zero_and_so_its_gradient(label: list[int], equal: bool) -> None:
    rows = (torch.ones(3, 5) if equal else embeddings(3)).requires_grad_()
    value = TripletRisk()({"embedding": rows}, {"label": torch.tensor(label)})["triplet"]
    value.backward()
    assert value.item() == 0
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_risk_by_classes_and_by_another_output() -> None:
    scores, label = embeddings(4), torch.tensor([0, 4, 2, 1])
    found = LabelRisk(on="scores")({"scores": scores}, {"label": label})["cross_entropy"]
    expected = sum(-scores[i].double().softmax(0)[label[i]].log() for i in range(4)) / 4
    assert found.item() == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(UserError, match=r"TripletRisk reads 'embeding'.*Did you mean 'embedding'"):
        TripletRisk(on="embeding")({"embedding": scores}, {"label": label})


# --- The joined loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{"type": "LogEuclidean"}, {"type": "Hint"}, {"type": "AbsoluteTeacher"}])
def test_the_term_is_the_weighted_sum_over_the_unlabelled_samples(kind: dict[str, Any]) -> None:
    model = distiller(transfers=recipe(kind), adaptive=False).eval()
    beta(model).copy_(torch.tensor([0.5, -1.0, 0.2]))
    shared = model.transfers["similarity"].loss
    data = model.data_preprocessor(batch())
    student = model.network(data["inputs"])["embedding"]
    teachers = [model.teachers[name].network(data["inputs"])["embedding"] for name in NAMES]
    alpha = torch.tensor([0.5, -1.0, 0.2]).softmax(0)
    singles = torch.stack([shared.loss(student[4:], teacher[4:]) for teacher in teachers])
    found = model.losses(data["inputs"], data["targets"])["kd.similarity"]
    torch.testing.assert_close(found, 0.1 * (alpha * singles).sum(), rtol=1e-5, atol=1e-7)
    weights = [p for n, p in model.network.named_parameters() if not n.startswith("head")]
    gradients = (torch.autograd.grad(v, weights) for v in (found, 0.1 * (alpha * singles).sum()))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert [name for name in model.state_dict() if "similarity" in name] == ["transfers.similarity.loss.beta"]


@pytest.mark.parametrize(
    ("on", "labels", "rows"),
    [
        ("unlabelled", (-1, 0, -1, 1), [0, 2]),
        ("unlabelled", (0, 0, 1, 1), [0, 1, 2, 3]),
        ("unlabelled", (0, 0, -1, 1), [0, 1, 2, 3]),  # one sample has no relation
        ("all", (-1, 0, -1, 1), [0, 1, 2, 3]),
    ],
)
def test_the_samples_that_are_compared(on: str, labels: tuple[int, ...], rows: list[int]) -> None:
    model = distiller(on=on).eval()
    data = model.data_preprocessor(batch(labels))
    student = model.network(data["inputs"])["embedding"][rows]
    teachers = [model.teachers[name].network(data["inputs"])["embedding"][rows] for name in NAMES]
    found = model.losses(data["inputs"], data["targets"])["kd.similarity"]
    torch.testing.assert_close(found, 0.1 * LogEuclidean()(student, teachers), rtol=1e-5, atol=1e-7)


def test_the_context_of_a_loss_is_that_of_the_same_samples() -> None:
    model = distiller(transfers=recipe({"type": "ToyLabelled"}, context={"label": "camera"})).eval()
    data = model.data_preprocessor(batch())
    targets = {**data["targets"], "camera": torch.arange(8)}
    student = model.network(data["inputs"])["embedding"][4:]
    expected = 0.0
    for name in NAMES:
        differences = (student - model.teachers[name].network(data["inputs"])["embedding"][4:]).square().mean(1)
        expected = expected + 0.1 * (differences[0] + differences[2]) / 4 / 3
    torch.testing.assert_close(model.losses(data["inputs"], targets)["kd.similarity"], expected)


def test_a_loss_of_one_teacher_has_its_sizes_from_the_probe() -> None:
    model = distiller(transfers=recipe({"type": "CCKD", "width": 3}))
    joined = model.transfers["similarity"].loss
    assert isinstance(joined, JoinedLoss) and joined.loss.project_student.weight.shape == (3, WIDTH)
    step(model)
    assert model.updates.tolist() == [1, 0]


# --- The update in a training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{"type": "LogEuclidean"}, {"type": "Hint"}])
@pytest.mark.parametrize("risk", ["triplet", "cross_entropy"])
def test_it_descends_the_risk_of_the_step_on_trial(kind: dict[str, Any], risk: str) -> None:
    """Against finite differences of the risk after the step, in training mode, computed by plain means."""
    model = distiller(transfers=recipe(kind), risk=risk, inner_lr=0.02, weight_lr=0.7).double()
    start = torch.tensor([0.5, -0.3, 0.0], dtype=torch.float64)
    beta(model).copy_(start)
    network, data = copy.deepcopy(model.network), model.data_preprocessor(batch(), True)
    inputs, label = data["inputs"].double(), data["targets"]["label"][:4]
    loss = model.transfers["similarity"].loss.loss
    teachers = [model.teachers[name].network(inputs)["embedding"][4:] for name in NAMES]
    student = copy.deepcopy(network)(inputs)["embedding"][4:]  # the copy's buffers, not those of `network`
    gradients = []
    for teacher in teachers:
        fresh = copy.deepcopy(network)
        loss(fresh(inputs)["embedding"][4:], teacher).backward()
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in fresh.parameters()])
    assert student.shape == teachers[0].shape

    def risk_after(logits: Tensor) -> float:
        moved = copy.deepcopy(network)
        with torch.no_grad():
            for parameter, *parts in zip(moved.parameters(), *gradients, strict=True):
                parameter -= 0.02 * sum(a * g for a, g in zip(logits.softmax(0), parts, strict=True))
            outputs = moved(inputs)
        if risk == "cross_entropy":
            return F.cross_entropy(outputs["logits"][:4], label).item()
        rows = F.normalize(outputs["embedding"][:4].relu())
        apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        hinges = [0.3 + apart[i, i ^ 1] - apart[i, [2, 3] if i < 2 else [0, 1]].min() for i in range(4)]
        return torch.stack(hinges).clamp_min(0).mean().item()

    differences = [
        (risk_after(start + nudge) - risk_after(start - nudge)) / 2e-4 for nudge in 1e-4 * torch.eye(3).double()
    ]
    expected = torch.tensor(differences, dtype=torch.float64)
    assert expected.abs().min() > 1e-7
    model.train_step(batch(), build_optimisers(model, SGD))
    torch.testing.assert_close((start - beta(model)) / 0.7, expected, rtol=1e-4, atol=1e-9)


def test_an_update_changes_the_weights_and_nothing_else() -> None:
    """A run whose weights move by nearly nothing is the uniform run to the last bit, dropout and statistics too."""
    student = {"type": "AggregateNet", "dropout": 0.5}
    shared = recipe({"type": "Hint"}, connector={"type": "Conv1x1", "norm": True}, student="conv")
    shared["similarity"]["teacher"] = [f"{name}.conv" for name in NAMES]
    models = [
        distiller(student=student, transfers=shared, interval=1, **changes)
        for changes in ({"weight_lr": 1e-30}, {"adaptive": False})
    ]
    for model in models:
        before = {name: teacher.network.state_dict() for name, teacher in model.teachers.items()}
        kept = copy.deepcopy(before)
        torch.manual_seed(7)
        optim = build_optimisers(model, SGD)
        for seed in range(3):
            model.train_step(batch(seed=seed), optim)
        assert all(torch.equal(v, kept[n][k]) for n, state in before.items() for k, v in state.items())
        assert all(p.grad is None for p in model.parameters())
    trial, uniform = (model.state_dict() for model in models)
    assert trial.pop("updates").tolist() == [3, 0] and uniform.pop("updates").tolist() == [0, 0]
    assert trial.pop("transfers.similarity.loss.beta").abs().max() < 1e-20
    uniform.pop("transfers.similarity.loss.beta")
    for key, value in uniform.items():
        assert torch.equal(trial[key], value), key


def test_the_student_steps_with_the_new_weights() -> None:
    model = distiller(weight_lr=1000.0)
    data = model.data_preprocessor(batch(), True)
    student = copy.deepcopy(model.network)(data["inputs"])["embedding"][4:]
    teachers = [model.teachers[name].network(data["inputs"])["embedding"][4:] for name in NAMES]
    log = step(model)
    alpha = torch.stack([log[f"alpha.{name}"] for name in NAMES])
    assert (alpha - 1 / 3).abs().max() > 0.01 and alpha.sum().item() == pytest.approx(1)
    assert torch.equal(alpha, beta(model).softmax(0))
    expected = 0.1 * LogEuclidean(alpha.tolist())(student, teachers)
    torch.testing.assert_close(log["kd.similarity"], expected.detach(), rtol=1e-4, atol=1e-6)


def test_an_update_is_due_every_interval_and_where_the_transfer_acts() -> None:
    model = distiller(interval=3, transfers=recipe(begin="iter 2"))
    optim = build_optimisers(model, SGD)
    moved = []
    for iteration in range(8):
        model.set_moment(iteration, 8)
        before = beta(model).clone()
        model.train_step(batch(seed=iteration), optim)
        moved.append(not torch.equal(beta(model), before))
    assert moved == [iteration in (3, 6) for iteration in range(8)]
    assert model.updates.tolist() == [2, 0]
    data = model.data_preprocessor(batch(), True)
    model.set_moment(9, 8)
    model.losses(data["inputs"], data["targets"])  # outside a step
    assert model.updates.tolist() == [2, 0]


def test_the_risk_is_given_the_labelled_samples() -> None:
    model = distiller(risk={"type": "AggregateWatching"}, transfers=recipe(student="embed"))
    data = batch((-1, 3, -1, 2, 3))
    data["targets"] |= {"camera": torch.arange(5), "names": list("abcde"), "scale": torch.tensor(2.0)}
    model.train_step(data, build_optimisers(model, SGD))
    ((outputs, targets),) = model.risk.seen
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "embed": (3, WIDTH),
        "embedding": (3, WIDTH),
        "logits": (3, toys.CLASSES),
    }
    assert targets["label"].tolist() == [3, 2, 3] and targets["camera"].tolist() == [1, 3, 4]
    assert targets["names"] == ["b", "d", "e"] and targets["scale"] == 2
    assert model.updates.tolist() == [1, 0] and not any("risk" in key for key in model.state_dict())


def test_a_harmful_teacher_loses_its_weight() -> None:
    """Two teachers tell the classes apart; the third says of every class that it is the next one's half."""
    kind = {"type": "Hint"}
    model = distiller(
        transfers=recipe(kind, weight=1.0), risk="cross_entropy", interval=1, inner_lr=0.1, weight_lr=100.0
    )
    with torch.no_grad():
        for name in NAMES:
            model.teachers[name].network.load_state_dict(model.teachers["north"].network.state_dict())
        model.teachers["old"].network.embed.weight.neg_()
        model.teachers["old"].network.embed.bias.neg_()
    model.network.head.requires_grad_(False)
    model.network.head.load_state_dict(model.teachers["north"].network.head.state_dict())
    images = toys.batch(8)["inputs"]
    good = model.teachers["north"].network(model.data_preprocessor({"inputs": images})["inputs"])["logits"]
    labels = tuple(good.argmax(1)[:4].tolist()) + (-1,) * 4
    optim = build_optimisers(model, SGD)
    for _ in range(20):
        log = model.train_step(batch(labels), optim)
    assert log["alpha.old"] < 0.2 < 0.33 < log["alpha.north"]
    torch.testing.assert_close(log["alpha.north"], log["alpha.south"])


# --- Batches without labels ------------------------------------------------------------------------------------------


def test_updates_without_labelled_samples_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    model = distiller(interval=1, criterion=None)
    optim = build_optimisers(model, SGD)
    before = beta(model).clone()
    for iteration, labels in enumerate([(-1,) * 4, (0, 1, -1, -1), (0, 0, -1, -1), (0, 0, 1, -1)]):
        model.set_moment(iteration, 2)
        assert torch.equal(beta(model), before)
        model.train_step(batch(labels), optim)
        assert model.updates.tolist() == [iteration // 3, min(iteration + 1, 3)]
    assert not torch.equal(beta(model), before)
    for iteration in range(4, 20):  # once there were some, there may be none
        model.set_moment(iteration, 2)
        model.train_step(batch((-1,) * 4), optim)
    assert model.updates.tolist() == [1, 19]


def test_labels_that_never_come_are_an_error() -> None:
    model = distiller(interval=1, criterion=None)
    optim = build_optimisers(model, SGD)
    with pytest.raises(UserError, match=r"12 updates .* the risk needs: samples whose 'label' is not negative, of two"):
        for iteration in range(30):
            model.set_moment(iteration, 12)
            model.train_step(batch((-1,) * 4), optim)
    assert model.iteration == 11


def test_risks_differ_in_the_samples_that_they_need() -> None:
    for risk, labels, judged in (("cross_entropy", (0, -1, -1), 1), ("triplet", (0, -1, -1), 0), ("triplet", (), 0)):
        model = distiller(risk=risk, criterion=None)
        step(model, labels=(*labels, -1, -1))
        assert model.updates.tolist() == [judged, 1 - judged]


@pytest.mark.parametrize(
    ("targets", "message"),
    [({}, "there is none"), ({"label": torch.zeros(8, 2)}, r"it is torch.Size\(\[8, 2\]\)")],
)
def test_a_label_is_one_number_a_sample(targets: dict[str, Any], message: str) -> None:
    model = distiller(criterion=None)
    data = {**batch(), "targets": targets}
    with pytest.raises(UserError, match=f"target 'label'.*{message}"):
        model.train_step(data, build_optimisers(model, SGD))


# --- Faults ----------------------------------------------------------------------------------------------------------

TWO = {name: {"type": "AggregateNet"} for name in NAMES[:2]}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no such transfer": ({"aggregate": "similarty"}, r"model\.aggregate: .*'similarty'.*did you mean 'similarity'"),
    "one teacher": ({"transfers": recipe(teacher=["north.embedding"])}, "a list of at least two taps"),
    "a single tap": ({"transfers": recipe(teacher="north.embedding")}, "a list of at least two taps"),
    "the same twice": ({"transfers": recipe(teacher=["north.embed", "north.embedding"])}, "one weight and so one tap"),
    "several student taps": ({"transfers": recipe(student=["embedding", "embed"])}, "one tap of the student"),
    "given weights": ({"transfers": recipe({"type": "LogEuclidean", "weights": [1, 1, 1]})}, r"loss\.weights: "),
    "critic": ({"transfers": recipe({"type": "Hinge", "critic": {"type": "ToyCritic"}})}, "cannot share it"),
    "loss": ({"transfers": recipe({"type": "LogEuclidian"})}, "did you mean 'LogEuclidean'"),
    "no loss": ({"transfers": {"similarity": {**recipe()["similarity"], "loss": None}}}, "needs a loss"),
    "shapes": ({"transfers": recipe({"type": "Hint"}, student="logits")}, r"model\.transfers\.similarity: Hint"),
    "a teacher's name": ({"teachers": TWO}, "'old.embedding' begins with no teacher's name"),
    "risk": ({"risk": "tripplet"}, r"model\.risk: 'tripplet'.*did you mean 'triplet'"),
    "margin": ({"risk": {"type": "TripletRisk", "margin": 0}}, r"model\.risk: margin must be above zero, not 0"),
    "interval": ({"interval": 0}, r"model\.interval: a whole number"),
    "inner_lr": ({"inner_lr": 0.0}, r"model\.inner_lr: a rate is above zero"),
    "weight_lr": ({"weight_lr": -1.0}, r"model\.weight_lr: a rate is above zero"),
    "on": ({"on": "unlabeled"}, "'unlabeled' is none of unlabelled, all.*did you mean 'unlabelled'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str) -> None:
    changes, message = FAULTS[name]
    with pytest.raises(UserError, match=f"(?i){message}"):
        distiller(**changes)


# --- The whole training ----------------------------------------------------------------------------------------------


def config(work_dir: Path | str, **changes: Any) -> Config:
    model = {
        **arguments(),
        "type": "AdaptiveDistiller",
        "interval": 2,
        "risk": "cross_entropy",
        "decoder": {"type": "ToyDecoder"},
    }
    whole = toys.config(work_dir).to_dict()
    loader = {"batch_size": 4, "num_workers": 0, "sampler": {"type": "EpochSampler", "shuffle": False}}
    whole |= {"model": model, "train_dataloader": {**loader, "dataset": {"type": "AggregateData"}}}
    return with_options(Config(whole), changes)


def test_the_check_of_a_config_knows_the_arguments(tmp_path: Path) -> None:
    assert find_faults(config(tmp_path)) == []
    faults = find_faults(config(tmp_path, **{"model.intervall": 3, "model.risk": {"type": "TripletRisk", "margn": 1}}))
    assert len(faults) == 2
    assert faults[0].startswith("model.intervall: AdaptiveDistiller takes no 'intervall'. Did you mean 'interval'?")
    assert faults[1].startswith("model.risk.margn: TripletRisk takes no 'margn'. Did you mean 'margin'?")
    (fault,) = find_faults(config(tmp_path, **{"model.risk": "contrastiv"}))
    assert fault.startswith("model.risk: 'contrastiv' is not a known risk. Did you mean 'contrastive'?")
    (fault,) = find_faults(config(tmp_path, **{"model.risk": {"type": "TripletRsk"}}))
    assert "'TripletRsk' is not a known criterion. Did you mean 'TripletRisk'?" in fault
    (fault,) = find_faults(config(tmp_path, **{"model.weight_lr": "fast"}))
    assert fault.startswith("model.weight_lr: AdaptiveDistiller takes a number here")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model.aggregate": "similar"}, "model.aggregate: there is no transfer 'similar'. Did you mean 'similarity'?"),
        ({"model.aggregate": ["similarity"]}, "model.aggregate: there is no transfer ['similarity']"),
        ({f"{SHARED}.teacher": ["north.embedding"]}, f"{SHARED}.teacher: to weight teachers takes a list"),
        ({f"{SHARED}.teacher": ["north.embedding", "north.scores"]}, f"{SHARED}.teacher: each teacher has one weight"),
        ({f"{SHARED}.student": ["scores", "embedding"]}, f"{SHARED}.student: each teacher is compared with one tap"),
    ],
    ids=["unknown", "no_name", "one_teacher", "one_teacher_twice", "two_student_taps"],
)
def test_the_check_of_a_config_knows_what_teachers_can_share(tmp_path: Path, change: Any, expected: str) -> None:
    (fault,) = find_faults(config(tmp_path, **change))
    assert fault.startswith(expected)


def test_resumed_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    changes = {"model.student.dropout": 0.5, "model.weight_lr": 50.0, "train_cfg.max_epochs": 4}
    changes["param_scheduler"] = []
    whole = train(config(tmp_path / "whole", **changes))
    half = train(config(tmp_path / "half", **{**changes, "train_cfg.max_epochs": 2}))
    train(config(tmp_path / "half", **changes), resume=True)
    found, expected = (torch.load(latest_checkpoint(folder))["state_dict"] for folder in (half, whole))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    assert expected["updates"].tolist() == [8, 0]
    alpha = expected["transfers.similarity.loss.beta"].softmax(0)
    assert (alpha - 1 / 3).abs().max() > 1e-3
    lines = [[json.loads(line) for line in (f / "scalars.json").read_text().splitlines()] for f in (whole, half)]
    assert [{k: v for k, v in row.items() if "alpha" in k} for row in lines[0]] == [
        {k: v for k, v in row.items() if "alpha" in k} for row in lines[1]
    ]
    assert all({f"alpha.{name}" for name in NAMES} <= row.keys() for row in lines[0])
    student = torch.load(whole / "student.pth")["state_dict"]
    assert student.keys() == NETWORKS.build({"type": "AggregateNet"}).state_dict().keys()


@pytest.mark.parametrize("amp", ["bf16", None])
def test_under_autocast_an_update_is_in_full_precision(tmp_path: Path, amp: str | None) -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    class Watching(nn.Module):
        def forward(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
            seen.append((outputs["embedding"].dtype, torch.is_autocast_enabled("cpu")))
            return {"squares": outputs["embedding"].square().sum()}

    CRITERIA._classes["AggregatePrecision"] = Watching
    changes = {"model.risk": {"type": "AggregatePrecision"}, "train_cfg.max_epochs": 1}
    try:
        train(config(tmp_path, **changes), amp=amp)
    finally:
        del CRITERIA._classes["AggregatePrecision"]
    assert seen == [(torch.float32, False)] * 2


def test_compiled_it_trains_as_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_by = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled_by(self, **{"backend": "aot_eager", **how}))
    compiled, plain = (
        torch.load(latest_checkpoint(train(config(tmp_path / str(how), compile=how))))["state_dict"]
        for how in (True, False)
    )
    assert compiled["updates"].tolist() == [4, 0]
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-4, atol=1e-6)


ONE = {
    "model.student.norm": False,
    "model.transfers.similarity.loss.gather": True,
    "model.weight_lr": 50.0,
    "train_cfg": {"_delete_": True, "by_epoch": False, "max_iters": 3},
    "param_scheduler": [],
    "custom_hooks": [{"type": "ToyKeeper"}],
}


def as_rank(rank: int, port: int, folder: str) -> None:
    """What torchrun sets for each of its processes, then the training."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0"}
    train(config(folder, **ONE), launcher="pytorch")


def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    train(config(tmp_path / "one", **ONE, **{"train_dataloader.batch_size": 8}))
    expected = torch.load(tmp_path / "one" / "rank_0.pth")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = int(server.getsockname()[1])
    torch.multiprocessing.spawn(as_rank, args=(port, str(tmp_path / "two")), nprocs=2)
    found = [torch.load(tmp_path / "two" / f"rank_{rank}.pth") for rank in range(2)]
    assert expected["updates"].tolist() == [2, 0]
    assert expected["transfers.similarity.loss.beta"].abs().min() > 1e-3
    for key, value in expected.items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
        assert torch.equal(found[0][key], found[1][key]), key


def test_it_is_listed_among_the_methods() -> None:
    lines = dict(catalogue("methods"))
    assert lines["adaptive_aggregation"].startswith("Adaptive knowledge aggregator: ")


def test_what_is_tested_and_exported_is_the_student() -> None:
    cfg = {"model": {"type": "AdaptiveDistiller", "student": {"type": "ToyNet"}, "teachers": {}, "aggregate": "some"}}
    assert is_distillation(cfg)
    assert deployed_model_config(cfg) == {"type": "TaskModel", "network": {"type": "ToyNet"}}
