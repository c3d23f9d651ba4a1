"""The losses on maps with layers of their own, or on values before a ReLU: by hand, and what their pages promise."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_cases import read
from loss_cases.layers import batchnorm, paraphrased, review_weights
from torch import Tensor, nn
from torch.func import functional_call

from kd_tasks.losses import MGD, VID, ActivationBoundaries, FactorTransfer, Loss, Overhaul, ReviewKD
from kd_tasks.losses.features import factor_difference, margin_of
from kd_tasks.losses.layers import Paraphraser, Reconstruction, averaged, fit_paraphraser, reconstruction_error


def tensors(fixture: str) -> dict[str, Tensor]:
    """The inputs, parameters and expected arrays of a fixture in double precision."""
    data = {key: value for key, value in read(fixture).items() if value.dtype.kind == "f"}
    return {key.removeprefix("in_"): torch.from_numpy(np.array(value)).double() for key, value in data.items()}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def prepared(loss: Loss, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor]) -> Loss:
    loss.prepare(student, teacher)
    return loss.double()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# Variational information distillation


def test_vid_is_the_likelihood_of_a_gaussian_without_its_constant() -> None:
    student, teacher = normal(3, 4, 5, 2), normal(3, 6, 5, 2)
    loss = prepared(VID(), student, teacher)
    with torch.no_grad():
        loss.raw_variance.copy_(normal(6))
    variance = (1 + loss.raw_variance.exp()).log() + 1e-5
    terms = []
    for n, y, x in itertools.product(range(3), range(5), range(2)):
        hidden = student[n, :, y, x]
        for i in (0, 2, 4):
            hidden = loss.regressor[i].weight[:, :, 0, 0] @ (hidden if i == 0 else hidden.clamp_min(0))
        terms.append(-torch.distributions.Normal(hidden, variance.sqrt()).log_prob(teacher[n, :, y, x]))
    expected = torch.stack(terms).mean() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(loss(student, teacher), expected)


@pytest.mark.parametrize("variance", [1e-3, 0.5, 5.0, 1e4])
def test_vid_starts_at_the_variance_that_it_is_given(variance: float) -> None:
    loss = prepared(VID(variance), normal(1, 2, 3, 3), normal(1, 3, 3, 3))
    torch.testing.assert_close(
        F.softplus(loss.raw_variance) + 1e-5, torch.full((3,), variance).double(), rtol=1e-4, atol=0
    )


def test_vid_trains_its_variances_and_saves_them() -> None:
    student, teacher = normal(2, 4, 3, 5), normal(2, 6, 3, 5)
    loss = prepared(VID(), student, teacher)
    assert {"raw_variance", "regressor.0.weight", "regressor.2.weight", "regressor.4.weight"} == set(loss.state_dict())
    loss(student, teacher).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())


@pytest.mark.parametrize("value", [-1e4, -100.0, 100.0, 1e4])
def test_vid_of_extreme_variances_is_finite(value: float) -> None:
    student, teacher = torch.randn(2, 4, 3, 5, requires_grad=True), torch.randn(2, 6, 3, 5)
    loss = VID()
    loss.prepare(student, teacher)
    nn.init.constant_(loss.raw_variance, value)
    loss(student, teacher).backward()
    assert student.grad.isfinite().all()
    assert loss.raw_variance.grad.isfinite().all()


# Factor transfer


def test_the_paraphraser_has_the_layers_of_the_authors() -> None:
    x = tensors("ft")
    torch.testing.assert_close(paraphrased(x), x["aux__paraphraser_recon_l1_official__recon"])
    paraphraser = Paraphraser(6).double()
    weights = {f"encoder.{2 * i}.{kind}": x[f"param_c{i}_{kind[0]}"] for i in range(3) for kind in ("weight", "bias")}
    paraphraser.load_state_dict(weights, strict=False)
    torch.testing.assert_close(paraphraser.encode(x["x_t"]).detach(), x["aux__paraphraser_recon_l1_official__factor"])


def test_the_factors_are_flattened_whole() -> None:
    x = tensors("ft")
    value = factor_difference(x["fac_s"], x["fac_t"]).item()
    assert value == pytest.approx(x["aux_mmrazor_FTLoss"].item(), rel=1e-9)
    assert value != pytest.approx(x["out64__PITFALL_repdistiller_channelmean"].item(), rel=0.1)


def test_factor_transfer_against_a_naive_loop() -> None:
    student, teacher = normal(3, 5, 4, 7), normal(3, 8, 4, 7)
    loss = prepared(FactorTransfer(rate=0.4, reconstruction="mse", reconstruction_weight=0.3), student, teacher)
    ours, theirs = loss.translator(student), loss.paraphraser.encode(teacher)
    assert ours.shape == theirs.shape == (3, 3, 4, 7)
    terms = []
    for n in range(3):
        lengths = [sum(value**2 for value in x[n].flatten()) ** 0.5 for x in (ours, theirs)]
        both = zip(ours[n].flatten(), theirs[n].flatten(), strict=True)
        terms += [abs(a / lengths[0] - b / lengths[1]) for a, b in both]
    error = (loss.paraphraser(teacher) - teacher).square().mean()
    torch.testing.assert_close(loss(student, teacher), torch.stack(terms).mean() + 0.3 * error)


def test_the_two_terms_of_factor_transfer_train_different_layers() -> None:
    student, teacher = normal(2, 5, 3, 4).requires_grad_(), normal(2, 8, 3, 4)
    loss = prepared(FactorTransfer(reconstruction_weight=0.5), student, teacher)
    loss(student, teacher).backward()
    factors = factor_difference(loss.translator(student), loss.paraphraser.encode(teacher).detach())
    ours = [student, *loss.translator.parameters()]
    for tensor, expected in zip(ours, torch.autograd.grad(factors, ours), strict=True):
        torch.testing.assert_close(tensor.grad, expected)
    theirs = list(loss.paraphraser.parameters())
    error = 0.5 * reconstruction_error(loss.paraphraser(teacher), teacher, "l1")
    for tensor, expected in zip(theirs, torch.autograd.grad(error, theirs), strict=True):
        torch.testing.assert_close(tensor.grad, expected)


def test_a_trained_paraphraser_is_taken_as_it_is(tmp_path: Path) -> None:
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 8, 3, 4)
    fitted = fit_paraphraser([teacher] * 3)
    torch.save(fitted.state_dict(), tmp_path / "paraphraser.pth")
    loss = FactorTransfer(paraphraser=str(tmp_path / "paraphraser.pth"))
    loss.prepare(student, teacher)
    value = loss(student, teacher)
    torch.testing.assert_close(value, factor_difference(loss.translator(student), fitted.encode(teacher)))
    value.backward()
    assert all(p.grad is None and not p.requires_grad for p in loss.paraphraser.parameters())
    assert all(p.grad is not None for p in loss.translator.parameters())


@pytest.mark.parametrize("rate", [0.5, 0.25])
def test_weights_of_another_paraphraser_are_refused(tmp_path: Path, rate: float) -> None:
    path = tmp_path / "paraphraser.pth"
    torch.save(Paraphraser(6, 0.5).state_dict(), path)
    loss = FactorTransfer(rate=rate, paraphraser=str(path))
    with pytest.raises(ValueError, match=rf"FactorTransfer: .*paraphraser\.pth .*8 channels with rate {rate}"):
        loss.prepare(torch.randn(2, 5, 3, 4), torch.randn(2, 8, 3, 4))


@pytest.mark.parametrize("content", [None, b"no weights", torch.zeros(3), {"encoder": 1}], ids=repr)
def test_files_without_a_paraphraser_are_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "paraphraser.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"FactorTransfer: .*paraphraser\.pth gives no paraphraser of 8 channels"):
        FactorTransfer(paraphraser=str(path)).prepare(torch.randn(2, 5, 3, 4), torch.randn(2, 8, 3, 4))


@pytest.mark.parametrize("reconstruction", ["l1", "mse"])
def test_fitting_a_paraphraser_brings_its_error_down(reconstruction: Reconstruction) -> None:
    def batches() -> Iterator[Tensor]:
        with torch.no_grad():
            for _ in range(30):
                yield teacher

    teacher = torch.randn(4, 6, 5, 3).cumsum(dim=1).bfloat16()
    torch.manual_seed(3)
    start = Paraphraser(6)
    torch.manual_seed(3)
    fitted = fit_paraphraser(batches(), reconstruction=reconstruction, lr=0.02)
    maps = teacher.float()
    before, after = (reconstruction_error(p(maps), maps, reconstruction).item() for p in (start, fitted))
    assert after < 0.7 * before


def test_fitting_a_paraphraser_needs_maps() -> None:
    with pytest.raises(ValueError, match="no batches"):
        fit_paraphraser([])
    with pytest.raises(ValueError, match="reconstruction='l2' is none of 'l1', 'mse'"):
        fit_paraphraser([torch.randn(1, 2, 3, 3)], reconstruction="l2")  # type: ignore[arg-type]


def test_a_factor_of_zeros_gets_no_gradient_and_the_others_a_bounded_one() -> None:
    student, teacher = torch.randn(3, 4, 3, 5), torch.randn(3, 4, 3, 5)
    student[0] = 0
    student[1] *= 1e-4
    student[2] *= 1e-12
    student.requires_grad_()
    factor_difference(student, teacher).backward()
    assert (student.grad[0] == 0).all()
    assert (student.grad[2] == 0).all()
    assert 0 < student.grad.abs().max() < 100


# Activation boundaries


def test_activation_boundaries_of_the_fixture_agree_with_another_library() -> None:
    x = tensors("ab")
    value = ActivationBoundaries()([x["s1"], x["s2"], x["s3"]], [x["t1"], x["t2"], x["t3"]])
    assert value.item() == pytest.approx(x["aux_repdistiller_sum"].item(), rel=1e-9)


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_activation_boundaries_against_a_naive_loop(margin: float) -> None:
    student, teacher = 2 * normal(3, 2, 5, 3), normal(3, 2, 5, 3)
    teacher[0, 0] = 0
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if t > 0 and s <= margin:
            total += (s - margin) ** 2
        elif t <= 0 and s > -margin:
            total += (s + margin) ** 2
    assert ActivationBoundaries(margin)(student, teacher).item() == pytest.approx(0.003 * total / 3, rel=1e-9)
    mean = ActivationBoundaries(margin, "mean")(student, teacher).item()
    assert mean == pytest.approx(total / student.numel(), rel=1e-9)


@pytest.mark.parametrize(
    "loss", [ActivationBoundaries(), ActivationBoundaries(reduction="mean"), Overhaul("batch")], ids=lambda x: repr(x)
)
def test_a_list_of_layers_is_each_layer_with_half_the_weight_of_the_next(loss: Loss) -> None:
    student = [normal(2, 3, 6, 4), normal(2, 5, 3, 2), normal(2, 7, 1, 1)]
    teacher = [normal(*maps.shape) for maps in student]
    single = [loss(s, t) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(loss(student, teacher), single[0] / 4 + single[1] / 2 + single[2])


# Overhaul of feature distillation


def test_overhaul_margins_are_those_of_the_authors() -> None:
    x = tensors("ofd")
    loss = Overhaul()
    loss.read_teacher([batchnorm(x["bn_gamma"], x["bn_beta"]), batchnorm(x["bn2_gamma"], x["bn2_beta"])])
    torch.testing.assert_close(loss.margin_0, x["aux_margin1"], rtol=1e-7, atol=0)
    torch.testing.assert_close(loss.margin_1, x["aux_margin2"], rtol=1e-7, atol=0)
    assert list(loss.state_dict()) == ["margin_0", "margin_1"]
    assert not list(loss.parameters())


@pytest.mark.parametrize(
    ("gamma", "beta", "expected"),
    [
        (1.0, 0.0, -math.sqrt(2 / math.pi)),
        (-1.0, 0.0, -math.sqrt(2 / math.pi)),
        (2.0, -200.0, -200.0),
        (1.0, 2.5, 2.5 - math.exp(-3.125) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(2.5 / math.sqrt(2)))),
        (1.0, 3.2, -3.0),
        (0.5, 10.0, -1.5),
        (1e-30, 1.0, -3e-30),
        (1e-30, -1.0, -1.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0),
        (0.0, -1.5, -1.5),
    ],
)
def test_overhaul_margins_of_plain_and_of_degenerate_channels(gamma: float, beta: float, expected: float) -> None:
    margin = margin_of(batchnorm(torch.tensor([gamma]), torch.tensor([beta])), Overhaul())
    assert margin.dtype == torch.float32
    assert margin.item() == pytest.approx(expected, rel=1e-6)


def test_overhaul_margin_is_the_mean_of_the_negative_half_of_the_distribution() -> None:
    gamma, beta = 1.3, 0.7
    values = beta + gamma * normal(1_000_000)
    margin = margin_of(batchnorm(torch.tensor([gamma]), torch.tensor([beta])), Overhaul()).item()
    assert margin == pytest.approx(values[values < 0].mean().item(), rel=5e-3)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_overhaul_against_a_naive_loop(reduction: Overhaul.Reduction) -> None:
    student, teacher = normal(3, 2, 5, 3), normal(3, 2, 5, 3)
    margin = torch.tensor([-0.3, 0.0]).double()
    loss = Overhaul(reduction=reduction, divisor=10.0)
    loss.set_margins([margin])
    total = 0.0
    for n, c, y, x in itertools.product(range(3), range(2), range(5), range(3)):
        target = max(teacher[n, c, y, x].item(), margin[c].item())
        value = student[n, c, y, x].item()
        if not value <= target <= 0:
            total += (value - target) ** 2
    expected = total / 3 / 10 if reduction == "sum" else total / student.numel()
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_overhaul_by_the_batch_takes_the_mean_of_the_negative_values() -> None:
    student, teacher = normal(3, 3, 4, 2), normal(3, 3, 4, 2)
    teacher[:, 1] = teacher[:, 1].abs()
    margins = []
    for channel in range(3):
        negative = [value for value in teacher[:, channel].flatten().tolist() if value < 0]
        margins.append(sum(negative) / len(negative) if negative else 0.0)
    by_hand = Overhaul()
    by_hand.set_margins([torch.tensor(margins, dtype=torch.float64)])
    torch.testing.assert_close(Overhaul("batch")(student, teacher), by_hand(student, teacher))


def test_overhaul_without_margins_says_what_to_do() -> None:
    maps = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"tap the BatchNorm module before the ReLU.*margin='batch'"):
        Overhaul()(maps, maps)


@pytest.mark.parametrize(
    "module", [nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.LayerNorm(3)], ids=repr
)
def test_overhaul_reads_batch_normalisation_only(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"Overhaul.*not from {type(module).__name__}: tap the BatchNorm"):
        Overhaul().read_teacher([nn.BatchNorm2d(3), module])
    Overhaul("batch").read_teacher([module])


def test_overhaul_takes_the_margins_it_was_given_last() -> None:
    loss = Overhaul()
    loss.read_teacher([nn.BatchNorm2d(3), nn.BatchNorm2d(5)])
    loss.read_teacher([nn.BatchNorm2d(4)])
    assert list(loss.state_dict()) == ["margin_0"]
    with pytest.raises(ValueError, match=r"margins of 4 channels.*\(2, 3, 4, 4\)"):
        loss(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"margins of 4 channels.*\(2, 4, 4, 4\), \(2, 4, 2, 2\)"):
        loss([torch.randn(2, 4, 4, 4), torch.randn(2, 4, 2, 2)], [torch.randn(2, 4, 4, 4), torch.randn(2, 4, 2, 2)])


def test_overhaul_margins_do_not_follow_the_teacher() -> None:
    teacher = nn.BatchNorm2d(3)
    loss = Overhaul()
    loss.read_teacher([teacher])
    before = loss.margin_0.clone()
    nn.init.constant_(teacher.weight, 5.0)
    assert torch.equal(loss.margin_0, before)


# Knowledge review


def test_review_fuses_as_the_authors_do() -> None:
    x = tensors("reviewkd")
    student, teacher = ([x[f"{side}{i}"] for i in range(4)] for side in "st")
    loss = prepared(ReviewKD(), student, teacher)
    loss.load_state_dict(review_weights(x), strict=False)
    fused = loss.fused(student, [t.shape[2:] for t in teacher])
    for i, maps in enumerate(fused):
        torch.testing.assert_close(maps.detach(), x[f"aux_fused{i}"])


def test_review_takes_embeddings_as_maps_of_one_pixel() -> None:
    student, teacher = [normal(3, 4, 6, 5), normal(3, 8)], [normal(3, 5, 6, 5), normal(3, 9)]
    loss = prepared(ReviewKD(), student, teacher)
    maps = [[x[:, :, None, None] if x.ndim == 2 else x for x in side] for side in (student, teacher)]
    assert torch.equal(loss(student, teacher), loss(*maps))


@pytest.mark.parametrize("size", [(6, 5), (5, 6), (7, 3), (2, 33), (1, 8), (4, 4), (1, 1)])
def test_hierarchical_context_by_pooling(size: tuple[int, int]) -> None:
    student, teacher = normal(2, 3, *size), normal(2, 3, *size)
    terms, weights = [F.mse_loss(student, teacher)], [1.0]
    for level in (4, 2, 1):
        if level < size[0] and level < size[1]:
            pooled = [F.adaptive_avg_pool2d(x, (level, level)) for x in (student, teacher)]
            terms.append(F.mse_loss(*pooled))
            weights.append(weights[-1] / 2)
    expected = sum(w * t for w, t in zip(weights, terms, strict=True)) / sum(weights)
    loss = ReviewKD()
    torch.testing.assert_close(loss.hierarchical(student, teacher), expected)
    turned = loss.hierarchical(student.transpose(2, 3), teacher.transpose(2, 3))
    torch.testing.assert_close(turned, loss.hierarchical(student, teacher))


def test_averages_made_in_inference_mode_serve_in_training() -> None:
    maps = torch.randn(1, 2, 13, 11)
    with torch.inference_mode():
        averaged(maps, 3)
    maps.requires_grad_()
    value = averaged(maps, 3)
    torch.testing.assert_close(value, F.adaptive_avg_pool2d(maps, 3))
    value.square().sum().backward()


def test_review_brings_the_student_to_the_sizes_of_the_teacher() -> None:
    student = [normal(2, 4, 9, 7), normal(2, 6, 5, 4)]
    teacher = [normal(2, 5, 6, 12), normal(2, 7, 3, 3)]
    loss = prepared(ReviewKD(mid_channels=3), student, teacher)
    fused = loss.fused(student, [t.shape[2:] for t in teacher])
    assert [maps.shape for maps in fused] == [t.shape for t in teacher]
    assert loss.fusions[0].project[0].out_channels == 3
    assert loss(student, teacher).isfinite()


def test_a_deep_map_is_trained_by_the_shallow_one() -> None:
    student = [normal(2, 4, 6, 4), normal(2, 6, 3, 2).requires_grad_()]
    teacher = [normal(2, 5, 6, 4), normal(2, 7, 3, 2)]
    loss = prepared(ReviewKD(), student, teacher)
    fused = loss.fused(student, [t.shape[2:] for t in teacher])
    loss.hierarchical(fused[0], teacher[0]).backward()
    assert student[1].grad.abs().max() > 0


def test_the_middle_of_the_review_is_at_most_512_wide() -> None:
    for channels, expected in ((600, 512), (9, 9)):
        loss = ReviewKD()
        loss.prepare([torch.zeros(1, 2, 3, 3), torch.zeros(1, channels)], [torch.zeros(1, 2, 3, 3), torch.zeros(1, 3)])
        assert loss.fusions[0].project[0].out_channels == expected


def test_review_of_one_sample_works_where_maps_have_pixels() -> None:
    student, teacher = [torch.randn(1, 4, 6, 4)] * 2, [torch.randn(1, 5, 6, 4)] * 2
    loss = ReviewKD()
    loss.prepare(student, teacher)
    assert loss(student, teacher).isfinite()
    student[1], teacher[1] = torch.randn(1, 4), torch.randn(1, 5)
    with pytest.raises(ValueError, match=r"ReviewKD.*\(1, 4, 1, 1\).*a batch of at least 2"):
        loss(student, teacher)
    assert loss.eval()(student, teacher).isfinite()


# Masked generative distillation


@pytest.mark.parametrize(
    ("loss", "shape", "share"),
    [
        (MGD(), (8, 1, 60, 50), 0.65),
        (MGD(ratio=0.75), (8, 1, 60, 50), 0.75),
        (MGD("channel"), (8, 3000, 1, 1), 0.15),
        (MGD("channel", ratio=0.0), (8, 3000, 1, 1), 0.0),
        (MGD(ratio=0.0), (8, 1, 60, 50), 0.0),
    ],
)
def test_masks_hide_the_share_they_are_told(loss: MGD, shape: tuple[int, ...], share: float) -> None:
    maps = torch.zeros(8, 3000 if loss.mask == "channel" else 2, 60, 50)
    drawn = loss.draw(maps)
    kept = loss.kept(drawn)
    assert drawn.shape == shape
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert 1 - kept.mean().item() == pytest.approx(share, abs=0.01)


def test_masks_of_the_fixture() -> None:
    x = tensors("mgd")
    assert torch.equal(MGD().kept(x["rand_spatial"]) == 0, x["rand_spatial"] > 1 - 0.65)
    assert torch.equal(MGD("channel").kept(x["rand_channel"]) == 0, x["rand_channel"] < 0.15)


def test_masked_generation_is_the_sum_of_squares_per_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = normal(3, 4, 5, 7), normal(3, 6, 5, 7)
    loss = prepared(MGD(), student, teacher)
    drawn = torch.rand(3, 1, 5, 7).double()
    monkeypatch.setattr(loss, "draw", lambda maps: drawn)
    total = 0.0
    for n in range(3):
        mask = torch.tensor([[float(v <= 0.35) for v in row] for row in drawn[n, 0].tolist()]).double()
        hidden = mask * F.conv2d(student[n], loss.align.weight, loss.align.bias)
        hidden = F.conv2d(hidden, loss.generator[0].weight, loss.generator[0].bias, padding=1).clamp_min(0)
        made = F.conv2d(hidden, loss.generator[2].weight, loss.generator[2].bias, padding=1)
        total += sum((a - b) ** 2 for a, b in zip(made.flatten().tolist(), teacher[n].flatten().tolist(), strict=True))
    assert loss(student, teacher).item() == pytest.approx(total / 3, rel=1e-9)


def test_masked_pixels_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = normal(2, 4, 5, 3).requires_grad_(), normal(2, 4, 5, 3)
    loss = prepared(MGD(), student, teacher)
    drawn = torch.rand(2, 1, 5, 3)
    monkeypatch.setattr(loss, "draw", lambda maps: drawn)
    loss(student, teacher).backward()
    hidden = (drawn > 0.35).expand_as(student)
    assert hidden.any()
    assert (student.grad[hidden] == 0).all()
    assert (student.grad[~hidden] != 0).any()


def test_masks_are_drawn_anew_and_repeat_with_the_seed() -> None:
    student, teacher = normal(2, 4, 5, 3), normal(2, 4, 5, 3)
    loss = prepared(MGD(), student, teacher)
    torch.manual_seed(4)
    values = [loss(student, teacher), loss(student, teacher)]
    assert values[0] != values[1]
    torch.manual_seed(4)
    assert loss(student, teacher) == values[0]


def test_align_is_there_only_where_the_channels_differ() -> None:
    same, other = MGD(), MGD()
    same.prepare(torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3))
    other.prepare(torch.randn(1, 4, 3, 3), torch.randn(1, 6, 3, 3))
    assert not [name for name in same.state_dict() if name.startswith("align")]
    assert other.align.weight.shape == (6, 4, 1, 1)


# All of them

MAPS = (torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5))
SIZED: list[tuple[Callable[[], Loss], tuple]] = [
    (VID, MAPS),
    (FactorTransfer, MAPS),
    (MGD, MAPS),
    (ReviewKD, ([MAPS[0], torch.randn(2, 4)], [MAPS[1], torch.randn(2, 8)])),
]


@pytest.mark.parametrize(("build", "inputs"), SIZED, ids=lambda x: getattr(x, "__name__", ""))
def test_a_loss_with_layers_needs_its_sizes_first(build: Callable[[], Loss], inputs: tuple) -> None:
    with pytest.raises(ValueError, match=rf"{build.__name__}.*prepare"):
        build()(*inputs)


@pytest.mark.parametrize(("build", "inputs"), SIZED, ids=lambda x: getattr(x, "__name__", ""))
def test_a_loss_with_layers_refuses_other_channels(build: Callable[[], Loss], inputs: tuple) -> None:
    loss = build()
    loss.prepare(*inputs)
    first, second = inputs
    other = [x[:, :1] for x in second] if isinstance(second, list) else second[:, :1]
    with pytest.raises(ValueError) as error:
        loss(first, other)
    assert build.__name__ in str(error.value)
    assert "(2, 3, 4, 5)" in str(error.value)
    assert "(2, 1, 4, 5)" in str(error.value)


@pytest.mark.parametrize(("build", "inputs"), SIZED, ids=lambda x: getattr(x, "__name__", ""))
def test_all_layers_of_a_loss_are_saved_and_train(build: Callable[[], Loss], inputs: tuple) -> None:
    losses = [build(), build()]
    for loss in losses:
        loss.prepare(*inputs)
    losses[1].load_state_dict(losses[0].state_dict())
    values = []
    for loss in losses:
        torch.manual_seed(1)
        values.append(loss(*inputs))
    assert values[0] == values[1]
    values[0].backward()
    assert list(losses[0].parameters())
    assert all(p.requires_grad and p.grad is not None for p in losses[0].parameters())
    weights = {name: torch.zeros_like(p) for name, p in losses[0].named_parameters()}
    assert functional_call(losses[0], weights, inputs) != values[0]


@pytest.mark.parametrize("build", [VID, FactorTransfer, MGD])
@pytest.mark.parametrize(
    ("first", "second"), [((2, 3, 4, 4), (2, 3, 2, 2)), ((2, 3, 4, 4), (3, 3, 4, 4)), ((2, 3), (2, 3))]
)
def test_maps_that_do_not_fit_are_named_both(
    build: Callable[[], Loss], first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError) as error:
        build().prepare(torch.randn(first), torch.randn(second))
    assert all(part in str(error.value) for part in (build.__name__, str(first), str(second)))


@pytest.mark.parametrize("loss", [ActivationBoundaries(), Overhaul("batch")], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("second", [(2, 4, 5, 5), (2, 3, 5, 4), (2, 1, 5, 5), (3, 3, 5, 5)])
def test_layers_that_do_not_fit_are_named_both(loss: Loss, second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        loss([torch.randn(2, 3, 5, 5)], [torch.randn(second)])
    assert all(part in str(error.value) for part in (type(loss).__name__, "(2, 3, 5, 5)", str(second)))


@pytest.mark.parametrize(
    "loss", [ActivationBoundaries(), Overhaul("batch"), ReviewKD()], ids=lambda x: type(x).__name__
)
def test_lists_of_different_lengths_are_refused(loss: Loss) -> None:
    maps = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=rf"{type(loss).__name__}.*has 2 maps.*the teacher 1"):
        loss.prepare([maps, maps], [maps])
        loss([maps, maps], [maps])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VID(variance=1e-6), "VID: variance"),
        (lambda: VID(eps=0.0), "VID: eps"),
        (lambda: FactorTransfer(rate=0.0), "FactorTransfer: rate"),
        (lambda: FactorTransfer(reconstruction="l2"), "FactorTransfer: reconstruction"),
        (lambda: FactorTransfer(reconstruction_weight=0.0), "FactorTransfer: reconstruction_weight"),
        (lambda: ActivationBoundaries(margin=0.0), "ActivationBoundaries: margin"),
        (lambda: ActivationBoundaries(reduction="none"), "ActivationBoundaries: reduction"),
        (lambda: Overhaul(margin="bn"), "Overhaul: margin"),
        (lambda: Overhaul(reduction="none"), "Overhaul: reduction"),
        (lambda: Overhaul(divisor=0.0), "Overhaul: divisor"),
        (lambda: ReviewKD(mid_channels=0), "ReviewKD: mid_channels"),
        (lambda: MGD(mask="pixel"), "MGD: mask"),
        (lambda: MGD(ratio=1.0), "MGD: ratio"),
        (lambda: MGD(ratio=-0.1), "MGD: ratio"),
    ],
)
def test_settings_without_meaning_are_refused(build: Callable[[], Loss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
