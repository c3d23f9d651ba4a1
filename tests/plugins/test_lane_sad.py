"""Self attention distillation and distillation from a teacher, from a config to the gradient in the student."""

import copy
import math

import pytest
import torch
from kd_lanes.criterion import LaneLoss
from kd_lanes.losses import LabelAttention
from kd_lanes.networks import ENetSAD
from kd_lanes.synthetic import draw, lane_mask

from kd_tasks import plugins
from kd_tasks.engine.compat import build_optimisers
from kd_tasks.errors import UserError
from kd_tasks.losses import SAD
from kd_tasks.registry import TASK_MODELS

SIZE = (40, 104)
BEGIN = 7
STUDENT = {"type": "ENetSAD", "width": 0.5, "depth": (1, 2)}
PLAIN = {"type": "ENet", "width": 0.5, "depth": (1, 2)}
TEACHERS = {
    "scnn": {"type": "SCNN", "width": 0.125},
    "resnet34": {"type": "LaneResNet", "backbone": "resnet34", "width": 0.25},
}
FEATURES = {"scnn": "messages", "resnet34": "backbone.layer4"}
SUCCESSIVE = {
    "e2": {"student": "e2", "target": "e3", "loss": {"type": "SAD", "map_norm": "zscore"}, "weight": 0.1},
    "e3": {"student": "e3", "target": "e4", "loss": {"type": "SAD", "map_norm": "zscore"}, "weight": 0.1},
}


def build(transfers, student=STUDENT, teacher=None, size=SIZE):
    """A distiller of a config."""
    plugins.load_all()
    torch.manual_seed(0)
    cfg = {
        "type": "Distiller",
        "student": dict(student),
        "transfers": transfers,
        "criterion": {"type": "LaneLoss"},
        "input_size": size,
    }
    return TASK_MODELS.build(copy.deepcopy(cfg | ({"teacher": {**teacher}} if teacher else {})), "model").train()


def batch(size=SIZE, count=2):
    frames = [draw(seed, size=(148, 410)) for seed in range(count)]
    images = torch.stack([torch.from_numpy(f.image).permute(2, 0, 1) for f in frames]).float()
    masks = torch.stack([torch.from_numpy(mask_of(frame)) for frame in frames])[:, None].float()
    inputs = torch.nn.functional.interpolate(images, size).to(torch.uint8)
    mask = torch.nn.functional.interpolate(masks, size)[:, 0].to(torch.uint8)
    exist = torch.stack([(mask == slot).flatten(1).any(1) for slot in range(1, 5)], 1).to(torch.uint8)
    meta = [{"index": index} for index in range(count)]
    return {"inputs": inputs, "targets": {"mask": mask, "exist": exist}, "meta": meta}


def mask_of(frame):
    return lane_mask(lanes_of(frame), frame.image.shape[:2], 8)


def lanes_of(frame):
    rows = torch.arange(frame.image.shape[0] - 1, 50, -4).double().numpy()
    return {slot: frame.points(slot, rows) for slot in frame.lanes if slot <= 4}


def losses(model, data=None):
    """Terms of one batch, from pictures of bytes."""
    return model(**model.data_preprocessor(copy.deepcopy(data or batch()), True), mode="loss")


def gradients(model, term):
    """By part of the student, the size of the gradient of a term."""
    model.zero_grad()
    term.backward(retain_graph=True)
    sizes = {}
    for name, parameter in model.network.named_parameters():
        part = name.split(".")[0]
        own = 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())
        sizes[part] = sizes.get(part, 0.0) + own
    return sizes


# --- A network teaches itself -----------------------------------------------------------------------------------------


def test_each_block_learns_from_the_next_and_the_next_gets_no_gradient():
    model = build(SUCCESSIVE)
    terms = losses(model)
    assert set(terms) == {"task.ce", "task.iou", "task.exist", "kd.e2", "kd.e3"}
    for name, learning, resting in (("e2", {"initial", "e1", "e2"}, {"e3", "e4"}), ("e3", {"e2", "e3"}, {"e4"})):
        sizes = gradients(model, terms[f"kd.{name}"])
        assert all(sizes[part] > 0 for part in learning)
        assert all(sizes[part] == 0 for part in resting | {"up1", "head", "existence"})


def test_the_terms_are_a_tenth_of_the_loss_between_the_blocks():
    model = build(SUCCESSIVE)
    data = model.data_preprocessor(batch(), True)
    seen = {}
    for name in ("e2", "e3", "e4"):
        getattr(model.network, name).register_forward_hook(lambda m, i, out, name=name: seen.setdefault(name, out))
    terms = model(**data, mode="loss")
    loss = SAD(map_norm="zscore")
    for shallow, deep in (("e2", "e3"), ("e3", "e4")):
        torch.testing.assert_close(terms[f"kd.{shallow}"], 0.1 * loss(seen[shallow], seen[deep]))


def test_distillation_begins_at_its_iteration():
    model = build({name: {**cfg, "begin": f"iter {BEGIN}"} for name, cfg in SUCCESSIVE.items()})
    for iteration, expected in ((0, set()), (BEGIN - 1, set()), (BEGIN, {"kd.e2", "kd.e3"}), (50, {"kd.e2", "kd.e3"})):
        model.set_moment(iteration, 100)
        assert {name for name in losses(model) if name.startswith("kd.")} == expected


def test_before_it_begins_the_student_is_trained_as_alone():
    """The same steps, parameter by parameter, as those of the network without distillation."""
    transfers = {name: {**cfg, "begin": f"iter {BEGIN}"} for name, cfg in SUCCESSIVE.items()}
    distilled = build(transfers, {**STUDENT, "dropout": 0.0})
    alone = TASK_MODELS.build(
        {"type": "TaskModel", "network": copy.deepcopy(distilled.network), "criterion": {"type": "LaneLoss"}}, "model"
    ).train()
    optimiser = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "nesterov": True}}
    for model in (distilled, alone):
        optim = build_optimisers(model, copy.deepcopy(optimiser))
        for iteration in range(2):
            if model is distilled:
                model.set_moment(iteration, 100)
            model.train_step(batch(), optim)
    for (name, first), second in zip(distilled.network.named_parameters(), alone.network.parameters(), strict=True):
        assert torch.equal(first, second), name


def test_distillation_changes_the_weights():
    weights = []
    for begin in ("iter 0", "iter 1"):
        model = build({name: {**cfg, "begin": begin} for name, cfg in SUCCESSIVE.items()}, {**STUDENT, "dropout": 0.0})
        optim = build_optimisers(model, {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01}})
        model.train_step(batch(), optim)
        weights.append({name: value.clone() for name, value in model.network.state_dict().items()})
    changed = {name.split(".")[0] for name, value in weights[0].items() if not torch.equal(value, weights[1][name])}
    assert {"e2", "e3"} <= changed
    assert not changed & {"e4", "up1", "d1", "head", "existence"}


def test_the_released_variant_has_the_last_block_learn_the_labels():
    transfers = {
        "e3": SUCCESSIVE["e3"],
        "labels": {"student": "e4", "loss": {"type": "LabelAttention", "map_norm": "zscore"}, "weight": 0.1},
    }
    model = build(transfers)
    terms = losses(model)
    sizes = gradients(model, terms["kd.labels"])
    assert sizes["e4"] > 0 and sizes["e1"] > 0 and sizes["up1"] == 0


def test_shared_blocks_can_teach_each_other():
    model = build(SUCCESSIVE, {**STUDENT, "share": True})
    terms = losses(model)
    assert gradients(model, terms["kd.e2"])["e2"] > 0


def test_a_block_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"model\.student: no tap 'e4'"):
        build(SUCCESSIVE, PLAIN)


# --- The labels as a map ----------------------------------------------------------------------------------------------


def test_label_attention_by_loops():
    torch.manual_seed(0)
    student = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    mask = torch.randint(0, 4, (2, 8, 12))
    mask[:, 0] = 255
    attention = SAD().attention(student, (4, 6))
    total = torch.zeros((), dtype=torch.float64)
    for n in range(2):
        lanes = torch.zeros(4, 6, dtype=torch.float64)
        for y in range(8):
            for x in range(12):
                lanes[y // 2, x // 2] += 0 < mask[n, y, x] < 255
        total += (attention[n] - lanes / lanes.sum()).square().sum() / 2
    torch.testing.assert_close(LabelAttention()(student, mask=mask), total)
    torch.testing.assert_close(LabelAttention(reduction="mean")(student, mask=mask), total / 24)


def test_label_attention_of_pictures_without_lanes_is_zero():
    student = torch.randn(2, 3, 4, 6, requires_grad=True)
    mask = torch.zeros(2, 8, 12, dtype=torch.uint8)
    mask[1, 0] = 255
    value = LabelAttention()(student, mask=mask)
    value.backward()
    assert value.item() == 0 and student.grad.abs().max() == 0


def test_label_attention_is_trained_to_the_lanes():
    torch.manual_seed(0)
    student = torch.randn(1, 4, 5, 8, requires_grad=True)
    mask = torch.zeros(1, 20, 32, dtype=torch.uint8)
    mask[0, :, 12:16] = 2
    optim = torch.optim.Adam([student], lr=0.05)
    for _ in range(200):
        optim.zero_grad()
        LabelAttention()(student, mask=mask).backward()
        optim.step()
    assert SAD().attention(student.detach(), (5, 8))[0, :, 3].sum() > 0.9


def test_label_attention_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 6\) and \(2,\)"):
        LabelAttention()(torch.rand(2, 3, 4, 6), mask=torch.zeros(2))


# --- What the docstring of SAD says it measured -----------------------------------------------------------------------


def fresh_attention(map_norm, seeds, size=(80, 208)):
    """Of fresh networks, by pair: entropy of G to that of a uniform map; gradient of 0.1 SAD to that of the task."""
    entropies, ratios = [], []
    data = batch(size)
    for seed in range(seeds):
        torch.manual_seed(seed)
        network, taps = ENetSAD().train(), {}
        for name in ("e2", "e3", "e4"):
            getattr(network, name).register_forward_hook(lambda m, i, out, name=name, t=taps: t.setdefault(name, out))
        outputs = network((data["inputs"] - 110.0) / 58)
        task = sum(LaneLoss()(outputs, data["targets"]).values())
        loss = SAD(map_norm=map_norm)
        for shallow, deep in (("e2", "e3"), ("e3", "e4")):
            own = torch.autograd.grad(0.1 * loss(taps[shallow], taps[deep]), taps[shallow], retain_graph=True)[0]
            of_task = torch.autograd.grad(task, taps[shallow], retain_graph=True)[0]
            attention = loss.attention(taps[shallow].detach().double(), tuple(taps[shallow].shape[2:])).flatten(1)
            entropy = -torch.special.xlogy(attention, attention).sum(1).mean() / math.log(attention.shape[1])
            entropies.append(float(entropy))
            ratios.append(float(own.norm() / of_task.norm()))
    return torch.tensor(entropies), torch.tensor(ratios)


def test_raw_sums_are_one_hot_in_a_fresh_network_and_normalised_maps_are_not():
    entropies, ratios = fresh_attention("none", 3)
    assert entropies.max() < 0.01
    assert ratios.median() < 1e-4
    entropies, ratios = fresh_attention("zscore", 3)
    assert entropies.min() > 0.3
    assert ratios.min() > 5e-3 and ratios.max() < 1


# --- A teacher teaches ENet -------------------------------------------------------------------------------------------


def attention_transfer(tap):
    return {"student": "e3", "teacher": tap, "loss": {"type": "AttentionTransfer"}, "weight": 1000.0}


def soft_classes(tap):
    return {"on": "logits", "loss": {"type": "SoftTargets", "temperature": 2.0}, "weight": 1.0}


def soft_positions(tap):
    return {"on": "logits", "loss": {"type": "SoftTargets", "temperature": 2.0, "over": "positions"}, "weight": 1.0}


def pair_wise(tap):
    return {"student": "e3", "teacher": tap, "loss": {"type": "PairWise", "pool": 2}, "weight": 1.0}


def sad_with_teacher(tap):
    return {"student": "e3", "teacher": tap, "loss": {"type": "SAD", "map_norm": "zscore"}, "weight": 0.1}


RECIPES = [attention_transfer, soft_classes, soft_positions, pair_wise, sad_with_teacher]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_teacher_reaches_the_student_by_each_recipe(teacher, recipe):
    model = build({"some": recipe(FEATURES[teacher])}, PLAIN, {**TEACHERS[teacher], "full_size": True}, (64, 96))
    before = copy.deepcopy(model.teachers["teacher"].network.state_dict())
    terms = losses(model, batch((64, 96)))
    assert terms["kd.some"].isfinite() and terms["kd.some"] > 0
    sizes = gradients(model, terms["kd.some"])
    assert all(sizes[part] > 0 for part in ("initial", "e1", "e2", "e3"))
    assert (sizes["head"] > 0) == ("logits" in recipe("x").get("on", ""))
    after = model.teachers["teacher"].network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_blocks_and_a_teacher_together():
    transfers = {**SUCCESSIVE, "top": {**sad_with_teacher("messages"), "student": "e4"}}
    terms = losses(build(transfers, STUDENT, TEACHERS["scnn"]))
    assert {name for name in terms if name.startswith("kd.")} == {"kd.e2", "kd.e3", "kd.top"}
