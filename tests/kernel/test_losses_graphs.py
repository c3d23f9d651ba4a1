"""Instance relationship graphs, relative dissimilarity and contrast with a memory: what their docstrings promise."""

import itertools
import math
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from loss_cases import read
from loss_cases.graphs import contrasted, crd
from torch import Tensor

from kd_tasks.losses import CRD, IRGEdge, IRGTransformation, IRGVertex, Loss, RelativeDissimilarity, contrast
from kd_tasks.losses.contrast import last_of_each
from kd_tasks.losses.gram import EdgeDifference
from kd_tasks.losses.relations import random_triplets


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensors(name: str) -> dict[str, Tensor]:
    """The float inputs of a fixture in double precision, the others as they are."""
    arrays = {key: torch.from_numpy(np.array(value)) for key, value in read(name).items() if value.dtype.kind in "fi"}
    return {key: value.double() if value.is_floating_point() else value for key, value in arrays.items()}


def distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().sum()


# Instance relationship graphs


def naive_edges(rows: Tensor) -> Tensor:
    table = torch.stack([torch.stack([distance(a, b) for b in rows]) for a in rows])
    return table / table.max()


@pytest.mark.parametrize(
    ("reduction", "divisor"), [("half_row_sum", lambda n: 2 * n), ("mean", lambda n: n * n), ("sum", lambda n: 1)]
)
@pytest.mark.parametrize("pool", [True, False])
def test_edges_against_a_naive_loop(pool: bool, reduction: str, divisor: Callable[[int], int]) -> None:
    student, teacher = drawn(5, 3, 4, 7).requires_grad_(), drawn(5, 6, 3, 2, seed=1)
    rows = [x.mean((2, 3)) if pool else x.flatten(1) for x in (student, teacher)]
    expected = (naive_edges(rows[0]) - naive_edges(rows[1])).square().sum() / divisor(5)
    value = IRGEdge(pool, reduction, detach_max=False)(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(v, student, retain_graph=True)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)
    assert IRGEdge(pool, reduction)(student, teacher).item() == value.item()


def test_with_the_largest_distance_constant_the_gradient_is_twice_that_of_the_authors_code() -> None:
    data = tensors("irg")
    student = data["in_feat_s"].requires_grad_()
    (gradient,) = torch.autograd.grad(IRGEdge()(student, data["in_feat_t"]), student)
    torch.testing.assert_close(gradient, 2 * data["grad_caffe_official_feat_s"], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(gradient, data["grad64_feat_s"], rtol=1e-2)


def test_gradcheck_irg_edge() -> None:
    rows, theirs = drawn(5, 3).requires_grad_(), naive_edges(drawn(5, 4, seed=1))
    assert torch.autograd.gradcheck(lambda x: EdgeDifference.apply(x, theirs, 0.7, False), rows)
    # With the largest distance constant it is the gradient of the edges over a number.
    largest = torch.cdist(rows, rows).square().max().item()

    def fixed(x: Tensor) -> Tensor:
        return 0.7 * ((x[:, None] - x[None]).square().sum(2) / largest - theirs).square().sum()

    expected = torch.autograd.grad(fixed(rows), rows)
    torch.testing.assert_close(torch.autograd.grad(EdgeDifference.apply(rows, theirs, 0.7, True), rows), expected)


@pytest.mark.parametrize("detach_max", [True, False])
def test_edges_of_equal_rows_are_none(detach_max: bool) -> None:
    rows = (1e4 + drawn(1, 37)).float().repeat(6, 1).requires_grad_()
    loss = IRGEdge(detach_max=detach_max)
    assert (loss.edges(rows) == 0).all()
    value = loss(rows, drawn(6, 5).float())
    value.backward()
    assert value > 0
    assert (rows.grad == 0).all()


def test_edges_stay_exact_far_from_the_origin() -> None:
    rows = drawn(6, 8)
    far = (rows + 1e3).float()
    torch.testing.assert_close(IRGEdge().edges(far).double(), naive_edges(far.double()), rtol=1e-4, atol=1e-6)


def test_edges_do_not_depend_on_the_size_of_the_features() -> None:
    student, teacher = drawn(4, 8), drawn(4, 8, seed=1)
    scaled = IRGEdge()(1e4 * student, 1e-3 * teacher)
    torch.testing.assert_close(scaled, IRGEdge()(student, teacher), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("reduction", "divisor"), [("half_sum", 2), ("mean", 5), ("sum", 1)])
def test_transformation_against_a_naive_loop(reduction: str, divisor: int) -> None:
    student = [drawn(5, 3, 4, 7), drawn(5, 3, 2, 3, seed=1)]
    teacher = [drawn(5, 6, 3, 2, seed=2), drawn(5, 6, 3, 2, seed=3)]

    def moves(side: list[Tensor]) -> Tensor:
        found = torch.stack([distance(a.mean((1, 2)), b.mean((1, 2))) for a, b in zip(*side, strict=True)])
        return found / found.max()

    expected = (moves(student) - moves(teacher)).square().sum() / divisor
    torch.testing.assert_close(IRGTransformation(reduction=reduction)(student, teacher), expected, rtol=1e-10, atol=0)


def test_layers_of_two_sizes_meet_at_the_smaller_one() -> None:
    first, second = drawn(3, 2, 6, 4), drawn(3, 6, 3, 2, seed=1)
    small = F.avg_pool2d(first, 2)
    narrow = torch.stack([second[:, :3].mean(1), second[:, 3:].mean(1)], dim=1)
    found = torch.stack([distance(a, b) for a, b in zip(small, narrow, strict=True)])
    loss = IRGTransformation(pool=False)
    torch.testing.assert_close(loss.moves(first, second), found / found.max(), rtol=1e-10, atol=0)
    torch.testing.assert_close(loss.moves(second, first), found / found.max(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ([(4, 3), (4, 3), (4, 3)], "student has 3"),
        ((4, 3), "student has 1"),
        ([(4, 3), (4, 5)], r"\(4, 3\) and \(4, 5\)"),
        ([(4, 3), (4, 3, 2, 2)], None),
        ([(4, 3), (5, 3)], r"\(4, 3\).*\(5, 3\)"),
    ],
)
def test_transformation_takes_two_layers_that_fit(student: Any, words: str | None) -> None:
    side = [drawn(*shape) for shape in student] if isinstance(student, list) else drawn(*student)
    teacher = [drawn(4, 6), drawn(4, 6, seed=1)]
    if words is None:
        assert IRGTransformation()(side, teacher).isfinite()
        return
    with pytest.raises(ValueError, match=words):
        IRGTransformation()(side, teacher)


def test_a_layer_that_does_not_move_has_no_gradient() -> None:
    rows = drawn(4, 3).requires_grad_()
    IRGTransformation(detach_max=False)([rows, rows.detach()], [drawn(4, 6), drawn(4, 6, seed=1)]).backward()
    assert (rows.grad == 0).all()


def test_vertices_are_the_mean_square_of_the_logits() -> None:
    student, teacher = drawn(3, 5), drawn(3, 5, seed=1)
    expected = sum(distance(a, b) for a, b in zip(student, teacher, strict=True)) / 15
    torch.testing.assert_close(IRGVertex()(student, teacher), expected, rtol=1e-12, atol=0)
    assert IRGVertex()(student[:1], teacher[:1]).isfinite()


# Relative dissimilarity


def test_the_teachers_vote_as_in_the_reference() -> None:
    data = tensors("multi_teacher_you")
    teachers = [data[f"in_feat_t{i}"] for i in (1, 2, 3)]
    loss = RelativeDissimilarity(normalise=False)
    triplets = data["in_triplets"]
    order = loss.order([loss.distances(t) for t in teachers], triplets)
    assert torch.equal(order.double(), data["aux_vote_sum"].sign())
    j_is_near = order > 0
    assert torch.equal(torch.where(j_is_near, triplets[:, 1], triplets[:, 2]), data["aux_near"])
    assert torch.equal(torch.where(j_is_near, triplets[:, 2], triplets[:, 1]), data["aux_far"])
    everything = loss.order([loss.distances(t) for t in teachers])
    assert torch.equal(everything[tuple(triplets.T)], order)


def naive_dissimilarity(student: Tensor, teachers: list[Tensor], margin: float) -> Tensor:
    """All triplets, majority of the teachers, ties dropped."""
    terms = []
    for i in range(len(student)):
        for j, k in itertools.combinations([x for x in range(len(student)) if x != i], 2):
            votes = sum(1 if distance(t[i], t[j]) < distance(t[i], t[k]) else -1 for t in teachers)
            if votes == 0:
                continue
            near, far = (j, k) if votes > 0 else (k, j)
            terms.append(F.relu(distance(student[i], student[near]) - distance(student[i], student[far]) + margin))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("teachers", [1, 2, 3])
@pytest.mark.parametrize("normalise", [True, False])
def test_dissimilarity_against_a_naive_loop(normalise: bool, teachers: int) -> None:
    student, others = drawn(6, 3, 2, 1), [drawn(6, 4 + i, seed=i + 1) for i in range(teachers)]
    given = [F.normalize(x.flatten(1)) if normalise else x.flatten(1) for x in (student, *others)]
    expected = naive_dissimilarity(given[0], given[1:], 0.3)
    loss = RelativeDissimilarity(margin=0.3, normalise=normalise)
    value = loss(student, others if teachers > 1 else others[0])
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(loss([student], others), expected, rtol=1e-9, atol=0)


def test_ties_are_dropped_or_settled_by_the_margins() -> None:
    # Rows 1 and 2 lie at 1 and 2 from row 0 for one teacher, and at 30 and 20 for the other.
    first, second = (torch.tensor(x, dtype=torch.float64)[:, None] for x in ([0.0, 1, 2], [0.0, 30, 20]))
    triplet = torch.tensor([[0, 1, 2]])
    orders = {}
    for ties in ("drop", "margin"):
        loss = RelativeDissimilarity(ties=ties, normalise=False)
        tables = [loss.distances(x) for x in (first, second)]
        orders[ties] = loss.order(tables, triplet).item()
    # Differences 3 and -500, mean distances 12 / 9 and 2800 / 9.
    assert orders == {"drop": 0, "margin": 1}
    assert 3 / (12 / 9) > 500 / (2800 / 9)


def test_without_any_order_there_is_nothing_to_learn() -> None:
    student = drawn(4, 3).requires_grad_()
    value = RelativeDissimilarity()(student, [torch.ones(4, 5, dtype=torch.float64)])
    value.backward()
    assert value == 0
    assert (student.grad == 0).all()


def test_random_triplets_are_of_three_samples_and_all_occur_alike() -> None:
    torch.manual_seed(0)
    triplets = random_triplets(4, 24000, torch.device("cpu"))
    counts = Counter(map(tuple, triplets.tolist()))
    assert set(counts) == set(itertools.permutations(range(4), 3))
    assert all(850 < count < 1150 for count in counts.values())


def test_drawn_triplets_give_the_value_of_all_in_the_mean() -> None:
    torch.manual_seed(0)
    student, teachers = drawn(5, 3), [drawn(5, 4, seed=1)]
    value = RelativeDissimilarity(triplets=20000)(student, teachers)
    torch.testing.assert_close(value, RelativeDissimilarity()(student, teachers), rtol=0.03, atol=0)


def test_unit_length_makes_the_margin_independent_of_scale() -> None:
    student, teachers = drawn(5, 3), [drawn(5, 4, seed=1)]
    scaled = RelativeDissimilarity()(1e4 * student, teachers)
    torch.testing.assert_close(scaled, RelativeDissimilarity()(student, teachers), rtol=1e-9, atol=0)
    raw = RelativeDissimilarity(normalise=False)
    assert not torch.allclose(raw(100 * student, teachers), raw(student, teachers), rtol=1e-2)


def test_raw_dissimilarity_of_large_features_is_finite() -> None:
    student = (6e4 * drawn(4, 16).tanh()).float().requires_grad_()
    value = RelativeDissimilarity(normalise=False)(student, [6e4 * drawn(4, 16, seed=1).float()])
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_dissimilarity_reads_one_tap_of_the_student() -> None:
    with pytest.raises(ValueError, match="one tap of the student, not 2"):
        RelativeDissimilarity()([drawn(4, 3), drawn(4, 3)], [drawn(4, 3)])


# Contrast with a memory


def small(**settings: Any) -> CRD:
    torch.manual_seed(0)
    loss = CRD(**{"samples": 12, "negatives": 5, "width": 4, **settings})
    loss.prepare(drawn(3, 6), drawn(3, 7))
    return loss.double()


def batch(rows: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    return drawn(rows, 6, seed=seed), drawn(rows, 7, seed=seed + 10)


def state(loss: CRD) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in loss.named_buffers()}


def test_memories_and_z_after_the_first_batch_are_those_of_the_reference() -> None:
    data = tensors("crd")
    inputs = {key.removeprefix("in_"): value for key, value in data.items() if key.startswith(("in_", "param_"))}
    loss = crd(inputs)
    loss(inputs["f_s"], inputs["f_t"], index=inputs["idx"], contrast_index=inputs["contrast_idx"])
    torch.testing.assert_close(loss.memory_v1, data["aux_memory_v1_after"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loss.memory_v2, data["aux_memory_v2_after"], rtol=1e-6, atol=1e-8)
    expected = torch.stack([data["aux_Z_v1"], data["aux_Z_v2"]])
    torch.testing.assert_close(loss.log_z.exp(), expected, rtol=1e-5, atol=0)
    value = contrasted(inputs)
    torch.testing.assert_close(value, data["out64"], rtol=1e-5, atol=0)


def published(loss: CRD, student: Tensor, teacher: Tensor, chosen: Tensor, log_z: Tensor) -> Tensor:
    """The formula element by element, on the memories as they are."""
    ours, theirs = F.normalize(loss.embed_student(student)), F.normalize(loss.embed_teacher(teacher))
    total = torch.zeros((), dtype=student.dtype)
    noise = loss.negatives / loss.samples
    for rows, memory, z in ((ours, loss.memory_v2, log_z[0]), (theirs, loss.memory_v1, log_z[1])):
        for row, places in zip(rows, chosen, strict=True):
            x = (memory[places] @ row / loss.temperature).exp() / z.exp()
            total = total - (x[0] / (x[0] + noise + 1e-7)).log()
            total = total - sum((noise / (y + noise + 1e-7)).log() for y in x[1:])
    return total / len(student)


@pytest.mark.parametrize("ratio", [12, 0], ids=["dense", "read"])
@pytest.mark.parametrize("part", [2**26, 1], ids=["whole", "parts"])
def test_gradcheck_crd_and_the_published_formula(ratio: int, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "DENSE", ratio)
    monkeypatch.setattr(contrast, "PART", part)
    loss = small()
    index = torch.tensor([4, 0, 9])
    loss(*batch(), index=index)
    loss.eval()
    chosen = torch.cat([index[:, None], torch.tensor([[1, 2, 3, 2, 8], [1, 1, 1, 1, 1], [0, 3, 5, 7, 11]])], dim=1)
    student, teacher = batch(seed=2)
    value = loss(student, teacher, index=index, contrast_index=chosen)
    expected = published(loss, student, teacher, chosen, loss.log_z)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    weights = list(loss.parameters())
    gradients = [torch.autograd.grad(v, weights) for v in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, index=index, contrast_index=chosen), student)


def test_both_embeddings_train_and_the_memories_do_not() -> None:
    loss = small()
    loss(*batch(), index=torch.arange(3)).backward()
    assert all(p.grad.abs().max() > 0 for p in loss.parameters())
    assert len(list(loss.parameters())) == 4
    assert not any(b.requires_grad for b in loss.buffers())


def test_z_is_that_of_the_first_training_batch() -> None:
    loss = small()
    index = torch.arange(3)
    loss(*batch(), index=index)
    first = loss.log_z.clone()
    loss(*batch(seed=5), index=index + 3)
    assert torch.equal(loss.log_z, first)
    assert first.abs().max() > 0


def test_eval_mode_keeps_nothing_and_takes_z_from_the_batch() -> None:
    loss = small().eval()
    before = state(loss)
    index, label = torch.arange(3), torch.tensor([0, 1, 1])
    torch.manual_seed(3)
    value = loss(*batch(), index=index, label=label)
    assert all(torch.equal(before[name], buffer) for name, buffer in loss.named_buffers())
    loss.train()
    torch.manual_seed(3)
    torch.testing.assert_close(loss(*batch(), index=index, label=label), value, rtol=1e-12, atol=0)
    assert not any(torch.equal(before[name], buffer) for name, buffer in loss.named_buffers())


def test_a_resumed_loss_goes_on_as_it_would_have() -> None:
    loss, resumed = small(), small()
    label = torch.tensor([0, 1, 1])
    loss(*batch(), index=torch.arange(3), label=label)
    resumed.load_state_dict(loss.state_dict())
    values = []
    for one in (loss, resumed):
        torch.manual_seed(4)
        values.append(one(*batch(seed=6), index=torch.arange(3) + 2, label=label))
    assert values[0] == values[1]
    assert all(torch.equal(a, b) for a, b in zip(loss.buffers(), resumed.buffers(), strict=True))


def test_only_the_rows_of_the_batch_move_and_they_have_unit_length() -> None:
    loss = small(momentum=0.3)
    before = state(loss)
    index = torch.tensor([7, 2, 11])
    student, teacher = batch()
    expected = F.normalize(0.3 * before["memory_v1"][index] + 0.7 * F.normalize(loss.embed_student(student)))
    loss(student, teacher, index=index)
    torch.testing.assert_close(loss.memory_v1[index], expected.detach(), rtol=1e-10, atol=0)
    others = [i for i in range(12) if i not in index]
    for name in ("memory_v1", "memory_v2"):
        assert torch.equal(getattr(loss, name)[others], before[name][others])


def test_of_a_sample_twice_in_a_batch_the_last_row_counts() -> None:
    assert last_of_each(torch.tensor([5, 3, 5, 3, 5, 9])).tolist() == [4, 3, 4, 3, 4, 5]
    twice, once = small(), small()
    student, teacher = batch(4)
    twice(student, teacher, index=torch.tensor([5, 3, 5, 5]))
    once(student[[1, 3]], teacher[[1, 3]], index=torch.tensor([3, 5]))
    torch.testing.assert_close(twice.memory_v1, once.memory_v1, rtol=1e-12, atol=0)
    torch.testing.assert_close(twice.memory_v2, once.memory_v2, rtol=1e-12, atol=0)


def test_negatives_are_uniform_over_other_classes_and_over_samples_not_yet_seen() -> None:
    loss = small(negatives=20000)
    loss.learn(torch.tensor([0, 1, 2, 3, 4, 5, 6]), torch.tensor([1, 0, 1, 2, 1, 0, 7]))
    chosen = loss.drawn(torch.tensor([2, 6, 9]), torch.tensor([1, 7, 0]))
    assert chosen[:, 0].tolist() == [2, 6, 9]
    # Sample 9 is new here, and of class 0; in the first row it is no negative less than any other.
    allowed = [{1, 3, 5, 6, 7, 8, 9, 10, 11}, set(range(12)) - {6}, set(range(12)) - {1, 5, 9}]
    for row, places in zip(chosen[:, 1:], allowed, strict=True):
        counts = Counter(row.tolist())
        assert set(counts) == places
        mean = 20000 / len(places)
        assert all(abs(count - mean) < 6 * math.sqrt(mean) for count in counts.values())


def test_without_labels_only_the_sample_itself_is_no_negative() -> None:
    chosen = small(negatives=5000).drawn(torch.tensor([0, 11, 6]), None)
    for row, own in zip(chosen[:, 1:], (0, 11, 6), strict=True):
        assert set(row.tolist()) == set(range(12)) - {own}


def test_classes_are_learnt_in_training_and_used_without_labels_later() -> None:
    loss = small(negatives=2000)
    loss(*batch(), index=torch.tensor([1, 5, 6]), label=torch.tensor([3, 3, 4]))
    assert loss.classes.tolist() == [-1, 3, -1, -1, -1, 3, 4, -1, -1, -1, -1, -1]
    assert set(loss.drawn(torch.tensor([5]), None)[0, 1:].tolist()) == set(range(12)) - {1, 5}


def test_labels_of_pixels_are_passed_over() -> None:
    loss = small()
    loss(*batch(), index=torch.arange(3), label=torch.zeros(3, 4, 4, dtype=torch.long))
    assert (loss.classes == -1).all()


def test_a_data_set_of_one_class_has_no_negatives() -> None:
    loss = small(samples=3)
    with pytest.raises(ValueError, match=r"CRD.*one class"):
        loss(*batch(), index=torch.arange(3), label=torch.zeros(3, dtype=torch.long))


def test_zero_embeddings_and_tiny_temperatures_are_finite() -> None:
    loss = small(temperature=1e-3).float()
    torch.nn.init.zeros_(loss.embed_student.bias)
    student, teacher = (x.float() for x in batch())
    student[1] = 0
    student.requires_grad_()
    for _ in range(3):
        value = loss(student, teacher, index=torch.arange(3))
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()
        assert (student.grad[1] == 0).all()
    assert all(buffer.isfinite().all() for buffer in loss.buffers())


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({"index": torch.tensor([0, 1, 12])}, "index runs from 0 to 12, but samples=12 allows 0 to 11"),
        ({"index": torch.tensor([-1, 1, 2])}, "index runs from -1 to 2"),
        ({"index": torch.tensor([0, 1])}, r"\(2,\).*\(3, 6\)"),
        ({"index": torch.arange(3), "label": torch.arange(2)}, r"\(2,\).*\(3,\)"),
        ({"index": torch.arange(3), "contrast_index": torch.zeros(3, 5, dtype=torch.long)}, r"\(3, 5\).*\(3, 6\)"),
        ({"index": torch.arange(3), "contrast_index": torch.full((3, 6), 12)}, "contrast_index runs from 12 to 12"),
        ({}, "needs index"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(context: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=rf"CRD.*{words}"):
        small()(*batch(), **context)


def test_contrast_needs_layers_of_the_right_widths() -> None:
    with pytest.raises(ValueError, match="CRD has no layers yet"):
        CRD(12)(*batch(), index=torch.arange(3))
    with pytest.raises(ValueError, match=r"6 and 7 features.*\(3, 7\).*\(3, 6\)"):
        small()(*reversed(batch()), index=torch.arange(3))


def rank_main(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    loss = small()
    if rank == 1:
        loss.memory_v1.uniform_()
        loss.memory_v2.uniform_()
    torch.manual_seed(rank)
    rows = slice(2 * rank, 2 * rank + 2)
    student, teacher = batch(4)
    context = {"index": torch.tensor([7, 2, 7, 4])[rows], "label": torch.tensor([0, 1, 0, 2])[rows]}
    for _ in range(2):
        loss(student[rows], teacher[rows], **context)
    loss.eval()
    if rank == 0:
        loss(student[rows], teacher[rows], **context)
    torch.save(state(loss), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_memories_of_two_ranks_are_the_same_without_gathering(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = int(server.getsockname()[1])
    torch.multiprocessing.spawn(rank_main, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["classes"].tolist() == [-1, -1, 1, -1, 2, -1, -1, 0, -1, -1, -1, -1]
    alone = small()
    for _ in range(2):
        alone(*batch(4), index=torch.tensor([7, 2, 7, 4]))
    torch.testing.assert_close(first["memory_v1"], alone.memory_v1, rtol=1e-10, atol=1e-12)


# All of them


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (IRGVertex(), ((2, 3), (2, 4))),
        (IRGEdge(), ((3, 4), (2, 4))),
        (IRGEdge(), ((3,), (3, 4))),
        (RelativeDissimilarity(), ((4, 4), (3, 4))),
        (small(), ((2, 6), (3, 7))),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Loss) else str(value),
)
def test_shapes_that_do_not_fit_are_named_both(loss: Loss, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    context = {"index": torch.arange(shapes[0][0])} if isinstance(loss, CRD) else {}
    with pytest.raises(ValueError) as error:
        loss(*(drawn(*shape) for shape in shapes), **context)
    assert all(str(shape) in str(error.value) for shape in shapes)
    assert type(loss).__name__ in str(error.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: IRGEdge(reduction="half_sum"), "IRGEdge: reduction"),
        (lambda: IRGTransformation(reduction="half_row_sum"), "IRGTransformation: reduction"),
        (lambda: RelativeDissimilarity(margin=-1.0), "RelativeDissimilarity: margin"),
        (lambda: RelativeDissimilarity(triplets=0), "RelativeDissimilarity: triplets"),
        (lambda: RelativeDissimilarity(ties="keep"), "RelativeDissimilarity: ties"),
        (lambda: CRD(1), "CRD: samples"),
        (lambda: CRD(10, width=0), "CRD: width"),
        (lambda: CRD(10, negatives=0), "CRD: negatives"),
        (lambda: CRD(10, temperature=0.0), "CRD: temperature"),
        (lambda: CRD(10, momentum=1.0), "CRD: momentum"),
    ],
)
def test_settings_without_meaning_are_refused(build: Callable[[], Loss], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()
