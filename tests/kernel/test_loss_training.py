"""Every registered loss trains: 50 steps of an optimiser on that loss alone bring it down to half or less."""

import pytest
import torch
from loss_cases import merged
from loss_inputs import BUILDERS, Inputs, built, called, each, leaves, random_inputs

from kd_tasks.losses import AdversarialLoss

TRAINING = merged("TRAINING")
STEPS = 50


@pytest.mark.parametrize("name", BUILDERS)
def test_fifty_steps_halve_the_loss(name: str) -> None:
    """The student's tensors themselves are trained, and whatever the loss trains; a critic stays as it is."""
    options = {"lr": 0.1, "scale": 1.0, "floor": 0.0} | TRAINING.get(name, TRAINING.get(name.split("-")[0], {}))
    inputs = random_inputs(BUILDERS[name](), batch=8).mapped(lambda x: options["scale"] * x)
    loss = built(name, inputs)
    inputs = Inputs(each(lambda x: x.requires_grad_(), inputs.student), inputs.teacher, inputs.context)
    critics = loss.critic.parameters() if isinstance(loss, AdversarialLoss) else ()
    frozen = {id(p) for p in critics}
    trained = [*leaves(inputs.student), *(p for p in loss.parameters() if id(p) not in frozen)]
    optimiser = torch.optim.Adam(trained, lr=options["lr"])
    torch.manual_seed(1)
    values = []
    for _ in range(STEPS + 1):
        value = called(loss, inputs)
        values.append(value.item())
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    first, last = (value - options["floor"] for value in (values[0], values[-1]))
    if isinstance(loss, AdversarialLoss):
        assert last < first - abs(first) / 2, (first, last)
    else:
        assert first > 0
        assert last <= first / 2, (first, last)
