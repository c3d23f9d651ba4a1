"""Losses on transformers beyond their reference values: layers, masks, options, promises of the docstrings."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from loss_cases import read
from loss_cases.transformers import scores
from torch import Tensor, nn

from kd_tasks.losses import (
    Loss,
    PatientHidden,
    SoftTargets,
    TinyBERTAttention,
    TinyBERTEmbedding,
    TinyBERTHidden,
    TinyBERTPrediction,
)
from kd_tasks.losses.transformers import layer_map, patience_layers


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "student"), [("skip", 6), ("last", 6), ("skip", 3), ("last", 3)])
def test_patience_layers_are_the_published_ones(kind: str, student: int) -> None:
    expected = read("pkd_layer_maps")[f"out_{kind}_{student}layer"]
    assert patience_layers(kind, student, 12) == expected.tolist()


@pytest.mark.parametrize("kind", ["skip", "last"])
@pytest.mark.parametrize(("student", "teacher"), [(2, 2), (2, 5), (5, 12), (6, 6), (7, 24)])
def test_patience_layers_rise_and_leave_the_last_out(kind: str, student: int, teacher: int) -> None:
    layers = patience_layers(kind, student, teacher)
    assert len(layers) == student - 1
    assert all(a < b for a, b in itertools.pairwise([-1, *layers, teacher - 1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patience_layers("first", 3, 12), "kind='first'"),
        (lambda: patience_layers("skip", 1, 12), "at least 2"),
        (lambda: patience_layers("last", 4, 3), "4 and 3"),
        (lambda: layer_map(5, 12), "12 layers .* no multiple of 5"),
        (lambda: layer_map(0, 12), "no multiple of 0"),
        (lambda: layer_map(12, 6), "6 layers .* no multiple of 12"),
    ],
)
def test_layer_numbers_that_do_not_fit_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_layer_map_is_uniform() -> None:
    assert layer_map(4, 12) == ([0, 3, 6, 9, 12], [2, 5, 8, 11])
    assert layer_map(2, 2) == ([0, 1, 2], [0, 1])


def test_patient_hidden_against_a_loop() -> None:
    student, teacher = ([draw(3, length, 5, seed=seed + length) for length in (4, 6)] for seed in (1, 2))
    total = 0.0
    for layer, sample in itertools.product(range(2), range(3)):
        ours, theirs = student[layer][sample, 0].tolist(), teacher[layer][sample, 0].tolist()
        first, second = (math.sqrt(sum(x * x for x in state)) for state in (ours, theirs))
        total += sum((a / first - b / second) ** 2 for a, b in zip(ours, theirs, strict=True))
    assert PatientHidden()(student, teacher).item() == pytest.approx(total / (2 * 3 * 5), rel=1e-12)
    assert PatientHidden(reduction="sum")(student, teacher).item() == pytest.approx(total, rel=1e-12)


def test_patient_hidden_reads_the_class_token_alone() -> None:
    student, teacher = draw(2, 7, 4), draw(2, 5, 4, seed=1)
    value = PatientHidden()(student, teacher)
    student[:, 1:], teacher[:, 1:] = 9, 9
    assert PatientHidden()(student, teacher) == value
    assert PatientHidden()(student[:, 0], teacher[:, 0]) == value


def test_patient_hidden_does_not_depend_on_the_size_of_the_states_unless_raw() -> None:
    student, teacher = draw(2, 7, 4), draw(2, 5, 4, seed=1)
    assert PatientHidden()(1e4 * student, teacher).item() == pytest.approx(PatientHidden()(student, teacher).item())
    raw = PatientHidden(normalise=False)
    assert raw(3 * student, 3 * teacher).item() == pytest.approx(9 * raw(student, teacher).item())


def test_a_state_of_zeros_gets_no_gradient() -> None:
    student = draw(3, 4)
    student[1] = 0
    student.requires_grad_()
    PatientHidden()(student, draw(3, 4, seed=1)).backward()
    assert (student.grad[1] == 0).all()
    assert (student.grad[[0, 2]].abs().amax(dim=1) > 0).all()


def prepared(loss: TinyBERTHidden, student: object, teacher: object) -> TinyBERTHidden:
    torch.manual_seed(0)
    loss.prepare(student, teacher)
    return loss.double()


def test_tinybert_hidden_against_a_loop_with_one_linear_layer_for_all() -> None:
    student, teacher = [draw(2, 3, 4, seed=i) for i in range(3)], [draw(2, 3, 5, seed=i) for i in range(3, 6)]
    loss = prepared(TinyBERTHidden(), student, teacher)
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {"fit.weight": (5, 4), "fit.bias": (5,)}
    total = 0.0
    for layer, sample, token in itertools.product(range(3), range(2), range(3)):
        mapped = loss.fit.weight @ student[layer][sample, token] + loss.fit.bias
        total += ((mapped - teacher[layer][sample, token]) ** 2).sum().item() / (2 * 3 * 5)
    value = loss(student, teacher)
    assert value.item() == pytest.approx(total, rel=1e-12)
    value.backward()
    assert all(p.grad.abs().max() > 0 for p in loss.parameters())


def test_the_linear_layer_is_there_even_if_the_widths_agree_and_has_no_bias_if_told() -> None:
    loss = prepared(TinyBERTEmbedding(bias=False), draw(2, 3, 4), draw(2, 3, 4))
    assert list(loss.state_dict()) == ["fit.weight"]
    assert loss(draw(2, 3, 4), draw(2, 3, 4)) > 0


def test_tinybert_hidden_leaves_padded_tokens_out_if_told_which() -> None:
    student, teacher = [draw(2, 3, 4), draw(2, 3, 4, seed=1)], [draw(2, 3, 5, seed=2), draw(2, 3, 5, seed=3)]
    loss = prepared(TinyBERTHidden(), student, teacher)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    value = loss(student, teacher, token_mask=mask)
    by_hand = sum(
        sum((loss.fit(s[n, i]) - t[n, i]).square().mean() for n, i in ((0, 0), (0, 1), (1, 0))) / 3
        for s, t in zip(student, teacher, strict=True)
    )
    torch.testing.assert_close(value, by_hand)
    assert loss(student, teacher, token_mask=torch.ones(2, 3)) == loss(student, teacher)
    changed = [torch.where(mask[..., None] == 0, 7.0, s) for s in student]
    assert loss(changed, teacher, token_mask=mask) == value
    assert loss(changed, teacher) != loss(student, teacher)


def test_a_batch_of_padding_alone_has_loss_zero_and_a_finite_gradient() -> None:
    student = draw(2, 3, 4).requires_grad_()
    loss = prepared(TinyBERTHidden(), student, draw(2, 3, 4))
    value = loss(student, draw(2, 3, 4), token_mask=torch.zeros(2, 3))
    value.backward()
    assert value == 0
    assert (student.grad == 0).all()


def test_tinybert_attention_against_a_loop() -> None:
    student, teacher = draw(2, 2, 3, 3) * 80, draw(2, 2, 3, 3, seed=1) * 80
    assert (student <= -100).any() and (teacher <= -100).any()
    zeroed = [[x if x > -100 else 0.0 for x in side.flatten().tolist()] for side in (student, teacher)]
    expected = sum((a - b) ** 2 for a, b in zip(*zeroed, strict=True)) / 36
    assert TinyBERTAttention()(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert TinyBERTAttention()([student, teacher], [teacher, student]).item() == pytest.approx(2 * expected, rel=1e-12)


def test_padded_keys_count_as_zero_and_padded_queries_count() -> None:
    data = {
        key.removeprefix("in_"): torch.from_numpy(value).double()
        for key, value in read("tinybert_attention").items()
        if key.startswith(("in_", "param_"))
    }
    student, teacher, mask = scores(data, "s"), scores(data, "t"), data["mask"]
    assert (mask == 0).any()
    pairs = mask[:, :, None] * mask[:, None, :]
    squares = (student - teacher).square().mean(dim=1)
    left_out = TinyBERTAttention()(student, teacher, token_mask=mask)
    torch.testing.assert_close(left_out, (squares * pairs).sum() / pairs.sum())
    padded_keys_out = (squares * mask[:, None, :]).sum() / squares.numel()
    torch.testing.assert_close(TinyBERTAttention()(student, teacher), padded_keys_out)


def test_scores_masked_with_minus_infinity_are_harmless() -> None:
    student, teacher = draw(1, 2, 3, 3), draw(1, 2, 3, 3, seed=1)
    student[..., 2], teacher[..., 2] = -math.inf, -math.inf
    student.requires_grad_()
    value = TinyBERTAttention()(student, teacher)
    value.backward()
    expected = (student - teacher)[..., :2].square().sum() / 18
    torch.testing.assert_close(value, expected)
    assert student.grad.isfinite().all()


def test_tinybert_prediction_is_the_cross_entropy_over_the_number_of_classes() -> None:
    student, teacher = draw(5, 3), draw(5, 3, seed=1)
    entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(dim=1).mean()
    divergence = SoftTargets(1.0)(student, teacher)
    torch.testing.assert_close(TinyBERTPrediction()(student, teacher), (divergence + entropy) / 3)


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "message"),
    [
        (PatientHidden(), draw(2, 3, 4), draw(2, 3, 5), r"PatientHidden.*\(2, 4\).*\(2, 5\)"),
        (PatientHidden(), draw(2, 3, 4, 4), draw(2, 3, 4, 4), r"PatientHidden.*\(2, 3, 4, 4\)"),
        (PatientHidden(), [draw(2, 4)] * 2, [draw(2, 4)] * 3, "student has 2 and the teacher 3"),
        (TinyBERTAttention(), draw(2, 2, 3, 3), draw(2, 4, 3, 3), r"\(2, 2, 3, 3\).*\(2, 4, 3, 3\)"),
        (TinyBERTAttention(), draw(2, 3, 3), draw(2, 3, 3), r"TinyBERTAttention.*heads.*\(2, 3, 3\)"),
        (TinyBERTAttention(), [draw(2, 2, 3, 3)], [draw(2, 2, 3, 3)] * 2, "student has 1 and the teacher 2"),
        (TinyBERTPrediction(), draw(2, 3), draw(2, 4), r"TinyBERTPrediction.*\(2, 3\).*\(2, 4\)"),
        (TinyBERTHidden(), draw(2, 3, 4), draw(2, 3, 4), r"TinyBERTHidden.*call prepare"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_shapes(
    loss: Loss, student: object, teacher: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loss(student, teacher)


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3, 4), (2, 4, 5)), ((2, 3, 6), (2, 3, 5)), ((2, 3, 4), (2, 3, 4))]
)
def test_tokens_that_do_not_fit_the_linear_layer_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    loss = prepared(TinyBERTHidden(), draw(2, 3, 4), draw(2, 3, 5))
    with pytest.raises(ValueError) as error:
        loss(draw(*student), draw(*teacher))
    assert str(student) in str(error.value)
    assert str(teacher) in str(error.value)


def test_a_mask_of_another_shape_is_refused() -> None:
    tokens, attention = draw(2, 3, 4), draw(2, 2, 3, 3)
    for loss, given in ((prepared(TinyBERTHidden(), tokens, tokens), tokens), (TinyBERTAttention(), attention)):
        with pytest.raises(ValueError, match=r"token_mask has the shape \(2, 4\).*\(2, 3\) tokens"):
            loss(given, given, token_mask=torch.ones(2, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PatientHidden(reduction="half"), "PatientHidden: reduction"),
        (lambda: TinyBERTPrediction(0.0), "TinyBERTPrediction: temperature"),
    ],
)
def test_settings_without_meaning_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
