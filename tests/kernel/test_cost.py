"""Parameters and multiply-adds, against formulas."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kd_tasks.evaluation.cost import file_size, multiply_adds, parameters


def test_parameters_are_counted_once() -> None:
    layer = nn.Linear(3, 4)
    assert parameters(nn.Sequential(layer, layer, nn.BatchNorm1d(4))) == 3 * 4 + 4 + 2 * 4


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_a_convolution(groups: int, stride: int, padding: int, dilation: int) -> None:
    layer = nn.Conv2d(4, 6, (3, 5), stride, padding, dilation, groups)
    height, width = layer(torch.zeros(1, 4, 11, 14)).shape[2:]
    assert multiply_adds(layer, (2, 4, 11, 14)) == 2 * height * width * 6 * (4 // groups) * 3 * 5


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=groups)
    assert multiply_adds(layer, (1, 4, 5, 7)) == 5 * 7 * 4 * (6 // groups) * 4 * 4


def test_a_linear_layer() -> None:
    assert multiply_adds(nn.Linear(7, 5), (3, 7)) == 3 * 7 * 5


@pytest.mark.parametrize("training", [True, False])
def test_attention(training: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    projections, products = 4 * 5 * 8 * 8, 2 * 5 * 5 * 8
    assert multiply_adds(Attention().train(training), (3, 5, 8)) == 3 * (projections + products)


def test_a_transformer_layer_in_its_fused_form_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
    attention, feedforward = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8, 2 * 5 * 8 * 16
    assert multiply_adds(layer, (1, 5, 8)) == attention + feedforward


def test_counting_leaves_the_module_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), nn.Dropout(0.5)).double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [part.training for part in network.modules()]
    assert multiply_adds(network, (1, 3, 8, 8)) == 6 * 6 * 4 * 3 * 9
    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(RuntimeError):
        multiply_adds(network, (1, 4, 8, 8))
    assert [part.training for part in network.modules()] == modes


def test_file_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert file_size(tmp_path / "a") == 5
