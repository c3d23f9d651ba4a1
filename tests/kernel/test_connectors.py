"""Connectors: sized by the tensors that they join."""

import pytest
import torch
import torch.nn.functional as F
import toys  # noqa: F401
from torch import Tensor, nn

from kd_tasks.connectors import SHORT_NAMES, Connector, build_connector, resized
from kd_tasks.errors import UserError
from kd_tasks.registry import CONNECTORS

torch.manual_seed(0)
EMBEDDINGS = (torch.randn(2, 6), torch.randn(2, 9))


def maps(channels: int, height: int, width: int) -> Tensor:
    return torch.randn(2, channels, height, width)


def connected(cfg: str | dict, student: Tensor, teacher: Tensor) -> tuple[Connector, Tensor]:
    connector = build_connector(cfg, "connector")
    assert connector is not None
    connector.prepare(student, teacher)
    return connector, connector(student)


@pytest.mark.parametrize("sizes", [((8, 12), (8, 12)), ((8, 12), (4, 6)), ((4, 6), (8, 12)), ((9, 5), (4, 7))])
def test_conv1x1_gives_the_teachers_shape(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    student, teacher = maps(3, *sizes[0]), maps(5, *sizes[1])
    connector, output = connected("conv1x1", student, teacher)
    assert output.shape == teacher.shape
    assert sum(p.numel() for p in connector.parameters()) == 3 * 5 + 5


def test_conv1x1_is_a_matrix_at_every_pixel() -> None:
    student, teacher = maps(3, 4, 6), maps(5, 4, 6)
    connector, output = connected("conv1x1", student, teacher)
    conv = connector.layers[0]
    expected = torch.einsum("nchw,kc->nkhw", student, conv.weight[:, :, 0, 0]) + conv.bias[:, None, None]
    torch.testing.assert_close(output, expected)


def test_conv1x1_with_norm_and_relu() -> None:
    connector, output = connected({"type": "Conv1x1", "norm": True, "relu": True}, maps(3, 4, 4), maps(5, 4, 4))
    assert [type(layer) for layer in connector.layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert connector.layers[0].bias is None
    assert output.min() == 0


@pytest.mark.parametrize("wanted", [(8, 12), (4, 6), (16, 24), (4, 24), (1, 1)])
def test_resize_keeps_channels(wanted: tuple[int, int]) -> None:
    connector, output = connected("resize", maps(3, 8, 12), maps(7, *wanted))
    assert output.shape == (2, 3, *wanted)
    assert not list(connector.parameters())


def test_resized_averages_where_it_shrinks() -> None:
    student = maps(3, 8, 12)
    torch.testing.assert_close(resized(student, (4, 6)), F.avg_pool2d(student, 2))
    assert resized(student, (8, 12)) is student
    constant = torch.full((1, 1, 3, 5), 2.5)
    torch.testing.assert_close(resized(constant, (7, 4)), torch.full((1, 1, 7, 4), 2.5))


@pytest.mark.parametrize(
    ("student", "teacher", "layer"),
    [
        ((8, 12), (4, 6), nn.Conv2d),
        ((4, 6), (8, 12), nn.ConvTranspose2d),
        ((9, 7), (5, 6), nn.Conv2d),
        ((5, 5), (5, 5), nn.Conv2d),
    ],
)
def test_regressor_finds_kernel_and_stride(
    student: tuple[int, int], teacher: tuple[int, int], layer: type[nn.Module]
) -> None:
    connector, output = connected("regressor", maps(3, *student), maps(5, *teacher))
    assert output.shape == (2, 5, *teacher)
    assert type(connector.layers[0]) is layer
    bare, _ = connected({"type": "Regressor", "norm": False}, maps(3, *student), maps(5, *teacher))
    assert len(bare.layers) == 1


def test_regressor_that_cannot_reach_the_size_says_what_can() -> None:
    with pytest.raises(UserError, match=r"\(4, 4\) to \(9, 9\); 'Conv1x1' can"):
        connected("regressor", maps(3, 4, 4), maps(5, 9, 9))


def test_linear_on_embeddings_and_maps() -> None:
    student, teacher = EMBEDDINGS
    connector, output = connected("linear", student, teacher)
    torch.testing.assert_close(output, student @ connector.layer.weight.T + connector.layer.bias)
    connector, output = connected("linear", maps(3, 4, 6), teacher)
    assert output.shape == teacher.shape


def test_pool_averages_pixels() -> None:
    student = maps(3, 4, 6)
    torch.testing.assert_close(connected("pool", student, EMBEDDINGS[1])[1], student.mean((2, 3)))
    assert connected("pool", *EMBEDDINGS)[1] is EMBEDDINGS[0]


@pytest.mark.parametrize("name", ["conv1x1", "resize", "regressor"])
def test_connectors_of_maps_refuse_embeddings(name: str) -> None:
    with pytest.raises(UserError, match=r"joins maps.*\(2, 6\)"):
        connected(name, EMBEDDINGS[0], maps(3, 4, 4))


def test_every_short_name_is_a_registered_connector() -> None:
    for name, long in SHORT_NAMES.items():
        assert type(build_connector(name, "connector")) is CONNECTORS.get(long)


def test_names_that_do_not_exist() -> None:
    assert build_connector(None, "connector") is None
    with pytest.raises(UserError, match=r"a\.connector: 'conv1' is not a connector. Did you mean 'conv1x1'\?"):
        build_connector("conv1", "a.connector")
    with pytest.raises(UserError, match=r"a\.connector: 'Conv1x' is not a known connector. Did you mean 'Conv1x1'\?"):
        build_connector({"type": "Conv1x"}, "a.connector")
    with pytest.raises(UserError, match=r"a\.connector: .*'norms'.*Did you mean 'norm'\?"):
        build_connector({"type": "Conv1x1", "norms": True}, "a.connector")
