"""What the losses on feature maps promise beyond the contracts of all losses."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from loss_cases import read
from loss_cases.features import flow, tiny_network
from torch import Tensor, nn

from kd_tasks.losses import BYOT, FSP, SAD, GradientAttention, GradientSymmetry, Loss, NeuronSelectivity
from kd_tasks.losses.features import sensitivity


def doubles(name: str) -> dict[str, Tensor]:
    """Arrays of a fixture in double precision, `in_x` under the name `x`."""
    found = {key.removeprefix("in_"): torch.from_numpy(value) for key, value in read(name).items() if value.shape}
    return {key: value.double() if value.is_floating_point() else value for key, value in found.items()}


def random_maps(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


# Neuron selectivity

KERNELS: dict[str, tuple[Callable[[], NeuronSelectivity], Callable[[Tensor, Tensor], Tensor]]] = {
    "default": (NeuronSelectivity, lambda x, y: (x @ y) ** 2),
    "linear": (lambda: NeuronSelectivity("linear"), lambda x, y: x @ y),
    "first degree": (lambda: NeuronSelectivity(degree=1), lambda x, y: x @ y),
    "with a constant": (lambda: NeuronSelectivity(constant=0.5), lambda x, y: (x @ y + 0.5) ** 2),
    "third degree": (lambda: NeuronSelectivity(degree=3, constant=0.2), lambda x, y: (x @ y + 0.2) ** 3),
    "gaussian": (
        lambda: NeuronSelectivity("gaussian", variance=0.7),
        lambda x, y: (-(x - y).square().sum() / 1.4).exp(),
    ),
}
MANY_CHANNELS, MANY_POSITIONS = ((2, 7, 3, 1), (2, 5, 3, 1)), ((2, 3, 5, 7), (2, 4, 5, 7))


def mean_over_pairs(kernel: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    values = [kernel(x / x.norm(), y / y.norm()) for x, y in itertools.product(first.flatten(1), second.flatten(1))]
    return torch.stack(values).mean()


@pytest.mark.parametrize("teacher_term", [True, False])
@pytest.mark.parametrize("shapes", [MANY_CHANNELS, MANY_POSITIONS], ids=["many channels", "many positions"])
@pytest.mark.parametrize("name", KERNELS)
def test_neuron_selectivity_against_a_naive_loop(
    name: str, shapes: tuple[tuple[int, ...], ...], teacher_term: bool
) -> None:
    build, kernel = KERNELS[name]
    student, teacher = random_maps(*shapes)
    student.requires_grad_()
    terms = []
    for s, t in zip(student, teacher, strict=True):
        value = mean_over_pairs(kernel, s, s) - 2 * mean_over_pairs(kernel, s, t)
        terms.append(value + mean_over_pairs(kernel, t, t) if teacher_term else value)
    loss = build()
    loss.teacher_term = teacher_term
    value, expected = loss(student, teacher), torch.stack(terms).mean()
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(v, student)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients)


def test_the_gaussian_width_is_a_constant_of_each_sample() -> None:
    student, teacher = random_maps((2, 3, 5, 2), (2, 4, 5, 2))
    student.requires_grad_()
    values = []
    for s, t in zip(student, teacher, strict=True):
        pairs = itertools.product(*(F.normalize(x.detach().flatten(1)) for x in (s, t)))
        variance = torch.stack([(x - y).square().sum() for x, y in pairs]).mean().item()
        values.append(NeuronSelectivity("gaussian", variance=variance)(s[None], t[None]))
    value, expected = NeuronSelectivity("gaussian")(student, teacher), torch.stack(values).mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, student)[0] for v in (value, expected)))


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
def test_a_dead_channel_gets_no_gradient_and_the_others_a_small_one(kernel: str) -> None:
    student, teacher = (x.float() for x in random_maps((2, 3, 5, 2), (2, 4, 5, 2)))
    student[:, 1] = 0
    student.requires_grad_()
    NeuronSelectivity(kernel)(student, teacher).backward()
    assert (student.grad[:, 1] == 0).all()
    assert 0 < student.grad.abs().max() < 10


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
def test_selectivity_does_not_depend_on_the_size_of_a_channel(kernel: str) -> None:
    student, teacher = random_maps((2, 3, 5, 2), (2, 4, 5, 2))
    loss = NeuronSelectivity(kernel)
    sizes = torch.tensor([1e-3, 1.0, 6e4], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(loss(sizes * student, teacher), loss(student, teacher))


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
@pytest.mark.parametrize(("channels", "size"), [(24, (16, 16)), (64, (3, 3))])
def test_selectivity_keeps_no_product_of_every_pair_at_every_position(
    kernel: str, channels: int, size: tuple[int, int]
) -> None:
    kept: list[int] = []
    student, teacher = torch.randn(2, channels, *size, requires_grad=True), torch.randn(2, channels, *size)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        NeuronSelectivity(kernel)(student, teacher)
    assert max(kept) <= 2 * channels * max(channels, math.prod(size))


# FSP


def test_fsp_against_a_naive_loop_on_maps_that_are_not_square() -> None:
    student = random_maps((2, 3, 5, 7), (2, 4, 5, 7), (2, 2, 5, 7))
    teacher = random_maps((2, 3, 2, 3), (2, 4, 2, 3), (2, 2, 2, 3))
    means, sums = 0.0, 0.0
    for layer in range(2):
        pairs = list(itertools.product(range(2), range(student[layer].shape[1]), range(student[layer + 1].shape[1])))
        squares = [
            ((s[0][n, i] * s[1][n, j]).mean() - (t[0][n, i] * t[1][n, j]).mean()) ** 2
            for s, t in [(student[layer : layer + 2], teacher[layer : layer + 2])]
            for n, i, j in pairs
        ]
        means, sums = means + torch.stack(squares).mean(), sums + torch.stack(squares).sum() / 2
    torch.testing.assert_close(FSP()(student, teacher), means)
    torch.testing.assert_close(FSP(reduction="sum")(student, teacher), sums)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_fsp_brings_both_maps_of_a_pair_to_the_smaller_height_and_width(pooling: str) -> None:
    first, second = random_maps((2, 3, 8, 3), (2, 4, 4, 6))
    pool = F.avg_pool2d if pooling == "avg" else F.max_pool2d
    small = [pool(first, (2, 1)).flatten(2), pool(second, (1, 2)).flatten(2)]
    expected = small[0] @ small[1].transpose(1, 2) / 12
    torch.testing.assert_close(FSP(pooling).flow(first, second), expected)


def test_fsp_is_not_the_sum_of_the_lengths_of_columns() -> None:
    data = doubles("fsp")
    wrong = float(read("fsp")["out64__torchdistill_colnorm"])
    for pooling, reduction in itertools.product(("avg", "max"), ("mean", "sum")):
        assert flow(FSP(pooling, reduction), data, "q_1", "q_2").item() != pytest.approx(wrong, rel=1e-2)
    ours, theirs = (FSP("max").flows([data[f"q{side}1"], data[f"q{side}2"]])[0] for side in "st")
    assert (ours - theirs).norm(dim=1).sum().item() / len(data["qs1"]) == pytest.approx(wrong, rel=1e-9)


def test_fsp_of_features_at_the_end_of_float16_is_that_of_the_same_numbers_in_double() -> None:
    student, teacher = random_maps((2, 3, 9, 9), (2, 4, 9, 9)), random_maps((2, 3, 9, 9), (2, 4, 9, 9))
    student = [(6e4 * x.tanh()).half() for x in student]
    teacher = [(-3e4 * x.tanh()).half() for x in teacher[:1]] + [(3e4 * x.tanh()).half() for x in teacher[1:]]
    value = FSP()(student, teacher)
    expected = FSP()([x.double() for x in student], [x.double() for x in teacher])
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([(2, 3, 4, 4)], [(2, 3, 4, 4)]),
        ([(2, 3, 4, 4)] * 2, [(2, 3, 4, 4)] * 3),
    ],
)
def test_fsp_needs_as_many_maps_on_both_sides_and_two_at_least(student: list, teacher: list) -> None:
    with pytest.raises(ValueError, match=f"{len(student)} of the student and {len(teacher)} of the teacher"):
        FSP()(random_maps(*student), random_maps(*teacher))


def test_fsp_of_one_tensor_a_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"two or more maps a side.*1 of the student and 1 of the teacher"):
        FSP()(*random_maps((2, 3, 4, 4), (2, 3, 4, 4)))


def test_fsp_of_maps_of_other_batches_is_refused() -> None:
    maps = random_maps((2, 3, 4, 4), (3, 3, 4, 4))
    with pytest.raises(ValueError, match="one batch"):
        FSP()(maps, maps)


@pytest.mark.parametrize(
    "shapes", [((2, 3, 4, 4), (2, 5, 4, 4)), ((2, 3, 4, 4), (2, 3, 4)), ((2, 3, 4, 4), (4, 3, 4, 4))]
)
def test_fsp_names_both_shapes(shapes: tuple[tuple[int, ...], ...]) -> None:
    first, second = random_maps(*shapes)
    with pytest.raises(ValueError) as error:
        FSP()([first, first], [second, second])
    assert all(text in str(error.value) for text in ("FSP", *map(str, shapes)))


# SAD


@pytest.mark.parametrize("align_corners", [True, False])
def test_sad_attention_maps_are_those_of_the_fixture(align_corners: bool) -> None:
    data = doubles("sad_attention_maps")
    loss = SAD(align_corners=align_corners)
    for m in range(4):
        expected = data[f"out_map{m}_ac{int(align_corners)}"]
        torch.testing.assert_close(loss.attention(data[f"feat{m}"], (12, 20)), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("fixture", "loss"),
    [("sad_distill_loss", SAD()), ("sad_distill_thirdparty", SAD(align_corners=False, reduction="mean"))],
)
def test_sad_of_every_pair_of_blocks(fixture: str, loss: SAD) -> None:
    data = doubles(fixture)
    values = [loss(data[f"feat{m}"], data[f"feat{m + 1}"]) for m in range(3)]
    torch.testing.assert_close(torch.stack(values), data["out_pair"], rtol=1e-9, atol=0)


def test_sad_gives_the_deeper_map_no_gradient_and_would_match_the_fixture_if_it_did() -> None:
    data = doubles("sad_distill_loss")
    features = [data[f"feat{m}"].requires_grad_() for m in range(4)]
    sum(SAD()(features[m], features[m + 1]) for m in range(3)).backward()
    assert features[3].grad is None
    loss = SAD()
    whole = sum(loss.compute(features[m], features[m + 1]) for m in range(3))
    for m, gradient in enumerate(torch.autograd.grad(whole, features)):
        expected = data[f"out_grad_not_detached_feat{m}"]
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    assert not torch.allclose(features[1].grad, data["out_grad_not_detached_feat1"], rtol=1e-2)


def test_the_third_party_mean_is_the_sum_over_the_pixels() -> None:
    student, teacher = random_maps((2, 3, 6, 10), (2, 5, 3, 5))
    torch.testing.assert_close(60 * SAD(reduction="mean")(student, teacher), SAD()(student, teacher))


@pytest.mark.parametrize("map_norm", ["none", "mean", "spatial_mean", "zscore"])
def test_sad_normalises_the_resized_map_before_the_softmax(map_norm: str) -> None:
    (features,) = random_maps((2, 5, 4, 3))
    maps = F.interpolate(features.square().sum(dim=1)[:, None], (6, 7), mode="bilinear", align_corners=True)[:, 0]
    mean = maps.mean(dim=(1, 2), keepdim=True)
    normalised = {
        "none": maps,
        "mean": maps / 5,
        "spatial_mean": maps / mean,
        "zscore": (maps - mean) / maps.flatten(1).std(dim=1, correction=0)[:, None, None],
    }[map_norm]
    expected = normalised.flatten(1).softmax(dim=1).unflatten(1, (6, 7))
    torch.testing.assert_close(SAD(map_norm=map_norm).attention(features, (6, 7)), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("map_norm", ["spatial_mean", "zscore"])
def test_sad_without_the_size_of_the_features(map_norm: str) -> None:
    student, teacher = (x.float() for x in random_maps((2, 3, 6, 4), (2, 5, 3, 5)))
    loss = SAD(map_norm=map_norm)
    torch.testing.assert_close(loss(1e3 * student, 1e-3 * teacher), loss(student, teacher), rtol=1e-4, atol=1e-7)


def test_large_features_saturate_the_paper_and_not_the_zscore() -> None:
    slopes = {}
    for map_norm in ("none", "zscore"):
        student, teacher = (100 * x for x in random_maps((2, 16, 6, 4), (2, 16, 3, 2)))
        student.requires_grad_()
        SAD(map_norm=map_norm)(student, teacher).backward()
        slopes[map_norm] = (student.grad * student).abs().max().item()
    assert slopes["none"] < 1e-12
    assert slopes["zscore"] > 1e-4


# Without a norm over the pixels, a softmax of numbers like 3e8 sees the rounding of the resize.
NORMS = ["none", "mean", "spatial_mean", "zscore"]
CONSTANT_MAPS = [*itertools.product(NORMS, (0.0, 3.0)), ("spatial_mean", 1e4), ("zscore", 1e4)]


@pytest.mark.parametrize(("map_norm", "value"), CONSTANT_MAPS)
def test_a_constant_map_has_uniform_attention(map_norm: str, value: float) -> None:
    attention = SAD(map_norm=map_norm).attention(torch.full((2, 3, 4, 5), value), (8, 10))
    torch.testing.assert_close(attention, torch.full((2, 8, 10), 1 / 80), rtol=1e-2, atol=0)


def test_sad_takes_maps_of_any_size_and_refuses_other_batches() -> None:
    assert SAD()(*random_maps((2, 3, 3, 5), (2, 4, 6, 2))).isfinite()
    with pytest.raises(ValueError, match=r"SAD.*\(2, 3, 4, 4\).*\(3, 3, 4, 4\)"):
        SAD()(*random_maps((2, 3, 4, 4), (3, 3, 4, 4)))


# BYOT


def two_exits(width: int = 6, deepest: int = 6) -> tuple[list[Tensor], list[Tensor], Tensor]:
    student = random_maps((5, 4), (5, 4), (5, width), (5, width))
    return student, random_maps((5, 4), (5, deepest)), torch.tensor([0, 3, 1, 1, 2])


def prepared(loss: BYOT, student: list[Tensor], teacher: list[Tensor]) -> BYOT:
    torch.manual_seed(0)
    loss.prepare(student, teacher)
    return loss.double()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("journal", (3.0, 0.3, 0.03, True)),
        ("conference", (1.0, 0.3, 0.03, False)),
        ("luanyunteng", (3.0, 0.1, 1e-6, False)),
    ],
)
def test_each_form_of_byot_has_its_own_defaults_and_keeps_what_is_given(form: str, expected: tuple) -> None:
    loss = BYOT(form)
    assert (loss.temperature, loss.alpha, loss.beta, loss.skip_last) == expected
    given = BYOT(form, temperature=2.0, alpha=0.0, beta=0.0, skip_last=not expected[-1])
    assert (given.temperature, given.alpha, given.beta, given.skip_last) == (2.0, 0.0, 0.0, not expected[-1])


def test_byot_in_the_conference_form_by_hand() -> None:
    student, teacher, label = two_exits()
    loss = prepared(BYOT("conference", temperature=2.0, alpha=0.4, beta=0.1), student, teacher)
    assert not list(loss.parameters())
    expected = torch.zeros(())
    for logits, feature in zip(student[:2], student[2:], strict=True):
        for n in range(5):
            p, q = (teacher[0][n] / 2).softmax(0), (logits[n] / 2).softmax(0)
            kl = 4 * (p * (p / q).log()).sum()
            distance = (feature[n] - teacher[1][n]).square().sum()
            expected = expected + (0.6 * -logits[n].log_softmax(0)[label[n]] + 0.4 * kl + 0.1 * distance) / 5
    torch.testing.assert_close(loss(student, teacher, label=label), expected)


def test_the_features_terms_of_byot_by_hand() -> None:
    student, teacher, label = two_exits()
    journal = prepared(BYOT(alpha=0.0, beta=1.0, skip_last=False), student, teacher)
    plain = sum(F.cross_entropy(logits, label) for logits in student[:2])
    adapted = [layer(feature) for layer, feature in zip(journal.adapters, student[2:], strict=True)]
    expected = plain + sum((feature - teacher[1]).square().sum().sqrt() for feature in adapted)
    torch.testing.assert_close(journal(student, teacher, label=label), expected)
    masked = prepared(BYOT("luanyunteng", alpha=0.0, beta=1.0), student, teacher)
    lit = [(feature > 0) | (teacher[1] > 0) for feature in student[2:]]
    expected = plain + sum((f - teacher[1])[m].square().sum() for f, m in zip(student[2:], lit, strict=True))
    torch.testing.assert_close(masked(student, teacher, label=label), expected)


def test_byot_skips_the_feature_of_the_last_shallow_exit_and_makes_it_no_layer() -> None:
    student, teacher, label = two_exits()
    for tensor in student:
        tensor.requires_grad_()
    loss = prepared(BYOT(), student, teacher)
    assert len(loss.adapters) == 1
    loss(student, teacher, label=label).backward()
    assert student[2].grad.abs().max() > 0
    assert student[3].grad is None
    assert all(p.grad.abs().max() > 0 for p in loss.parameters())


def test_byot_layers_are_trained_saved_and_made_once() -> None:
    student, teacher, label = two_exits(width=3, deepest=6)
    loss = prepared(BYOT("conference"), student, teacher)
    assert [tuple(p.shape) for p in loss.parameters()] == [(6, 3), (6,)] * 2
    assert set(loss.state_dict()) == {f"adapters.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert loss(student, teacher, label=label).isfinite()
    loss.prepare(student, teacher)
    assert len(loss.adapters) == 2


def test_byot_averages_maps_over_their_positions() -> None:
    student, teacher, label = two_exits()
    (maps,) = random_maps((5, 6, 3, 2))
    loss = prepared(BYOT(), student, teacher)
    with_maps = loss([*student[:2], maps, student[3]], teacher, label=label)
    averaged = loss([*student[:2], maps.mean(dim=(2, 3)), student[3]], teacher, label=label)
    torch.testing.assert_close(with_maps, averaged)
    torch.testing.assert_close(
        loss(student, [teacher[0], maps], label=label), loss(student, [teacher[0], maps.mean(dim=(2, 3))], label=label)
    )


def test_byot_refuses_what_it_cannot_read() -> None:
    student, teacher, label = two_exits()
    with pytest.raises(ValueError, match="call `prepare` first"):
        BYOT()(student, teacher, label=label)
    for ours, theirs in ((student[:3], teacher), (student, teacher[:1]), ([], teacher), (student, [*teacher, label])):
        with pytest.raises(ValueError, match="BYOT reads the logits and then as many features"):
            BYOT().compute(ours, theirs, label)
    with pytest.raises(ValueError, match="BYOT needs label"):
        BYOT()(student, teacher)
    with pytest.raises(ValueError, match=r"BYOT.*\(5, 4\).*\(5, 7\)"):
        BYOT()(student, [torch.zeros(5, 7), teacher[1]], label=label)
    with pytest.raises(ValueError, match=r"BYOT.*\(5, 4, 2, 2\)"):
        maps = torch.zeros(5, 4, 2, 2)
        BYOT()([maps, student[2]], [maps, teacher[1]], label=label)
    narrow = prepared(BYOT("conference"), student, teacher)
    with pytest.raises(ValueError, match=r"BYOT.*\(5, 6\).*\(5, 8\)"):
        narrow(student, [teacher[0], torch.zeros(5, 8)], label=label)


# Gradients of the image


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 2 * 3, 5))
    return layers.double()


def picture(requires_grad: bool = True) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, 4, 5, dtype=torch.float64, requires_grad=requires_grad)


LABEL = torch.tensor([0, 4, 2])


def test_the_slopes_of_gradient_attention_are_those_of_the_fixture() -> None:
    data = doubles("at_grad")
    image = data["x"].requires_grad_()
    student, teacher = (tiny_network(data, side, image) for side in "st")
    for logits, side in ((student, "s"), (teacher, "t")):
        slope = sensitivity(logits, image, data["target"], torch.tensor(True), "logits", trained=side == "s")
        assert slope.requires_grad == (side == "s")
        torch.testing.assert_close(slope.flatten(1), data[f"aux_J_{side}"], rtol=1e-6, atol=1e-7)
    # One sample at a time, so that no other sample can have a part in it.
    lengths = [
        GradientAttention()(*(tiny_network(data, side, one) for side in "st"), image=one, label=data["target"][n, None])
        for n in range(8)
        for one in [data["x"][n, None].detach().requires_grad_()]
    ]
    torch.testing.assert_close(
        torch.stack(lengths).mean(), GradientAttention()(student, teacher, image=image, label=data["target"])
    )


@pytest.mark.parametrize("squared", [False, True])
def test_gradcheck_gradient_attention_by_the_weights_of_a_network(squared: bool) -> None:
    ours, theirs = network(), network()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.3 * torch.randn_like(weight))

    def value(*weights: Tensor) -> Tensor:
        image = picture()
        named = dict(zip(dict(ours.named_parameters()), weights, strict=True))
        student = torch.func.functional_call(ours, named, (image,))
        return GradientAttention(squared)(student, theirs(image), image=image, label=LABEL)

    assert torch.autograd.gradcheck(value, [w.detach().requires_grad_() for w in ours.parameters()])


def test_gradient_attention_trains_the_student_and_leaves_teacher_and_image_alone() -> None:
    ours, theirs, image = network(), network(), picture()
    with torch.no_grad():
        theirs[0].weight.mul_(2)
    GradientAttention()(ours(image), theirs(image), image=image, label=LABEL).backward()
    assert ours[0].weight.grad.abs().max() > 0
    assert all(weight.grad is None for weight in theirs.parameters())


def test_two_losses_on_gradients_can_share_a_teacher() -> None:
    ours, theirs, image = network(), network(), picture()
    student, teacher = ours(image), theirs(image)
    first = GradientAttention()(student, teacher, image=image, label=LABEL)
    second = GradientAttention(squared=True)(student, teacher, image=image, label=LABEL)
    (first + second).backward()


@pytest.mark.parametrize("squared", [False, True])
def test_equal_slopes_have_no_loss_and_no_gradient(squared: bool) -> None:
    ours, image = network(), picture()
    logits = ours(image)
    value = GradientAttention(squared)(logits, logits, image=image, label=LABEL)
    value.backward()
    assert value == 0
    assert all((weight.grad == 0).all() for weight in ours[:3].parameters())


def test_logits_in_half_precision_are_differentiated_too() -> None:
    ours, theirs, image = network().float(), network().float(), picture().detach().float().requires_grad_()
    with torch.no_grad():
        theirs[0].weight.mul_(2)
    values = []
    for half in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            student, teacher = ours(image), theirs(image)
            values.append(GradientAttention()(student, teacher, image=image, label=LABEL))
    assert student.dtype == values[0].dtype == torch.float32
    torch.testing.assert_close(*values, rtol=0.1, atol=0)


def test_an_image_in_half_precision_is_the_one_that_the_logits_depend_on() -> None:
    ours, theirs, image = network().bfloat16(), network().bfloat16(), picture().detach().bfloat16().requires_grad_()
    with torch.no_grad():
        theirs[0].weight.mul_(2)
    value = GradientAttention()(ours(image), theirs(image), image=image, label=LABEL)
    value.backward()
    assert value.dtype == torch.float32
    assert ours[0].weight.grad.isfinite().all()


def test_logits_that_do_not_depend_on_the_image_are_named() -> None:
    net, image, other = network(), picture(), picture()
    constant = torch.zeros(3, 5, dtype=torch.float64)
    loss = GradientAttention()
    for student, teacher, side in (
        (net(other), net(image), "student"),
        (net(image), net(other), "teacher"),
        (net(image), constant, "teacher"),
        (constant, net(image), "student"),
    ):
        with pytest.raises(ValueError, match=f"GradientAttention: the {side}'s logits do not depend on the picture"):
            loss(student, teacher, image=image, label=LABEL)
    still = picture(requires_grad=False)
    with pytest.raises(ValueError, match="requires no gradient"):
        loss(net(still), net(still), image=still, label=LABEL)
    with pytest.raises(ValueError, match="GradientAttention needs image, label"):
        loss(net(image), net(image))


def test_gradient_symmetry_is_zero_for_a_symmetric_network_and_trains_both_sides_of_another() -> None:
    net, image = network(), picture()
    loss = GradientSymmetry()

    def value() -> Tensor:
        mirrored = image.flip(-1)
        return loss([net(image), net(mirrored)], image=image, mirrored=mirrored, label=LABEL)

    first = value()
    first.backward()
    assert first > 0
    assert net[0].weight.grad.abs().max() > 0
    with torch.no_grad():
        net[0].weight.add_(net[0].weight.flip(-1).clone())
        last = net[3].weight.view(5, 4, 2, 3)
        last.add_(last.flip(-1).clone())
    assert value().item() == pytest.approx(0, abs=1e-12)


def test_gradient_symmetry_flips_the_label_of_maps_with_the_picture() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, (1, 1)).double()
    image, label = picture(), torch.randint(0, 4, (3, 4, 5))
    mirrored = image.flip(-1)
    value = GradientSymmetry()([net(image), net(mirrored)], image=image, mirrored=mirrored, label=label)
    assert value.item() == pytest.approx(0, abs=1e-12)


def test_gradient_losses_leave_ignored_pixels_out_and_resize_label_maps() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Conv2d(3, 4, 3, padding=1).double() for _ in range(2))
    image, label = picture(), torch.randint(0, 4, (3, 4, 5))
    label[0, 1, 2:] = 255
    label[2] = 255
    lengths = []
    for n in range(3):
        slopes = []
        for net in (ours, theirs):
            one = image[n : n + 1].detach().requires_grad_()
            logs = net(one).log_softmax(dim=1)
            places = itertools.product(range(4), range(5))
            terms = [logs[0, label[n, h, w], h, w] for h, w in places if label[n, h, w] != 255]
            slopes.append(torch.autograd.grad(-sum(terms, logs.sum() * 0), one)[0])
        lengths.append((slopes[0] - slopes[1]).norm())
    expected = torch.stack(lengths).mean()
    large = label.repeat_interleave(2, dim=1).repeat_interleave(3, dim=2)
    mirrored = image.flip(-1)
    for one in (label, large):
        value = GradientAttention()(ours(image), theirs(image), image=image, label=one)
        torch.testing.assert_close(value, expected)
        whole = GradientSymmetry()([ours(image), ours(mirrored)], image=image, mirrored=mirrored, label=one)
        pointwise = nn.Conv2d(3, 4, 1).double()
        nothing = GradientSymmetry()([pointwise(image), pointwise(mirrored)], image=image, mirrored=mirrored, label=one)
        assert whole > 0
        assert nothing.item() == pytest.approx(0, abs=1e-12)


def test_gradient_symmetry_refuses_what_it_cannot_read() -> None:
    net, image, mirrored = network(), picture(), picture()
    context = {"image": image, "mirrored": mirrored, "label": LABEL}
    with pytest.raises(ValueError, match="logits of two pictures, not 1 of the student"):
        GradientSymmetry()(net(image), **context)
    with pytest.raises(ValueError, match="the logits of the mirrored image do not depend"):
        GradientSymmetry()([net(image), net(image)], **context)
    with pytest.raises(ValueError, match="GradientSymmetry needs mirrored"):
        GradientSymmetry()([net(image), net(mirrored)], image=image, label=LABEL)


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (NeuronSelectivity(), ((2, 3, 4, 4), (2, 3, 2, 2))),
        (NeuronSelectivity(), ((2, 3, 4, 4), (3, 3, 4, 4))),
        (SAD(), ((2, 3, 4, 4), (2, 3, 4))),
        (GradientAttention(), ((2, 3), (2, 4))),
    ],
)
def test_both_shapes_are_named(loss: Loss, shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError) as error:
        loss(*random_maps(*shapes), image=torch.zeros(2), label=torch.zeros(2))
    assert all(text in str(error.value) for text in (type(loss).__name__, *map(str, shapes)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NeuronSelectivity("cosine"), "NeuronSelectivity: kernel"),
        (lambda: NeuronSelectivity(degree=0), "NeuronSelectivity: degree"),
        (lambda: NeuronSelectivity(degree=1.5), "NeuronSelectivity: degree"),
        (lambda: NeuronSelectivity(constant=-1.0), "NeuronSelectivity: constant"),
        (lambda: NeuronSelectivity("gaussian", variance=0.0), "NeuronSelectivity: variance"),
        (lambda: FSP("mean"), "FSP: pooling"),
        (lambda: FSP(reduction="none"), "FSP: reduction"),
        (lambda: SAD(p=0.5), "SAD: p"),
        (lambda: SAD(map_norm="z"), "SAD: map_norm"),
        (lambda: SAD(reduction="none"), "SAD: reduction"),
        (lambda: BYOT("paper"), "BYOT: form"),
        (lambda: BYOT(temperature=0.0), "BYOT: temperature"),
        (lambda: BYOT(alpha=1.5), "BYOT: alpha"),
        (lambda: BYOT(beta=-1.0), "BYOT: beta"),
    ],
)
def test_wrong_settings_are_refused(build: Callable[[], Loss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
