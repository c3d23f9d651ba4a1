"""The critic of structured distillation against the values of the authors' code, and beyond the sizes that it knows."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kd_segmentation.losses import HolisticCritic, SelfAttention, SpectralConv2d
from torch import Tensor

from kd_tasks.losses import WGANGP, Hinge

FIXTURES = Path(__file__).parents[1] / "fixtures" / "losses"


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def our_name(official: str) -> str:
    """The name in `HolisticCritic` of a parameter of the authors' discriminator at 65 x 65."""
    part, _, rest = official.partition(".")
    rest = rest.removeprefix("0.").removeprefix("module.")
    if part == "preprocess_additional":
        return f"norm.{rest}"
    if part == "last":
        return f"last.{rest}"
    if part.startswith("attn"):
        return f"stages.{int(part[-1]) + 1}.attention.{rest.replace('_conv', '')}"
    short = {"weight_bar": "weight", "weight_u": "u", "weight_v": "v"}
    return f"stages.{int(part[-1]) - 1}.conv.{short.get(rest, rest)}"


def official_critic(data: dict[str, np.ndarray], logits: Tensor) -> HolisticCritic:
    critic = HolisticCritic(width=8)
    critic.prepare(logits, logits)
    weights = {
        our_name(k.removeprefix("param_")): torch.from_numpy(v) for k, v in data.items() if k.startswith("param_")
    }
    critic.double().load_state_dict(weights)
    return critic


def close(actual: Tensor, expected: np.ndarray, rtol: float = 1e-6) -> None:
    reference = torch.from_numpy(expected)
    torch.testing.assert_close(
        actual.detach(), reference, rtol=rtol, atol=max(rtol * float(reference.abs().max()), 1e-12)
    )


def test_critic_equals_the_authors_discriminator() -> None:
    data = read("skd_discriminator")
    logits = torch.from_numpy(data["in_x"]).requires_grad_()
    critic = official_critic(data, logits)
    attention: list[Tensor] = []
    for module in critic.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda m, inputs, _: attention.append(m.weights(*inputs)))
    scores = critic(logits)
    scores.sum().backward()
    close(scores, data["out"].reshape(2))
    close(logits.grad, data["grad_x"])
    close(attention[0], data["out_attn1"])
    close(attention[1], data["out_attn2"])
    first = critic.stages[0].conv
    close(first.u, data["out_u_after"])
    close(first.v, data["out_v_after"])


def test_gradient_penalty_and_its_gradients_equal_the_authors() -> None:
    data = read("skd_gradient_penalty")
    student, teacher, alpha = (torch.from_numpy(data[f"in_{name}"]) for name in ("student", "teacher", "alpha"))
    loss = WGANGP(official_critic(data, student), gradient_penalty=10.0)
    penalty = loss.penalty(student, teacher, alpha=alpha)
    penalty.backward()
    close(penalty, data["out"])
    ours = dict(loss.critic.named_parameters())
    given = {k.removeprefix("grad_"): v for k, v in data.items() if k.startswith("grad_")}
    for name, expected in given.items():
        close(ours[our_name(name)].grad, expected)
    norms = json.loads(str(data["hp"]))["grad_norms"]
    assert len(norms) == len([p for p in ours.values() if p.grad is not None])
    for name, norm in norms.items():
        assert ours[our_name(name)].grad.norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("size", "depth"), [(65, 4), (64, 4), (33, 3), (17, 2), (9, 1), (4, 1), (1, 1), (129, 5)])
def test_depth_follows_the_size_and_attention_the_last_two_stages(size: int, depth: int) -> None:
    critic = HolisticCritic(width=2)
    critic.prepare(torch.zeros(2, 3, size, size), torch.zeros(2, 3, size, size))
    assert len(critic.stages) == depth
    attends = [isinstance(stage.attention, SelfAttention) for stage in critic.stages]
    assert attends == [False] * (depth - 2) + [True] * min(depth, 2)
    assert [stage.conv.out_channels for stage in critic.stages] == [2, 4, 8, 16, 16][:depth]


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("size", [(17, 33), (5, 3), (2, 1), (1, 2), (40, 9)])
def test_any_size_is_scored_and_differentiated(size: tuple[int, int], conditional: bool) -> None:
    torch.manual_seed(0)
    student, teacher, image = torch.randn(2, 3, *size), torch.randn(2, 3, *size), torch.randn(2, 3, 24, 40)
    for loss in (WGANGP(HolisticCritic(4, conditional)), Hinge(HolisticCritic(4, conditional))):
        loss.prepare(student, teacher, image=image)
        assert loss.critic(student, image).shape == (2,)
        value = loss(student.requires_grad_(), teacher, image=image)
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0
        assert all(p.grad is None for p in loss.parameters())
        loss.critic_loss(student, teacher, image=image).backward()
        assert all(p.grad.isfinite().all() for p in loss.parameters() if p.grad is not None)


def test_a_prepared_critic_scores_other_sizes() -> None:
    critic = HolisticCritic(width=2)
    critic.prepare(torch.zeros(2, 3, 17, 17), torch.zeros(2, 3, 17, 17))
    for size in ((17, 33), (65, 65), (5, 5), (1, 2)):
        assert critic(torch.randn(2, 3, *size)).shape == (2,)


def test_conditional_critic_depends_on_the_image() -> None:
    torch.manual_seed(0)
    logits, image = torch.randn(2, 3, 9, 9), torch.randn(2, 3, 36, 36)
    critic = HolisticCritic(width=4, conditional=True)
    critic.prepare(logits, logits, image)
    critic.eval()
    assert not torch.allclose(critic(logits, image), critic(logits, -image))


def test_misuse_is_explained() -> None:
    logits = torch.randn(2, 3, 9, 9)
    with pytest.raises(ValueError, match="call prepare"):
        HolisticCritic()(logits)
    with pytest.raises(ValueError, match="needs the image"):
        HolisticCritic(conditional=True).prepare(logits, logits)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        HolisticCritic().prepare(logits[..., 0, 0], logits[..., 0, 0])
    single = HolisticCritic(width=2)
    single.prepare(logits[..., :1, :1], logits[..., :1, :1])
    with pytest.raises(ValueError, match="more than 1 value"):
        single(logits[:1, :, :1, :1])
    with pytest.raises(ValueError, match="width"):
        HolisticCritic(width=0)


def test_power_iteration_finds_the_largest_singular_value_and_rests_in_eval_mode() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(3, 8, kernel_size=4, stride=2, padding=1)
    inputs = torch.randn(1, 3, 8, 8)
    for _ in range(100):
        conv(inputs)
    largest = torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)
    expected = torch.nn.functional.conv2d(inputs, conv.weight / largest, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(inputs), expected, rtol=1e-4, atol=1e-5)
    conv = SpectralConv2d(3, 8, kernel_size=4, stride=2, padding=1).eval()
    before = {name: buffer.clone() for name, buffer in conv.named_buffers()}
    conv(inputs)
    assert set(before) == {"u", "v"}
    assert all(torch.equal(before[name], buffer) for name, buffer in conv.named_buffers())
    assert {"u", "v"} <= set(conv.state_dict())


def test_several_forward_passes_before_one_backward_pass() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 17, 17, dtype=torch.float64)
    critic = HolisticCritic(width=2)
    critic.prepare(logits, logits)
    critic.double()
    apart = copy.deepcopy(critic)
    (critic(logits) - 2 * critic(logits.flip(0)) + critic(2 * logits).square()).sum().backward()
    for score in (lambda: apart(logits), lambda: -2 * apart(logits.flip(0)), lambda: apart(2 * logits).square()):
        score().sum().backward()
    for together, alone in zip(critic.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(together.grad, alone.grad, rtol=1e-9, atol=1e-12)


def test_a_forward_pass_in_training_mode_leaves_the_graph_of_one_in_eval_mode_intact() -> None:
    conv = SpectralConv2d(2, 3, kernel_size=4, stride=2, padding=1).eval()
    inputs = torch.randn(1, 2, 8, 8)
    still = conv(inputs).sum()
    (expected,) = torch.autograd.grad(still, conv.weight, retain_graph=True)
    conv.train()(inputs)
    (gradient,) = torch.autograd.grad(still, conv.weight)
    assert torch.equal(gradient, expected)


def test_eval_mode_changes_no_buffer_of_the_critic() -> None:
    logits = torch.randn(2, 3, 17, 17)
    loss = WGANGP(HolisticCritic(width=2))
    loss.prepare(logits, logits)
    loss.eval()
    before = copy.deepcopy(loss.state_dict())
    loss(logits, -logits)
    loss.critic_loss(logits, -logits)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_the_critic_learns_to_tell_teacher_from_student() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(8, 3, 9, 9)
    teacher[:, 0, :, :4] += 2
    student = torch.randn(8, 3, 9, 9)
    loss = WGANGP(HolisticCritic(width=4))
    loss.prepare(student, teacher)
    optimiser = torch.optim.Adam(loss.parameters(), lr=5e-3)
    first = loss.critic_loss(student, teacher).item()
    for _ in range(40):
        optimiser.zero_grad()
        loss.critic_loss(student, teacher).backward()
        optimiser.step()
    assert loss.critic_loss(student, teacher).item() < first - 0.5
    assert loss.critic(teacher).mean() > loss.critic(student).mean()
