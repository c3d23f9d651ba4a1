"""Moments of a training, and weights that change over it."""

import math

import pytest
from loss_cases import read

from kd_tasks.errors import UserError
from kd_tasks.schedules import Moment, Weight


@pytest.mark.parametrize(
    ("text", "iteration"),
    [("epoch 5", 500), ("epoch 2.5", 250), ("iter 1000", 1000), (" epoch  0 ", 0), ("iter 0", 0)],
)
def test_moments_in_iterations(text: str, iteration: float) -> None:
    assert Moment.parse(text, "begin").iteration(100) == iteration


@pytest.mark.parametrize("text", ["5", "epochs 5", "epoch", "epoch -1", "epoch five", "iter 1e3", "", 5, None])
def test_a_faulty_moment_says_how_to_write_one(text: object) -> None:
    with pytest.raises(UserError, match=r"model\.begin: .* is no moment.*'epoch 5' or 'iter 1000'"):
        Moment.parse(text, "model.begin")  # type: ignore[arg-type]


def test_a_number_is_constant() -> None:
    assert {Weight(2).at(iteration, 10) for iteration in (0, 1, 999)} == {2.0}
    assert Weight(0.0).at(0, 1) == 0.0


def test_linear_ramp() -> None:
    weight = Weight({"start": 1.0, "end": 3.0, "begin": "iter 10", "until": "iter 20"})
    assert [weight.at(i, 7) for i in (0, 10, 11, 15, 19, 20, 100)] == pytest.approx([1, 1, 1.2, 2, 2.8, 3, 3])


def test_the_default_ramp_is_linear_from_nothing_to_one() -> None:
    weight = Weight({"until": "epoch 2"})
    assert [weight.at(i, 10) for i in (0, 5, 10, 20, 30)] == pytest.approx([0, 0.25, 0.5, 1, 1])


def test_the_sigmoid_ramp_is_that_of_mean_teacher() -> None:
    reference = read("mean_teacher")
    weight = Weight({"until": "epoch 5", "ramp": "sigmoid"})
    found = [weight.at(round(100 * epoch), 100) for epoch in reference["aux_rampup_epochs"]]
    assert found == pytest.approx(list(reference["aux_sigmoid_rampup_len5"]), abs=1e-12)


def test_cosine_ramp() -> None:
    weight = Weight({"start": 2.0, "end": 0.0, "until": "iter 8", "ramp": "cosine"})
    expected = [1 + math.cos(math.pi * i / 8) for i in range(9)]
    assert [weight.at(i, 1) for i in range(9)] == pytest.approx(expected)


def test_step_ramp() -> None:
    weight = Weight({"start": 1.0, "end": 5.0, "begin": "iter 2", "until": "epoch 1", "ramp": "step"})
    assert [weight.at(i, 4) for i in (0, 3, 4, 9)] == [1, 1, 5, 5]


def test_epochs_are_those_of_the_training() -> None:
    weight = Weight({"start": 0.0, "end": 1.0, "begin": "epoch 1", "until": "epoch 3"})
    assert weight.at(20, 10) == pytest.approx(0.5)
    assert weight.at(20, 20) == 0.0


def test_a_ramp_of_no_length_jumps() -> None:
    weight = Weight({"start": 0.0, "end": 1.0, "begin": "iter 3", "until": "iter 3"})
    assert [weight.at(i, 1) for i in (2, 3)] == [0, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1.0", "neither a number nor dict"),
        (True, "neither a number nor dict"),
        (None, "neither a number nor dict"),
        ({"start": 1.0}, "needs 'until'"),
        ({"until": "epoch 1", "stop": 3}, "unknown 'stop'; it takes begin, end, ramp, start, until"),
        ({"until": "epoch 1", "ramp": "lin"}, r"weight\.ramp: 'lin' is none of linear, cosine, sigmoid, step"),
        ({"until": "soon"}, r"weight\.until: 'soon' is no moment"),
        ({"until": "epoch 1", "begin": "epoch 2"}, "begins at 'epoch 2', after its end 'epoch 1'"),
        ({"until": "epoch 1", "start": "much"}, r"weight\.start: 'much' is not a number"),
        ({"until": "epoch 1", "end": None}, r"weight\.end: None is not a number"),
    ],
)
def test_faulty_weights(value: object, message: str) -> None:
    with pytest.raises(UserError, match=rf"weight.*{message}" if not message.startswith("weight") else message):
        Weight(value, "weight")  # type: ignore[arg-type]
