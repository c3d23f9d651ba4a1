"""Losses without training data beyond their reference values, and the soft labels of zero-shot distillation."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from loss_cases import read
from loss_cases.data_free import batch_norm, statistics
from torch import Tensor, nn

from kd_tasks.losses import BatchNormStatistics, DAFLActivation, DAFLEntropy, DAFLOneHot, DataImpression, data_free
from kd_tasks.losses.data_free import (
    class_similarity,
    dirichlet_concentrations,
    sample_dirichlet,
    sample_soft_labels,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_hot_against_a_loop_on_images_and_pixels() -> None:
    logits = draw(2, 3, 5, 4)
    terms = []
    for n, y, x in itertools.product(range(2), range(5), range(4)):
        row = [math.exp(z) for z in logits[n, :, y, x].tolist()]
        terms.append(-math.log(max(row) / sum(row)))
    assert DAFLOneHot()(logits).item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5, 4)])
def test_entropy_against_a_loop_in_both_forms(shape: tuple[int, ...]) -> None:
    logits = draw(*shape)
    rows = logits.movedim(1, -1).reshape(-1, 3)
    means = [sum(row.softmax(0)[k].item() for row in rows) / len(rows) for k in range(3)]
    expected = sum(p * math.log10(p) for p in means)
    assert DAFLEntropy()(logits).item() == pytest.approx(expected, rel=1e-12)
    natural = sum(p * math.log(p) for p in means) / 3
    assert DAFLEntropy("paper")(logits).item() == pytest.approx(natural, rel=1e-12)


def test_entropy_lies_between_classes_in_balance_and_one_class() -> None:
    balanced = 50 * torch.eye(4)
    assert DAFLEntropy()(balanced).item() == pytest.approx(-math.log10(4), rel=1e-6)
    assert DAFLEntropy()(balanced[[1, 1, 1]]).item() == pytest.approx(0, abs=1e-6)


def test_entropy_is_finite_and_has_a_gradient_where_a_class_never_shows() -> None:
    logits = torch.tensor([[0.0, 1.0, -1e5], [1.0, 0.5, -1e5]], requires_grad=True)
    value = DAFLEntropy()(logits)
    value.backward()
    shown = DAFLEntropy()(logits.detach()[:, :2])
    torch.testing.assert_close(value.detach(), shown)
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0


def test_activation_of_the_paper_sums_over_features() -> None:
    features = draw(3, 4, 2, 5)
    expected = -sum(abs(x) for x in features.flatten().tolist()) / 3
    assert DAFLActivation("sum")(features).item() == pytest.approx(expected, rel=1e-12)
    assert DAFLActivation()(features).item() == pytest.approx(expected / 40, rel=1e-12)


def test_the_gradient_reaches_the_picture_through_a_frozen_teacher() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).requires_grad_(False).eval()
    picture = torch.randn(2, 3, 2, 2, requires_grad=True)
    label = torch.full((2, 5), 0.2)
    logits = teacher(picture)
    for loss in (DAFLOneHot(), DAFLEntropy(), DAFLActivation()):
        assert torch.autograd.grad(loss(logits), picture, retain_graph=True)[0].abs().max() > 0
    assert torch.autograd.grad(DataImpression()(logits, soft_label=label), picture)[0].abs().max() > 0


def test_statistics_against_a_loop_over_several_layers() -> None:
    maps, layers, expected = [draw(3, 2, 4, 5), draw(3, 3, 2, 2, seed=1)], [], 0.0
    for i, x in enumerate(maps):
        known = draw(2, x.shape[1], seed=5 + i).abs()
        layers.append(batch_norm(*known))
        gaps: list[list[float]] = [[], []]
        for channel in range(x.shape[1]):
            values = x[:, channel].flatten().tolist()
            mean = sum(values) / len(values)
            gaps[0].append(mean - known[0, channel].item())
            gaps[1].append(sum((v - mean) ** 2 for v in values) / len(values) - known[1, channel].item())
        expected += sum(math.sqrt(sum(gap * gap for gap in gaps[k])) for k in range(2))
    assert statistics(*layers)(maps).item() == pytest.approx(expected, rel=1e-12)


def test_statistics_that_are_met_cost_nothing_and_have_a_finite_gradient() -> None:
    maps = torch.tensor([[[[-1.0, 1.0]]], [[[-1.0, 1.0]]]], requires_grad=True)
    value = statistics(batch_norm(torch.zeros(1), torch.ones(1)))(maps)
    value.backward()
    assert value == 0
    assert (maps.grad == 0).all()


def test_statistics_are_the_teachers_at_the_time_and_stay_out_of_the_state_dict() -> None:
    layer = batch_norm(torch.zeros(3), torch.ones(3))
    loss = statistics(layer)
    x = torch.randn(4, 3, 2, 2)
    value = loss(x)
    layer.train()(x)
    assert loss(x) == value
    assert list(loss.state_dict()) == []
    assert len(list(loss.buffers())) == 2


def test_one_sample_and_plain_features_will_do() -> None:
    layer = batch_norm(torch.zeros(3), torch.ones(3))
    assert statistics(layer)(torch.randn(1, 3, 5, 4)).isfinite()
    features = torch.randn(6, 3)
    assert statistics(layer)(features) == statistics(layer)(features[..., None, None])


def test_gathered_statistics_are_weighted_by_the_samples_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = draw(2, 3, 4, 4), draw(5, 3, 4, 4, seed=1)
    columns = other.transpose(0, 1).flatten(1)
    theirs = iter([columns.mean(dim=1)[None], columns.var(dim=1, correction=0)[None], torch.tensor([[80.0]])])
    monkeypatch.setattr(data_free, "all_gather", lambda tensor: torch.cat([tensor, next(theirs).to(tensor)]))
    layer = batch_norm(draw(3, seed=2), draw(3, seed=3).abs())
    whole = statistics(layer)(torch.cat([mine, other]))
    loss = statistics(layer)
    loss.gather = True
    torch.testing.assert_close(loss(mine), whole)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BatchNormStatistics()(draw(2, 3, 4, 4)), "statistics of 0 layers and is given 1"),
        (lambda: statistics(nn.BatchNorm2d(3))([draw(2, 3, 4, 4)] * 2), "statistics of 1 layers and is given 2"),
        (lambda: statistics(nn.BatchNorm2d(3))(draw(2, 4, 5, 5)), r"\(2, 4, 5, 5\).*3 channels"),
        (lambda: statistics(nn.Conv2d(3, 3, 1)), "Conv2d has none"),
        (lambda: statistics(nn.BatchNorm2d(3, track_running_stats=False)), "BatchNorm2d has none"),
        (lambda: statistics(), "is shown none"),
        (lambda: DataImpression()(draw(2, 3), soft_label=draw(2, 4)), r"DataImpression.*\(2, 3\).*\(2, 4\)"),
        (lambda: DataImpression()(draw(2, 3)), "DataImpression needs soft_label"),
        (lambda: DataImpression(0.0), "DataImpression: temperature"),
        (lambda: DAFLEntropy("papers"), "DAFLEntropy: form"),
        (lambda: DAFLActivation("max"), "DAFLActivation: reduction"),
        (lambda: dirichlet_concentrations(draw(2, 3)), r"\(2, 3\)"),
        (lambda: dirichlet_concentrations(draw(3, 3), (1.0, 0.0)), "scales"),
        (lambda: dirichlet_concentrations(draw(3, 3), ()), "scales"),
    ],
)
def test_what_has_no_meaning_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_data_impression_is_the_cross_entropy_with_the_drawn_label() -> None:
    logits, labels = draw(3, 4), draw(3, 4, seed=1).softmax(dim=1)
    rows = [
        -sum(y * math.log(p) for y, p in zip(label.tolist(), (row / 20).softmax(0).tolist(), strict=True))
        for row, label in zip(logits, labels, strict=True)
    ]
    assert DataImpression()(logits, soft_label=labels).item() == pytest.approx(sum(rows) / 3, rel=1e-12)


def test_class_similarity_is_the_cosine_of_the_classes_weights() -> None:
    data = read("zskd_class_similarity")
    weight = torch.from_numpy(data["in_W"]).T
    np.testing.assert_allclose(class_similarity(weight), data["out"], rtol=1e-9, atol=1e-12)
    weight = torch.cat([weight, torch.zeros_like(weight[:1])])
    assert (class_similarity(weight)[-1] == 0).all()


def test_concentrations_of_both_scales_are_the_papers() -> None:
    data = read("zskd_class_similarity")
    found = dirichlet_concentrations(torch.from_numpy(data["out"]))
    expected = [data["out_concentration_paper_beta1"], data["out_concentration_paper_beta01"]]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-9)
    from_global = dirichlet_concentrations(torch.from_numpy(data["out_global_minmax"]))
    np.testing.assert_allclose(from_global, found, rtol=1e-9)
    np.testing.assert_allclose(found[0] - 1e-4, data["out_row_minmax"], rtol=1e-9, atol=1e-15)


def test_the_scale_acts_which_it_does_not_in_the_released_code() -> None:
    data = read("zskd_class_similarity")
    (found,) = dirichlet_concentrations(torch.from_numpy(data["out"]), scales=(0.1,))
    assert np.abs(found.numpy() - data["out_concentration_code"]).max() > 0.5


def test_classes_without_difference_are_drawn_evenly() -> None:
    assert (dirichlet_concentrations(torch.ones(3, 3))[0] == 1 + 1e-4).all()


def test_drawn_labels_have_the_mean_and_variance_of_the_distribution() -> None:
    data = read("zskd_dirichlet")
    concentration = torch.from_numpy(data["in_concentration"])
    labels = sample_dirichlet(concentration.expand(40000, -1), torch.Generator().manual_seed(0))
    np.testing.assert_allclose(labels.mean(dim=0), data["out_mean"], rtol=0.05)
    np.testing.assert_allclose(labels.var(dim=0), data["out_var"], rtol=0.08)


def test_drawn_labels_have_the_density_of_the_distribution() -> None:
    """The mean log density of draws is minus the entropy; the ruler itself is held against the reference."""
    data = read("zskd_dirichlet")
    ruler = torch.distributions.Dirichlet(torch.from_numpy(data["in_concentration"]))
    np.testing.assert_allclose(ruler.log_prob(torch.from_numpy(data["in_y"])), data["out_logpdf"], rtol=1e-6)
    labels = sample_dirichlet(ruler.concentration.expand(40000, -1), torch.Generator().manual_seed(1))
    likely = ruler.log_prob(labels.clamp_min(1e-300))
    assert likely.mean().item() == pytest.approx(-ruler.entropy().item(), abs=0.05)


def test_tiny_concentrations_still_give_probabilities_for_every_class_alike() -> None:
    concentration = torch.full((3000, 3), 1e-4, dtype=torch.float64)
    labels = sample_dirichlet(concentration, torch.Generator().manual_seed(2))
    assert labels.isfinite().all()
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(3000, dtype=torch.float64))
    shares = labels.argmax(dim=1).bincount(minlength=3) / 3000
    assert (shares - 1 / 3).abs().max() < 0.04


def test_soft_labels_take_classes_and_scales_in_turn() -> None:
    similarity = class_similarity(draw(5, 7))
    labels = sample_soft_labels(similarity, 2000, generator=torch.Generator().manual_seed(0))
    assert labels.shape == (2000, 5)
    assert labels.dtype == torch.float64
    own = labels[torch.arange(2000), torch.arange(2000) % 5].view(200, 2, 5)
    concentrations = dirichlet_concentrations(similarity)
    expected = concentrations.diagonal(dim1=1, dim2=2) / concentrations.sum(dim=2)
    torch.testing.assert_close(own.mean(dim=0), expected, rtol=0, atol=0.12)
    peaks = labels.amax(dim=1).view(200, 2, 5).mean(dim=(0, 2))
    assert peaks[1] > peaks[0] + 0.1


def test_soft_labels_are_those_of_the_generator() -> None:
    similarity = class_similarity(draw(5, 7))
    first, second, third = (
        sample_soft_labels(similarity, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
