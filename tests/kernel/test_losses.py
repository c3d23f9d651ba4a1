"""Every loss against reference values that were computed outside this project, and the contracts all losses share."""

import inspect
import itertools
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from loss_cases import FIXTURES, Case, collected, read
from loss_cases.relations import PAPER_PAIRS
from torch import Tensor, nn

from kd_tasks import losses
from kd_tasks.losses import (
    WGANGP,
    AttentionTransfer,
    ChannelWise,
    Hinge,
    Hint,
    LogitRegression,
    Loss,
    PairWise,
    PixelWise,
    SoftTargets,
)
from kd_tasks.losses.base import TAPS
from kd_tasks.losses.gather import all_gather
from kd_tasks.losses.relations import connections

CASES = [case for cases in collected("CASES") for case in cases]


def close(actual: Tensor, expected: np.ndarray, rtol: float) -> None:
    """Equal within `rtol` of the largest expected element."""
    reference = torch.from_numpy(np.asarray(expected, dtype=np.float64))
    atol = rtol * float(reference.abs().max())
    torch.testing.assert_close(actual.double(), reference, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient_match_the_reference(case: Case, dtype: torch.dtype) -> None:
    data = read(case.fixture)
    value, gradients = case.compute(data, dtype)
    expected, expected_gradients = case.expected(data, dtype)
    single = dtype == torch.float32
    close(value, expected, max(case.rtol, 2e-4 if single else 0))
    _, exact_gradients = case.expected(data, torch.float64)
    for name, reference in expected_gradients.items():
        # A bias before batch normalisation has no gradient: what is left is rounding, in single precision of the terms.
        if single and np.abs(exact_gradients[name]).max() < 1e-12:
            assert gradients.get(name, torch.zeros(1)).abs().max() < 5e-5
        elif np.abs(reference).max() < 1e-6:
            assert gradients.get(name, torch.zeros(1)).abs().max() < 1e-6
        else:
            close(gradients[name], reference, max(case.gradient_rtol, 2e-4 if single else 0))


def test_every_fixture_has_a_case_or_is_read_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("*.py"))
    tests += "".join(path.read_text() for path in (Path(__file__).parents[1] / "plugins").rglob("*.py"))
    unread = [path.stem for path in FIXTURES.glob("*.npz") if path.stem not in tests]
    assert unread == []


@pytest.mark.parametrize(
    ("fixture", "variant", "settings", "names"),
    [
        ("kd", "PITFALL_elementmean_noT2", [SoftTargets(t) for t in (1.0, 4.0, 20.0)], ("logits_s", "logits_t")),
        # Channels and rows are both six in this fixture, so the channel sum cannot be told from the row sum here.
        ("fitnets", "PITFALL_official_theano_c01b", [Hint(), Hint("half_sum")], ("fs", "ft")),
    ],
)
def test_known_wrong_conventions_are_not_ours(
    fixture: str, variant: str, settings: list[Loss], names: tuple[str, str]
) -> None:
    data = read(fixture)
    student, teacher = (torch.from_numpy(data[f"in_{name}"]).double() for name in names)
    for loss in settings:
        assert loss(student, teacher).item() != pytest.approx(float(data[f"out64__{variant}"]), rel=1e-2)


def test_hint_sums_over_channels_and_not_over_rows() -> None:
    student, teacher = torch.zeros(2, 3, 5, 7), torch.ones(2, 3, 5, 7)
    assert Hint("half_channel_sum")(student, teacher) == 1.5
    assert Hint("half_sum")(student, teacher) == 0.5 * 3 * 5 * 7


def test_pixel_wise_is_the_cross_entropy_and_mean_divides_it_by_the_batch() -> None:
    data = read("skd_pixelwise")
    student, teacher = (torch.from_numpy(data[f"in_{name}"]) for name in ("student", "teacher"))
    whole = PixelWise()(student, teacher).item()
    assert whole == pytest.approx(float(data["out_kl_t_s"] + data["out_teacher_entropy"]), rel=1e-9)
    assert PixelWise(reduction="mean")(student, teacher).item() == pytest.approx(whole / len(student), rel=1e-9)
    kl = SoftTargets(temperature=1.0)(student, teacher).item()
    assert kl == pytest.approx(float(data["out_kl_t_s_mean_over_batch"]), rel=1e-9)


@pytest.mark.parametrize("name", ["skd_pairwise_even", "skd_pairwise_odd"])
def test_pair_wise_affinities_and_the_gradient_of_the_cosine(name: str) -> None:
    data = read(name)
    student, teacher = (torch.from_numpy(data[f"in_{side}"]) for side in ("student", "teacher"))
    student.requires_grad_()
    loss = PairWise(detach_norm=False)
    close(loss.affinity(loss.nodes(student)).detach(), data["out_affinity_student"], 1e-6)
    close(loss.affinity(loss.nodes(teacher)), data["out_affinity_teacher"], 1e-6)
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    close(gradient, data["out_grad_if_norm_not_detached"], 1e-4)
    (detached_norm,) = torch.autograd.grad(PairWise()(student, teacher), student)
    assert not torch.allclose(gradient, detached_norm, rtol=1e-2)


@pytest.mark.parametrize(("fixture", "neighbours"), [("skd_pairwise_paper_full", 16), ("skd_pairwise_paper_range9", 9)])
def test_connection_range_takes_the_nearest_nodes(fixture: str, neighbours: int) -> None:
    expected = read(fixture)["in_mask"].astype(bool)
    assert np.array_equal(connections(4, 4, neighbours, torch.device("cpu")).numpy(), expected)


def test_pair_wise_against_a_naive_loop_on_a_map_that_is_not_square() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, 5).double(), torch.randn(2, 4, 7, 5).double()
    nodes = [F.avg_pool2d(x, 2, ceil_mode=True).flatten(2) for x in (student, teacher)]
    places = list(itertools.product(range(4), range(3)))
    terms = []
    for sample, i in itertools.product(range(2), range(12)):
        by_distance = sorted(
            range(12), key=lambda j: max(abs(a - b) for a, b in zip(places[i], places[j], strict=True))
        )
        for j in by_distance[:5]:
            cosines = [F.cosine_similarity(x[sample, :, i], x[sample, :, j], dim=0) for x in nodes]
            terms.append((cosines[0] - cosines[1]) ** 2)
    value = PairWise(neighbours=5, **PAPER_PAIRS)(student, teacher)
    torch.testing.assert_close(value, torch.stack(terms).mean(), rtol=1e-6, atol=0)


def test_pair_wise_takes_maps_of_other_sizes_if_the_nodes_agree() -> None:
    student, teacher = torch.randn(2, 3, 33, 65), torch.randn(2, 8, 65, 129)
    assert PairWise()(student, teacher).isfinite()
    with pytest.raises(ValueError, match=r"\(2, 3, 33, 65\).*\(17, 33\).*\(2, 8, 65, 129\).*\(33, 65\)"):
        PairWise(pool=2)(student, teacher)


def test_a_node_of_zeros_gets_no_gradient_and_leaves_the_others_alone() -> None:
    torch.manual_seed(0)
    student, teacher = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    student[:, :, :2, :2] = 0
    student.requires_grad_()
    PairWise()(student, teacher).backward()
    assert (student.grad[:, :, :2, :2] == 0).all()
    assert 0 < student.grad.abs().max() < 10


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("form", ["code", "paper"])
def test_attention_does_not_depend_on_the_size_of_the_features(form: str, p: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.rand(2, 3, 5, 4), torch.rand(2, 6, 5, 4)
    loss = AttentionTransfer(p, form)
    torch.testing.assert_close(loss(6e4 * student, 1e5 * teacher), loss(student, teacher), rtol=1e-4, atol=0)


class Scorer(nn.Module):
    """A critic whose score is the mean of the input, scaled."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, logits: Tensor) -> Tensor:
        return self.scale * logits.double().flatten(1).mean(dim=1)


class Conditional(nn.Module):
    conditional = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        return self.weight * (logits.flatten(1).mean(dim=1) + image.flatten(1).mean(dim=1))


def test_adversarial_values_match_the_reference() -> None:
    data = read("skd_adversarial")
    student = torch.from_numpy(data["in_score_student"]).requires_grad_()
    teacher = torch.from_numpy(data["in_score_teacher"])
    wasserstein = WGANGP(Scorer(), gradient_penalty=0.0)
    close(wasserstein.critic_loss(student, teacher).detach(), data["out"], 1e-9)
    close(Hinge(Scorer()).critic_loss(student, teacher).detach(), data["out_hinge"], 1e-9)
    for loss in (wasserstein, Hinge(Scorer())):
        value = loss(student, teacher)
        close(value.detach(), data["out_student_g"], 1e-9)
        (gradient,) = torch.autograd.grad(value, student)
        close(gradient, -data["grad_score_student"], 1e-9)


@pytest.mark.parametrize("loss", [WGANGP(Scorer(2.0)), Hinge(Scorer(2.0))], ids=["WGANGP", "Hinge"])
def test_each_side_of_an_adversarial_loss_trains_only_its_own_side(loss: losses.AdversarialLoss) -> None:
    student, teacher = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    value = loss(student, teacher)
    assert all(p.requires_grad for p in loss.parameters())
    value.backward()
    assert loss.critic.scale.grad is None
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, torch.full((3, 2), -2.0 / 6))
    student.grad = None
    loss.critic_loss(student, teacher).backward()
    assert loss.critic.scale.grad is not None
    assert student.grad is None
    assert teacher.grad is None
    loss.critic.scale.grad = None


def test_gradient_penalty_of_a_linear_critic() -> None:
    # The gradient of `2 * mean of 6 numbers` is 1/3 each: length sqrt(6) / 3 in every sample.
    loss = WGANGP(Scorer(2.0), gradient_penalty=10.0)
    length = 6**0.5 / 3
    penalty = loss.penalty(torch.zeros(4, 6), torch.randn(4, 6))
    assert penalty.item() == pytest.approx(10 * (length - 1) ** 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(penalty, loss.critic.scale)
    assert gradient.item() == pytest.approx(10 * 2 * (length - 1) * length / 2, rel=1e-5)


def test_gradient_penalty_is_finite_for_a_critic_without_slope() -> None:
    loss = WGANGP(Scorer(0.0))
    penalty = loss.penalty(torch.zeros(4, 6), torch.randn(4, 6))
    (gradient,) = torch.autograd.grad(penalty, loss.critic.scale)
    assert penalty.item() == pytest.approx(10.0)
    assert gradient.isfinite()


@pytest.mark.parametrize("loss", [WGANGP(Conditional()), Hinge(Conditional())], ids=["WGANGP", "Hinge"])
def test_a_conditional_critic_sees_the_image(loss: losses.AdversarialLoss) -> None:
    student, teacher, image = torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3, 4, 4)
    assert loss(student, teacher, image=image).item() == -1
    assert loss.critic_loss(student, teacher, image=image).isfinite()
    with pytest.raises(ValueError, match="image"):
        loss(student, teacher)


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (SoftTargets(), ((2, 3), (2, 4))),
        (LogitRegression(), ((2, 3), (2, 4))),
        (PixelWise(), ((2, 3, 4, 4), (2, 3, 5, 5))),
        (PixelWise(), ((2, 3, 4, 4), (2, 5, 4, 4))),
        (PixelWise(), ((2, 3), (2, 3))),
        (Hint(), ((2, 3, 4, 4), (2, 6, 4, 4))),
        (AttentionTransfer(), ((2, 3, 4, 4), (2, 3, 2, 2))),
        (ChannelWise(), ((2, 3, 4, 4), (2, 4, 4, 4))),
        (PairWise(), ((2, 3, 4, 4), (3, 3, 4, 4))),
        (PairWise(pool=4), ((2, 3, 4, 5), (2, 3, 4, 4))),
        (WGANGP(Scorer()), ((2, 3, 4, 4), (2, 4, 4, 4))),
        (Hinge(Scorer()), ((2, 3, 4, 4), (2, 4, 4, 4))),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Loss) else str(value),
)
def test_shapes_that_do_not_fit_are_named_both(loss: Loss, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError) as error:
        loss(*(torch.randn(shape) for shape in shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)
    assert type(loss).__name__ in str(error.value)


def test_a_hint_of_another_shape_points_to_a_connector() -> None:
    with pytest.raises(ValueError, match="connector"):
        Hint()(torch.randn(2, 3, 4, 4), torch.randn(2, 6, 4, 4))


def test_maps_of_a_single_node_are_refused() -> None:
    with pytest.raises(ValueError, match="only one node"):
        PairWise()(torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1))


@pytest.mark.parametrize(
    "build",
    [
        lambda: SoftTargets(temperature=0),
        lambda: PixelWise(temperature=-1),
        lambda: ChannelWise(temperature=0),
        lambda: PixelWise(reduction="sum"),
        lambda: LogitRegression(reduction="sum"),
        lambda: Hint(reduction="sum"),
        lambda: AttentionTransfer(form="papers"),
        lambda: AttentionTransfer(p=0.5),
        lambda: PairWise(pooling="mean"),
        lambda: PairWise(scale=1.0),
        lambda: PairWise(pool=0),
        lambda: PairWise(neighbours=0),
        lambda: WGANGP(Scorer(), gradient_penalty=-1.0),
    ],
)
def test_settings_without_meaning_are_refused(build: Callable[[], Loss]) -> None:
    with pytest.raises(ValueError, match=r"must|is none of|not"):
        build()


class Weighted(Loss):
    def compute(self, student: Tensor, teacher: Tensor, weights: Tensor, scale: float = 1.0) -> Tensor:
        assert student.dtype == teacher.dtype == weights.dtype == torch.float32
        return scale * (weights * (student - teacher)).sum()


def test_context_is_passed_by_name_in_full_precision() -> None:
    half = torch.ones(2, dtype=torch.bfloat16)
    loss = Weighted()
    assert loss.context_names() == {"weights": True, "scale": False}
    assert loss(2 * half, half, weights=half, unrelated="ignored") == 2
    assert loss(2 * half, half, weights=half, scale=3.0) == 6
    with pytest.raises(ValueError, match="Weighted needs weights"):
        loss(half, half)


CONCRETE = [getattr(losses, name) for name in losses.__all__ if not inspect.isabstract(getattr(losses, name))]


@pytest.mark.parametrize("cls", CONCRETE, ids=lambda cls: cls.__name__)
def test_every_loss_says_where_it_comes_from_and_what_it_reads(cls: type[Loss]) -> None:
    assert cls.paper
    assert 2010 <= cls.year <= 2030
    assert cls.taps in TAPS
    assert cls.usual_weight > 0
    assert cls.usual_tap
    assert "`" in inspect.getdoc(cls).split("\n\n")[1], "the second paragraph gives the formula"
    assert "*Deviations*" in inspect.getdoc(cls)


def test_importing_the_losses_needs_torch_alone() -> None:
    code = (
        "import sys, kd_tasks.losses;"
        "print([m for m in ('mmengine', 'torchvision', 'albumentations', 'kd_tasks.registry') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def relational(embeddings: Tensor) -> Tensor:
    """A loss that compares samples with samples, so that it depends on the whole batch at once."""
    rows = F.normalize(embeddings, dim=1)
    return F.cross_entropy(rows @ rows.T / 0.1, torch.arange(len(rows)).roll(1))


def two_ranks(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = nn.parallel.DistributedDataParallel(nn.Linear(5, 4).double())
    inputs = torch.randn(6, 5, dtype=torch.float64)[3 * rank : 3 * rank + 3]
    loss = relational(all_gather(network(inputs)))
    loss.backward()
    try:
        all_gather(torch.zeros(2 + rank, 4))
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    result = {"loss": loss.detach(), "gradient": network.module.weight.grad, "refusal": refusal}
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_two_processes_have_the_loss_and_gradient_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(two_ranks, args=(free_port(), str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    network = nn.Linear(5, 4).double()
    loss = relational(network(torch.randn(6, 5, dtype=torch.float64)))
    loss.backward()
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(result["loss"], loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(result["gradient"], network.weight.grad, rtol=1e-10, atol=1e-14)
        assert "2 rows with 8 elements, 3 rows with 12 elements" in result["refusal"]


def test_gathering_in_one_process_changes_nothing() -> None:
    tensor = torch.randn(3, 4)
    assert all_gather(tensor) is tensor
