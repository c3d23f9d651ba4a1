"""The task loss of lane networks against its fixture and against loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kd_lanes.criterion import LaneLoss

from kd_tasks.errors import UserError
from kd_tasks.registry import CRITERIA

FIXTURE = Path(__file__).parents[1] / "fixtures" / "losses" / "enet_sad_loss.npz"


def fixture():
    data = np.load(FIXTURE)
    logits, exist = (torch.from_numpy(data[key]).requires_grad_() for key in ("in_logit", "in_exist_logit"))
    targets = {"mask": torch.from_numpy(data["in_label"]), "exist": torch.from_numpy(data["in_exist"])}
    return {"logits": logits, "exist": exist}, targets, data


def random_batch(height=12, width=20, lanes=3):
    torch.manual_seed(0)
    outputs = {"logits": torch.randn(2, lanes + 1, height, width), "exist": torch.randn(2, lanes)}
    targets = {
        "mask": torch.randint(0, lanes + 1, (2, height, width), dtype=torch.uint8),
        "exist": torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.uint8),
    }
    return outputs, targets


def test_loss_and_gradient_are_those_of_the_fixture():
    outputs, targets, data = fixture()
    losses = LaneLoss()(outputs, targets)
    sum(losses.values()).backward()
    weights = json.loads(str(data["hp"]))
    expected = {
        "ce": data["out_seg"],
        "iou": weights["alpha_iou"] * data["out_iou"],
        "exist": weights["beta_exist"] * data["out_exist"],
    }
    assert list(losses) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name].item(), value, rtol=1e-12)
    np.testing.assert_allclose(sum(losses.values()).item(), data["out"], rtol=1e-12)
    np.testing.assert_allclose(outputs["logits"].grad, data["grad_logit"], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(outputs["exist"].grad, data["grad_exist_logit"], rtol=1e-9, atol=1e-15)


def test_the_overlap_is_of_all_lanes_and_not_of_one():
    """The third-party code takes the fourth class from the end alone."""
    outputs, targets, data = fixture()
    value = LaneLoss(iou_weight=1.0)(outputs, targets)["iou"].item()
    assert abs(value - data["out_iou_thirdparty_as_is"]) > 1e-3


def test_bytes_and_integers_give_the_same_loss():
    outputs, targets, _ = fixture()
    narrow = {"mask": targets["mask"].to(torch.uint8), "exist": targets["exist"].to(torch.uint8)}
    first, second = LaneLoss()(outputs, targets), LaneLoss()(outputs, narrow)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_terms_by_loops_over_pixels_without_the_ignored_ones():
    outputs, targets = random_batch()
    targets["mask"][:, :3] = 255
    targets["mask"][targets["mask"] == 2] = 0
    losses = LaneLoss(background_weight=0.3, iou_weight=1.0)(outputs, targets)
    shares = outputs["logits"].softmax(1)
    total, weights, overlaps = 0.0, 0.0, []
    for share, mask in zip(shares, targets["mask"].long(), strict=True):
        both, either = torch.zeros(3), torch.zeros(3)
        for y, x in torch.cartesian_prod(torch.arange(12), torch.arange(20)).tolist():
            if mask[y, x] == 255:
                continue
            weight = 0.3 if mask[y, x] == 0 else 1.0
            total -= weight * share[mask[y, x], y, x].log()
            weights += weight
            label = F.one_hot(mask[y, x], 4)[1:].float()
            both += share[1:, y, x] * label
            either += share[1:, y, x] + label - share[1:, y, x] * label
        overlaps.append(both / either)
    torch.testing.assert_close(losses["ce"], total / weights)
    torch.testing.assert_close(losses["iou"], 1 - torch.cat(overlaps).mean())


@pytest.mark.parametrize("align_corners", [True, False])
def test_logits_are_enlarged_to_the_masks(align_corners):
    outputs, targets = random_batch()
    small = {"logits": torch.randn(2, 4, 3, 5), "exist": outputs["exist"]}
    size = targets["mask"].shape[1:]
    large = F.interpolate(small["logits"], size, mode="bilinear", align_corners=align_corners)
    given = LaneLoss(align_corners=align_corners)(small, targets)
    expected = LaneLoss()({**small, "logits": large}, targets)
    for name, value in expected.items():
        torch.testing.assert_close(given[name], value)


def test_a_batch_of_background_alone_has_its_cross_entropy():
    outputs, targets = random_batch()
    logits = outputs["logits"].requires_grad_()
    targets = {"mask": torch.zeros_like(targets["mask"]), "exist": torch.zeros_like(targets["exist"])}
    losses = LaneLoss()(outputs, targets)
    torch.testing.assert_close(losses["ce"], F.cross_entropy(logits, targets["mask"].long()))
    assert losses["iou"].item() == pytest.approx(0.1)
    (gradient,) = torch.autograd.grad(losses["iou"], logits, retain_graph=True)
    assert gradient.abs().max() == 0
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all()


def test_a_batch_without_labels_gives_zero_cross_entropy_and_finite_gradients():
    outputs, targets = random_batch()
    logits = outputs["logits"].requires_grad_()
    losses = LaneLoss()(outputs, {**targets, "mask": torch.full_like(targets["mask"], 255)})
    assert losses["ce"].item() == 0
    (losses["ce"] + losses["iou"]).backward()
    assert logits.grad.abs().max() == 0


def test_terms_can_be_left_out():
    outputs, targets = random_batch()
    assert list(LaneLoss(iou_weight=0, exist_weight=0)(outputs, targets)) == ["ce"]
    assert list(LaneLoss()({"logits": outputs["logits"]}, {"mask": targets["mask"]})) == ["ce", "iou"]
    assert LaneLoss(exist_weight=0).skips_outputs and not LaneLoss().skips_outputs


@pytest.mark.parametrize("value", [1e4, 1e30])
def test_saturated_logits_have_finite_loss_and_gradient(value):
    outputs, targets = random_batch()
    logits = (value * outputs["logits"]).requires_grad_()
    losses = LaneLoss()({"logits": logits, "exist": value * outputs["exist"]}, targets)
    sum(losses.values()).backward()
    assert all(term.isfinite() for term in losses.values())
    assert logits.grad.isfinite().all()


def test_loss_stays_in_float32_under_autocast():
    outputs, targets = random_batch()
    half = {name: value.bfloat16() for name, value in outputs.items()}
    exact = LaneLoss()({name: value.float() for name, value in half.items()}, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = LaneLoss()(half, targets)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name])


def test_faults_of_a_person_are_named():
    outputs, targets = random_batch()
    with pytest.raises(UserError, match="slot 4, but the network has 3"):
        LaneLoss()(outputs, {**targets, "mask": targets["mask"].clamp(min=4)})
    with pytest.raises(UserError, match="crop or resize"):
        LaneLoss()(outputs, {**targets, "mask": [torch.zeros(12, 20), torch.zeros(12, 21)]})
    with pytest.raises(UserError, match=r"3 lanes.*\(2, 6\).*num_lanes"):
        LaneLoss()(outputs, {**targets, "exist": torch.zeros(2, 6)})
    with pytest.raises(UserError, match="no target 'exist'"):
        LaneLoss()(outputs, {"mask": targets["mask"]})
    with pytest.raises(UserError, match="background_weight"):
        CRITERIA.build({"type": "LaneLoss", "background_weight": 0})
