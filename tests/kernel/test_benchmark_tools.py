"""The measuring of the benchmarks: memory with known allocations, ratios with known values."""

import importlib
import io

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from tests.benchmarks import Row, __main__, geometric_mean, in_turns, memory
from tests.benchmarks import losses as formulas
from tests.benchmarks.memory import peak_bytes

KIB = 256  # float32 numbers in a KiB


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_all_that_is_held_at_once_counts():
    def call() -> list[Tensor]:
        held = [torch.empty(KIB), torch.empty(2 * KIB)]
        del held[0]
        return [*held, torch.empty(4 * KIB)]

    assert peak_bytes(call) == 6 * 1024


def test_what_was_freed_does_not_count_again():
    def call() -> None:
        for _ in range(5):
            torch.empty(3 * KIB)

    assert peak_bytes(call) == 3 * 1024


def test_views_and_inputs_are_not_memory():
    x = torch.ones(8, KIB)
    assert peak_bytes(lambda: x.T[:, None].expand(KIB, 5, 8).detach()) == 0
    assert peak_bytes(lambda: x.mul_(x)) == 0


def test_freeing_an_older_tensor_leaves_no_room_for_a_new_one():
    older = [torch.empty(16 * KIB)]
    assert peak_bytes(lambda: older.append(torch.empty(16 * KIB))) == 16 * 1024  # kept by the caller

    def call() -> Tensor:
        older.clear()
        return torch.empty(KIB)

    assert peak_bytes(call) == 1024


def test_what_autograd_saves_counts_until_the_backward_pass():
    x = torch.ones(KIB, requires_grad=True)

    def call() -> None:
        y = x.exp().sin().cos()  # three results; the first is saved in two places
        del y

    assert peak_bytes(call) == 3 * 1024


def test_a_function_of_ones_own_counts():
    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.new_zeros(10 * KIB))
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            (saved,) = ctx.saved_tensors
            return gradient + torch.cat([saved, saved]).sum()

    x = torch.ones(KIB, requires_grad=True)
    peak = peak_bytes(lambda: torch.autograd.grad(Held.apply(x).sum(), x))
    assert 30 * 1024 <= peak <= 34 * 1024


def test_memory_inside_an_operation_counts():
    x, y = torch.ones(64 * KIB), torch.zeros(64 * KIB)
    assert peak_bytes(lambda: F.mse_loss(x, y)) >= 64 * 1024  # the squares before their mean


def test_the_tensor_of_differences_is_seen():
    x = torch.randn(16, 64)
    assert peak_bytes(lambda: x[None] - x[:, None]) == 16 * 16 * 64 * 4
    assert peak_bytes(lambda: formulas.rkd_angle(x, x)) > 16 * 16 * 64 * 4


# --- Rows ------------------------------------------------------------------------------------------------------------


def test_geometric_mean_of_the_fastest_rounds():
    rows = [Row("a", [1.0, 9.0], [4.0, 5.0]), Row("b", [8.0], [2.0])]
    assert geometric_mean("both", rows).ratio == pytest.approx((1 / 4 * 4) ** 0.5)
    assert geometric_mean("the first", rows[:1], limit=0.5).kept
    assert not geometric_mean("both", rows, limit=0.5).kept


def test_values_are_shown_in_their_unit():
    rows = [
        Row("time", [0.5], [1.0]),
        Row("memory", [2.0**20], [2.0**22], 0.1, "B"),
        Row("error", [1e-6], [1e-4], 1.0, ""),
    ]
    console = Console(width=200, file=io.StringIO())
    console.print(__main__.table(rows))
    lines = [line for line in console.file.getvalue().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert [line[0] for line in cells] == ["time", "memory", "error"]
    assert [line[3:] for line in cells] == [
        ["-", "0.5000 s", "1.0000 s"],
        ["0.100", "1.00 MiB", "4.00 MiB"],
        ["1.000", "1.0e-06", "1.0e-04"],
    ]
    assert [line[1] for line in cells] == ["0.500", "0.250", "0.010"]
    assert [row.kept for row in rows] == [True, False, True]


def test_each_side_runs_once_a_round():
    calls = []
    row = in_turns("x", lambda: calls.append("ours"), lambda: calls.append("hand"), rounds=4, warm_up=0)
    assert calls == ["hand", "ours", "ours", "hand", "hand", "ours", "ours", "hand"]
    assert len(row.ours) == len(row.reference) == 4
    assert row.unit == "s"


# --- Losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", formulas.CASES, ids=lambda make: make.__name__)
def test_ours_agrees_with_the_formula_and_both_are_measured(make):
    row = formulas.agreed(make(small=True))
    assert row.unit == "B"
    assert min(row.ours) > 0
    assert min(row.reference) > 0


@pytest.mark.parametrize("factor", (1.001, 0.999))
def test_a_formula_that_differs_is_refused(factor):
    case = formulas.pair_wise_case(small=True)
    other = formulas.Case("other", case.ours, lambda s, t: factor * case.ours(s, t), case.student, case.teacher)
    with pytest.raises(ValueError, match=r"other: .* differ in their value by (1\.00e-03|9\.99e-04)"):
        formulas.agreed(other)


def test_a_gradient_that_differs_is_refused():
    case = formulas.pair_wise_case(small=True)

    def stopped(student: Tensor, teacher: Tensor) -> Tensor:
        value = case.ours(student, teacher)
        return value.detach() + 0 * student.sum()

    with pytest.raises(ValueError, match=r"other: .* differ in their gradient 1"):
        formulas.agreed(formulas.Case("other", case.ours, stopped, case.student, case.teacher))


def test_the_benchmark_of_losses_has_all_its_rows():
    rows = formulas.run(small=True)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("memory: ") for name in names) == len(formulas.CASES)
    assert [row.limit for row in rows if row.name.startswith("error: ")] == [1.0] * 4
    assert [row.name for row in rows if row.limit == 0.5] == ["geometric mean of 9 losses"]
    assert all(row.limit is not None for row in rows if row.unit != "B")


@pytest.mark.parametrize("width", (3, 7, 40))
def test_the_angles_of_one_vertex_after_the_other_are_those_of_the_formula(width):
    student, teacher = (formulas.normal(seed, 7, width).double() for seed in (1, 2))
    student[3] = student[4] + 1e-3 * student[5]
    expected = formulas.rkd_angle(student + 10, teacher).item()
    assert formulas.vertex_loss(student + 10, formulas.vertex_angles(teacher)) == pytest.approx(expected, rel=1e-9)


def test_losses_are_listed_by_their_memory_beside_their_inputs(monkeypatch):
    monkeypatch.setattr(memory.sys, "path", list(memory.sys.path))
    loss_inputs = importlib.import_module("loss_inputs")
    monkeypatch.setattr(loss_inputs, "registered", lambda: ["Hint", "PairWise", "SoftTargets"])
    rows = memory.run(shown=2)
    assert [row.name for row in rows] == ["memory / inputs: Hint", "memory / inputs: SoftTargets"]
    assert rows[0].ratio >= rows[1].ratio > 1
