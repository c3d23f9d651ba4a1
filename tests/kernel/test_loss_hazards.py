"""What a training run does to a loss sooner or later, for every registered loss: value and gradient stay finite."""

from collections.abc import Callable

import pytest
import torch
from loss_cases import merged
from loss_inputs import BUILDERS, MAPS, Inputs, Side, built, criticised, each, leaves, random_inputs, shipped, valued
from torch import Tensor

from kd_tasks.losses import AdversarialLoss, Loss, RelationalLoss
from kd_tasks.registry import LOSSES

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
UNDEFINED = merged("UNDEFINED")
GROWS = merged("GROWS")
STOPPED = merged("STOPPED")
BEYOND_HALF = merged("BEYOND_HALF")


def plain(loss: Loss) -> Inputs:
    return random_inputs(loss)


def zero_features(loss: Loss) -> Inputs:
    return random_inputs(loss).mapped(torch.zeros_like)


def zero_student(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    return Inputs(each(torch.zeros_like, inputs.student), inputs.teacher, inputs.context)


def zero_teacher(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    return Inputs(inputs.student, each(torch.zeros_like, inputs.teacher), inputs.context)


def zero_sample(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    for tensor in leaves(inputs.student):
        tensor[0] = 0
    for tensor in leaves(inputs.teacher):
        tensor[1] = 0
    return inputs


def identical(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    return Inputs(inputs.student, alike(inputs.teacher, inputs.student), inputs.context)


def alike(teacher: Side, student: Side) -> Side:
    """The teacher's side with the student's numbers wherever the shapes allow it."""
    if teacher is None:
        return None
    pool = leaves(student)
    taken = [
        next((s for s in (pool[i : i + 1] + pool) if s.shape == t.shape), t) for i, t in enumerate(leaves(teacher))
    ]
    copies = [t.clone() for t in taken]
    return copies if isinstance(teacher, list) else copies[0]


def identical_rows(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    for tensor in (*leaves(inputs.student), *leaves(inputs.teacher)):
        tensor[1] = tensor[0]
    return inputs


def identical_rows_of_the_student(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    for tensor in leaves(inputs.student):
        tensor[1] = tensor[0]
    return inputs


def constant(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    teacher = each(lambda x: torch.full_like(x, -2.0), inputs.teacher)
    return Inputs(each(torch.ones_like, inputs.student), teacher, inputs.context)


def batch_of_one(loss: Loss) -> Inputs:
    return random_inputs(loss, batch=1)


def batch_of_two(loss: Loss) -> Inputs:
    return random_inputs(loss, batch=2)


def not_square_and_odd(loss: Loss) -> Inputs:
    return random_inputs(loss, size=(7, 5))


def wide(loss: Loss) -> Inputs:
    return random_inputs(loss, size=(3, 33))


def tiny(loss: Loss) -> Inputs:
    return random_inputs(loss, size=(2, 1))


def channels_last(loss: Loss) -> Inputs:
    return random_inputs(loss).mapped(turned)


def turned(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def bfloat16(loss: Loss) -> Inputs:
    return random_inputs(loss).mapped(Tensor.bfloat16)


def float16(loss: Loss) -> Inputs:
    return random_inputs(loss).mapped(Tensor.half)


def large_float16(loss: Loss) -> Inputs:
    return random_inputs(loss).mapped(lambda x: (6e4 * x.tanh()).half())


def saturated(loss: Loss) -> Inputs:
    return random_inputs(loss).mapped(lambda x: 1e4 * x.sign())


def opposed(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    student = each(lambda x: 1e4 * x.sign(), inputs.student)
    return Inputs(student, each(torch.neg, alike(inputs.teacher, student)), inputs.context)


def dead_channel(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    for tensor in leaves(inputs.student):
        tensor[:, 0] = 0
    for tensor in leaves(inputs.teacher):
        tensor[:, 1] = 0
    return inputs


def dead_position(loss: Loss) -> Inputs:
    inputs = random_inputs(loss)
    for tensor in leaves(inputs.student):
        tensor[..., : tensor.shape[-1] // 2] = 0
    for tensor in leaves(inputs.teacher):
        tensor[..., tensor.shape[-1] // 2 :] = 0
    return inputs


HAZARDS = [
    plain,
    zero_features,
    zero_student,
    zero_teacher,
    zero_sample,
    identical,
    identical_rows,
    identical_rows_of_the_student,
    constant,
    batch_of_one,
    batch_of_two,
    not_square_and_odd,
    wide,
    tiny,
    channels_last,
    bfloat16,
    float16,
    large_float16,
    saturated,
    opposed,
    dead_channel,
    dead_position,
]


def refusal(name: str, hazard: str, loss: Loss) -> str | None:
    """What the loss must say where a case has no meaning."""
    if (name, hazard) in UNDEFINED:
        return UNDEFINED[name, hazard]
    rows = {"batch_of_one": 1, "batch_of_two": 2}.get(hazard)
    return f"batch of at least {loss.smallest_batch}" if rows is not None and rows < loss.smallest_batch else None


def tracked(inputs: Inputs) -> Inputs:
    """The same, with the student's tensors as leaves of the graph."""
    return Inputs(each(lambda x: x.detach().requires_grad_(), inputs.student), inputs.teacher, inputs.context)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hazard", HAZARDS, ids=lambda hazard: hazard.__name__)
@pytest.mark.parametrize("name", BUILDERS)
def test_value_and_gradient_are_finite(name: str, hazard: Callable[[Loss], Inputs], device: str) -> None:
    inputs = hazard(BUILDERS[name]()).mapped(lambda x: x.to(device))
    inputs = Inputs(inputs.student, inputs.teacher, {k: v.to(device) for k, v in inputs.context.items()})
    expected = refusal(name, hazard.__name__, BUILDERS[name]())
    if expected is not None:
        with pytest.raises(ValueError, match=expected):
            valued(built(name, inputs, device), inputs)
        return
    if (name, hazard.__name__) in BEYOND_HALF:
        assert valued(built(name, inputs, device), inputs).isfinite()
        inputs = inputs.mapped(Tensor.float)
    loss, inputs = built(name, inputs, device), tracked(inputs)
    value = valued(loss, inputs)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in leaves(inputs.student))
    if not isinstance(loss, AdversarialLoss):
        assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())
        return
    assert all(p.grad is None for p in loss.critic.parameters())
    critic_value = criticised(loss, inputs)
    critic_value.backward()
    assert critic_value.isfinite()
    assert all(p.grad.isfinite().all() for p in loss.critic.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name in shipped(LOSSES)])
def test_logits_of_whole_images_work_or_are_refused_clearly(name: str) -> None:
    loss = BUILDERS[name]()
    maps = random_inputs(loss)
    if loss.taps != "logits" or maps.student.ndim != 4:
        pytest.skip("reads no maps of logits")
    context = {k: v[:, 0, 0] if k == "label" else v for k, v in maps.context.items()}
    inputs = tracked(Inputs(maps.student[..., 0, 0], each(lambda x: x[..., 0, 0], maps.teacher), context))
    try:
        value = valued(built(name, inputs), inputs)
    except ValueError as error:
        assert name in str(error)
        assert "(4, 4)" in str(error)
        return
    value.backward()
    assert value.isfinite()
    assert inputs.student.grad.isfinite().all()


@pytest.mark.parametrize("name", BUILDERS)
def test_ordinary_inputs_have_a_gradient_and_the_teacher_has_none(name: str) -> None:
    inputs = tracked(random_inputs(BUILDERS[name]()))
    loss = built(name, inputs)
    for tensor in leaves(inputs.teacher):
        tensor.requires_grad_()
    valued(loss, inputs).backward()
    assert max(x.grad.abs().max() for x in leaves(inputs.student) if x.grad is not None) > 0
    if loss.detach_teacher:
        assert all(x.grad is None for x in leaves(inputs.teacher))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BUILDERS)
def test_autocast_changes_nothing(name: str, device: str) -> None:
    inputs = random_inputs(BUILDERS[name]()).mapped(lambda x: x.to(device))
    inputs = Inputs(inputs.student, inputs.teacher, {k: v.to(device) for k, v in inputs.context.items()})
    values = {}
    for enabled in (False, True):
        loss = built(name, inputs, device)
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            values[enabled] = [valued(loss, inputs)]
            if isinstance(loss, AdversarialLoss):
                values[enabled].append(criticised(loss, inputs))
    assert all(value.dtype == torch.float32 for value in values[True])
    assert values[True] == values[False]


@pytest.mark.parametrize("name", BUILDERS)
def test_half_precision_inputs_give_the_value_of_the_same_numbers_in_float32(name: str) -> None:
    half = random_inputs(BUILDERS[name]()).mapped(Tensor.bfloat16)
    single = half.mapped(Tensor.float)
    assert valued(built(name, single), half) == valued(built(name, single), single)


@pytest.mark.parametrize("name", BUILDERS)
def test_memory_format_changes_nothing(name: str) -> None:
    loss = BUILDERS[name]()
    if loss.taps not in MAPS:
        pytest.skip("only maps have a memory format")
    inputs = random_inputs(loss)
    value = valued(built(name, inputs), inputs)
    torch.testing.assert_close(valued(built(name, inputs), inputs.mapped(turned)), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_batch_twice_over_has_the_value_that_the_docstring_promises(name: str) -> None:
    loss = BUILDERS[name]()
    factor = GROWS.get(name, GROWS.get(type(loss).__name__, 1.0))
    if factor is None or isinstance(loss, RelationalLoss):
        pytest.skip("the value belongs to the batch")
    inputs = random_inputs(loss)
    twice = inputs.mapped(lambda x: torch.cat([x, x]))
    twice = Inputs(twice.student, twice.teacher, {k: torch.cat([v, v]) for k, v in inputs.context.items()})
    expected = factor * valued(built(name, inputs), inputs)
    torch.testing.assert_close(valued(built(name, inputs), twice), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_loss_differentiates_correctly(name: str) -> None:
    inputs = random_inputs(BUILDERS[name](), batch=3, size=(4, 3), dtype=torch.float64)
    loss = built(name, inputs).double().eval()
    if getattr(loss, "detach_norm", False) or name in STOPPED:
        pytest.skip("the gradient is not that of the value, on purpose")
    given = leaves(inputs.student)

    def function(*student: Tensor) -> Tensor:
        return valued(loss, Inputs(list(student) if isinstance(inputs.student, list) else student[0], *rest))

    rest = (inputs.teacher, inputs.context)
    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in given])
