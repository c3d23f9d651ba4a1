"""The distiller: what is summed, what is trained by which optimiser, and what the student starts from."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import toys
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from torch import Tensor, nn

from kd_tasks.engine.compat import build_optimisers
from kd_tasks.errors import UserError
from kd_tasks.registry import TASK_MODELS
from kd_tasks.task import TaskModel

SGD = {"optimizer": {"type": "SGD", "lr": 0.1}}
BOTH = {**SGD, "critic": {"optimizer": {"type": "SGD", "lr": 0.2}}}
SOFT = {"on": "logits", "loss": {"type": "SoftTargets"}}


def losses(model: toys.Distiller) -> dict[str, Tensor]:
    batch = model.data_preprocessor(toys.batch(), True)
    return model.losses(batch["inputs"], batch["targets"])


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


# --- Beginning -------------------------------------------------------------------------------------------------------


def parts(*order: str) -> dict[str, Any]:
    named = {
        "student": {"type": "ToyNet", "dropout": 0.5},
        "teacher": {"type": "ToyNet", "width": 6},
        "transfers": {"hint": {"on": "stage2", "connector": "conv1x1", "loss": {"type": "Hint"}}},
        "criterion": {"type": "ToyCriterion"},
    }
    return {"type": "Distiller", **{name: named[name] for name in order}}


@pytest.mark.parametrize("order", [("student", "teacher"), ("teacher", "student")])
def test_the_student_starts_as_it_would_alone_with_the_same_seed(order: tuple[str, str]) -> None:
    torch.manual_seed(5)
    alone = TASK_MODELS.build({"type": "TaskModel", "network": {"type": "ToyNet", "dropout": 0.5}}, "model")
    next_number = torch.rand(())
    torch.manual_seed(5)
    distilled = TASK_MODELS.build(parts(*order, "transfers", "criterion"), "model")
    assert torch.equal(torch.rand(()), next_number)
    for key, value in alone.network.state_dict().items():
        assert torch.equal(distilled.network.state_dict()[key], value), key


def test_with_transfers_of_weight_nearly_nothing_it_trains_as_alone() -> None:
    torch.manual_seed(5)
    alone = TaskModel({"type": "ToyNet", "dropout": 0.5}, {"type": "ToyCriterion"})
    torch.manual_seed(5)
    model = toys.distiller(student={"type": "ToyNet", "dropout": 0.5}, transfers={"soft": {**SOFT, "weight": 1e-30}})
    for each in (alone, model):
        torch.manual_seed(6)
        optim = build_optimisers(each.train(), SGD)
        for step in range(3):
            each.train_step(toys.batch(seed=step), optim)
    for key, value in alone.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value), key


# --- The sum ---------------------------------------------------------------------------------------------------------


def test_the_sum_includes_every_term_whatever_its_name() -> None:
    recipe = {name: {**SOFT, "weight": weight} for name, weight in (("acc", 1.0), ("plain", 0.5), ("loss", 0.25))}
    model = toys.distiller(transfers=recipe).eval()
    batch = model.data_preprocessor(toys.batch())
    logits = model.network(batch["inputs"])["logits"]
    target = model.teachers["teacher"].network(batch["inputs"])["logits"]
    divergence = 16 * F.kl_div((logits / 4).log_softmax(1), (target / 4).softmax(1), reduction="batchmean")
    terms = losses(model)
    assert set(terms) == {"task.labels", "kd.acc", "kd.plain", "kd.loss"}
    total, log = model.parse_losses(terms)
    torch.testing.assert_close(
        total, F.cross_entropy(logits, batch["targets"]["label"]) + (1 + 0.5 + 0.25) * divergence
    )
    torch.testing.assert_close(log["loss"], total)
    total.backward()
    assert model.network.head.weight.grad.abs().sum() > 0


def test_task_weight_is_scheduled() -> None:
    weight = {"start": 2.0, "end": 0.0, "until": "epoch 1"}
    model = toys.distiller(task_weight=weight).eval()
    batch = model.data_preprocessor(toys.batch())
    plain = F.cross_entropy(model.network(batch["inputs"])["logits"], batch["targets"]["label"])
    model.set_moment(0, 4)
    torch.testing.assert_close(losses(model)["task.labels"], 2 * plain)
    model.set_moment(3, 4)
    torch.testing.assert_close(losses(model)["task.labels"], 0.5 * plain)
    model.set_moment(4, 4)
    assert "task.labels" not in losses(model)
    assert model.skips_parameters
    assert not toys.distiller().skips_parameters


def test_nothing_to_train_on_is_an_error() -> None:
    model = toys.distiller(criterion=None, transfers={"soft": {**SOFT, "begin": "epoch 1"}})
    model.set_moment(7, 10)
    with pytest.raises(UserError, match="no task loss and no transfer acts in iteration 7"):
        losses(model)
    with pytest.raises(UserError, match="at least one transfer"):
        toys.distiller(transfers={})


def test_self_distillation_has_the_students_own_tap_as_target() -> None:
    recipe = {
        "own": {"student": "stage1", "target": "stage2", "connector": "conv1x1", "loss": {"type": "Hint"}},
    }
    model = toys.distiller(teacher=None, transfers=recipe).eval()
    inputs = model.data_preprocessor(toys.batch())["inputs"]
    shallow = model.network.stage1(inputs)
    deep = model.network.stage2(shallow)
    expected = (model.transfers["own"].connector(shallow) - deep).square().mean()
    found = losses(model)["kd.own"]
    torch.testing.assert_close(found, expected)
    found.backward()
    assert model.network.stage2[0].weight.grad is None
    assert model.network.stage1[0].weight.grad.abs().sum() > 0


# --- Optimisers ------------------------------------------------------------------------------------------------------


RECIPE = {
    "hint": {"on": "stage2", "connector": "conv1x1", "loss": {"type": "Hint"}},
    "scaled": {"on": "logits", "loss": {"type": "ToyScaled"}},
    "joint": {"on": "logits", "connector": "linear", "loss": {"type": "SoftTargets"}},
}


def test_every_parameter_that_gets_a_gradient_is_in_an_optimiser_once() -> None:
    model = toys.distiller(transfers={**RECIPE, "critic": toys.ADVERSARIAL}).train()
    optim = build_optimisers(model, BOTH)
    assert isinstance(optim, OptimWrapperDict)
    named = {id(p): name for name, p in model.named_parameters()}
    of = {
        kind: [named[id(p)] for group in optim[kind].optimizer.param_groups for p in group["params"]]
        for kind in ("student", "critic")
    }
    assert sorted([*of["student"], *of["critic"]]) == sorted(named.values())
    assert of["critic"] == ["transfers.critic.loss.critic.layer.weight", "transfers.critic.loss.critic.layer.bias"]
    total, _ = model.parse_losses(losses(model))
    total.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == set(of["student"])
    assert {"transfers.hint.connector.layers.0.weight", "transfers.scaled.loss.scale"} <= reached


def test_connectors_and_loss_parameters_are_trained() -> None:
    model = toys.distiller(transfers=RECIPE).train()
    before = snapshot(model)
    model.train_step(toys.batch(), build_optimisers(model, SGD))
    expected = {name for name in before if not name.endswith(("0.bias",)) or "transfers" in name}
    assert expected <= moved(model, before)  # a bias before BatchNorm has no gradient


def test_a_config_that_tells_parameters_apart_sees_them_all() -> None:
    model = toys.distiller(transfers={**RECIPE, "critic": toys.ADVERSARIAL})
    cfg = {**BOTH, "paramwise_cfg": {"custom_keys": {"transfers": {"lr_mult": 10.0}}}}
    optim = build_optimisers(model, cfg)["student"]
    rates = {id(p): group["lr"] for group in optim.optimizer.param_groups for p in group["params"]}
    assert rates[id(model.transfers["scaled"].loss.scale)] == pytest.approx(1.0)
    assert rates[id(model.network.head.weight)] == pytest.approx(0.1)
    assert not {id(p) for p in model.critics[0].parameters()} & set(rates)


def test_parameters_with_equal_options_are_one_group() -> None:
    cfg = {
        "optimizer": {"type": "AdamW", "lr": 0.1},
        "paramwise_cfg": {"custom_keys": {"transfers": {"lr_mult": 10.0}}},
    }
    models = [toys.distiller(transfers=RECIPE).train()]
    models.append(copy.deepcopy(models[0]))
    joined, single = build_optimisers(models[0], cfg), build_optim_wrapper(models[1], cfg)
    groups = joined.optimizer.param_groups
    assert sorted(group["lr"] for group in groups) == pytest.approx([0.1, 1.0])
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in models[0].parameters() if p.requires_grad)
    assert len(single.optimizer.param_groups) == len(held)
    for model, optim in zip(models, (joined, single), strict=True):
        for _ in range(2):
            model.train_step(toys.batch(), optim)
    assert [(n, p.tolist()) for n, p in models[0].named_parameters()] == [
        (n, p.tolist()) for n, p in models[1].named_parameters()
    ]


def test_an_optimiser_for_the_critic_belongs_to_a_critic() -> None:
    with pytest.raises(UserError, match=r"needs optim_wrapper\.critic"):
        build_optimisers(toys.distiller(transfers={"critic": toys.ADVERSARIAL}), SGD)
    with pytest.raises(UserError, match=r"optim_wrapper\.critic: no transfer has a critic"):
        build_optimisers(toys.distiller(), BOTH)


def test_the_students_step_leaves_no_gradient_in_the_critic_and_the_critics_none_in_the_student() -> None:
    model = toys.distiller(transfers={"critic": toys.ADVERSARIAL}).train()
    batch = model.data_preprocessor(toys.batch(), True)
    terms = model.losses(batch["inputs"], batch["targets"])
    terms["kd.critic"].backward()
    critic = model.critics[0]
    assert all(p.grad is None for p in critic.parameters())
    assert model.network.head.weight.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)
    ((transfer, _, student, teacher, context),) = model._critic_batch
    transfer.loss.critic_loss(student, teacher, **context).backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert all(p.grad is None for p in model.network.parameters())


def test_one_step_moves_both_as_two_optimisers_by_hand() -> None:
    recipe = {"critic": {**toys.ADVERSARIAL, "loss": {"type": "Hinge", "critic": {"type": "ToyCritic"}}, "weight": 0.5}}
    model = toys.distiller(transfers=recipe).train()
    network, critic = copy.deepcopy(model.network), copy.deepcopy(model.critics[0])
    batch = model.data_preprocessor(toys.batch(), True)
    target = model.teachers["teacher"].network(batch["inputs"])["logits"]
    log = model.train_step(toys.batch(), build_optimisers(model, BOTH))

    logits = network(batch["inputs"])["logits"]
    loss = F.cross_entropy(logits, batch["targets"]["label"]) - 0.5 * critic(logits).mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    fake, real = critic(logits.detach()), critic(target)
    critic_loss = 0.5 * (F.relu(1 + fake).mean() + F.relu(1 - real).mean())
    critic_gradients = torch.autograd.grad(critic_loss, list(critic.parameters()))
    for parameter, gradient, found in zip(network.parameters(), gradients, model.network.parameters(), strict=True):
        torch.testing.assert_close(found, parameter - 0.1 * gradient)
    for parameter, gradient, found in zip(
        critic.parameters(), critic_gradients, model.critics[0].parameters(), strict=True
    ):
        torch.testing.assert_close(found, parameter - 0.2 * gradient)
    torch.testing.assert_close(log["critic.critic"], critic_loss.detach())
    torch.testing.assert_close(log["loss"], loss.detach())
    assert all(p.grad is None for p in model.parameters())


def test_a_critic_that_is_off_is_not_trained() -> None:
    model = toys.distiller(transfers={"soft": SOFT, "critic": {**toys.ADVERSARIAL, "begin": "iter 1"}}).train()
    optim = build_optimisers(model, BOTH)
    before = snapshot(model.critics[0])
    for iteration in range(2):
        model.set_moment(iteration, 10)
        log = model.train_step(toys.batch(), optim)
        assert ("critic.critic" in log) == bool(moved(model.critics[0], before)) == (iteration == 1)


def test_gradients_accumulate_over_steps() -> None:
    once = toys.distiller(student={"type": "ToyNet", "norm": False})
    twice = copy.deepcopy(once)
    plain = build_optimisers(once.train(), SGD)
    accumulating = build_optimisers(twice.train(), {**SGD, "accumulative_counts": 2})
    whole = toys.batch(8)
    once.train_step(whole, plain)
    for half in (slice(0, 4), slice(4, 8)):
        data = {"inputs": whole["inputs"][half], "targets": {"label": whole["targets"]["label"][half]}, "meta": []}
        twice.train_step(data, accumulating)
    for mine, theirs in zip(twice.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


# --- The student's task model ----------------------------------------------------------------------------------------


def test_it_predicts_as_the_student_alone_would() -> None:
    model = toys.distiller().eval()
    alone = TaskModel(copy.deepcopy(model.network), decoder={"type": "ToyDecoder"}).eval()
    assert model.val_step(toys.batch()) == alone.val_step(toys.batch())
    assert model.deployed().network is model.network


def test_a_teacher_that_no_transfer_reads_is_refused() -> None:
    recipe = {"own": {"student": "stage1", "target": "stage2", "connector": "conv1x1", "loss": {"type": "Hint"}}}
    with pytest.raises(UserError, match=r"model\.teacher: no transfer reads this teacher"):
        toys.distiller(transfers=recipe)
