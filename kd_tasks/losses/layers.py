"""Layers of the losses on feature maps that have some: they are trained with the student and then left behind."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reconstruction = Literal["l1", "mse"]


class Paraphraser(nn.Module):
    """The autoencoder of a teacher's map whose narrow middle is the factor of factor transfer.

    Args:
        channels: of the teacher's map.
        rate: the factor's channels as a share of them.
    """

    def __init__(self, channels: int, rate: float = 0.5) -> None:
        super().__init__()
        width = factor_width(channels, rate)
        self.encoder = factor_encoder(channels, width)
        self.decoder = leaky(nn.ConvTranspose2d, (width, width, channels, channels))

    def encode(self, maps: Tensor) -> Tensor:
        """The factor (N, width, H, W) of maps (N, C, H, W)."""
        factor: Tensor = self.encoder(maps)
        return factor

    def forward(self, maps: Tensor) -> Tensor:
        """The reconstruction of maps (N, C, H, W) out of their factor."""
        reconstruction: Tensor = self.decoder(self.encode(maps))
        return reconstruction


class Fusion(nn.Module):
    """One step of the review: a map joined with the deeper result by attention, and its way to the teacher's channels.

    Args:
        channels: of the student's map.
        middle: of the joined map.
        wanted: of the teacher's map.
        attends: whether there is a deeper result.
    """

    def __init__(self, channels: int, middle: int, wanted: int, attends: bool) -> None:
        super().__init__()
        self.project = normalised_conv(channels, middle, 1)
        self.attend = nn.Conv2d(2 * middle, 2, 1) if attends else None
        self.restore = normalised_conv(middle, wanted, 3)

    def forward(self, maps: Tensor, deeper: Tensor | None, size: torch.Size) -> Tensor:
        """The joined map, at the teacher's `size`."""
        joint = self.project(maps)
        if self.attend is not None and deeper is not None:
            deeper = nearest(deeper, joint.shape[2:])
            attention = self.attend(torch.cat([joint, deeper], dim=1)).sigmoid()
            joint = joint * attention[:, :1] + deeper * attention[:, 1:]
        return nearest(joint, size)


def fit_paraphraser(
    batches: Iterable[Tensor],
    rate: float = 0.5,
    reconstruction: Reconstruction = "l1",
    lr: float = 1e-3,
) -> Paraphraser:
    """A paraphraser trained on a teacher's maps (N, C, H, W), one step of Adam for each batch.

    `torch.save(fit_paraphraser(batches).state_dict(), path)` writes what `FactorTransfer(paraphraser=path)` takes.

    Raises:
        ValueError: for another `reconstruction`, or without batches.
    """
    known = get_args(Reconstruction)
    if reconstruction not in known:
        told = ", ".join(map(repr, known))
        raise ValueError(f"fit_paraphraser: reconstruction={reconstruction!r} is none of {told}.")
    paraphraser: Paraphraser | None = None
    for batch in batches:
        maps = batch.detach().float()
        with torch.enable_grad():
            if paraphraser is None:
                paraphraser = Paraphraser(maps.shape[1], rate).to(maps.device)
                optimiser = torch.optim.Adam(paraphraser.parameters(), lr=lr)
            optimiser.zero_grad()
            reconstruction_error(paraphraser(maps), maps, reconstruction).backward()
            optimiser.step()
    if paraphraser is None:
        raise ValueError("fit_paraphraser is given no batches of maps to learn from.")
    return paraphraser


def reconstruction_error(reconstructed: Tensor, maps: Tensor, error: Reconstruction) -> Tensor:
    """How far reconstructed maps are from `maps`, as an element mean."""
    return F.l1_loss(reconstructed, maps) if error == "l1" else F.mse_loss(reconstructed, maps)


def factor_width(channels: int, rate: float) -> int:
    """Channels of the factor of maps with that many channels, rounded down."""
    return max(1, int(rate * channels))


def factor_encoder(channels: int, width: int) -> nn.Sequential:
    """Three 3x3 convolutions with leaky ReLU, from maps to their factor: in paraphraser and translator."""
    return leaky(nn.Conv2d, (channels, channels, width, width))


def leaky(layer: type[nn.Conv2d] | type[nn.ConvTranspose2d], channels: Sequence[int]) -> nn.Sequential:
    """3x3 layers of those channels, each with a leaky ReLU after it."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [layer(before, after, 3, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def normalised_conv(channels: int, wanted: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps the size, and batch normalisation."""
    conv = nn.Conv2d(channels, wanted, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(wanted))


def nearest(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps at `size`, each pixel from its nearest."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, size=tuple(size), mode="nearest")


def averaged(maps: Tensor, level: int) -> Tensor:
    """Means over `level x level` regions of maps, as adaptive average pooling has them; deterministic anywhere."""
    height, width = maps.shape[2:]
    rows = averaging(height, level, maps.dtype, maps.device)
    columns = averaging(width, level, maps.dtype, maps.device)
    return rows @ (maps @ columns.T)


@functools.lru_cache(maxsize=256)
def averaging(length: int, bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix (bins, length) whose rows average the overlapping regions of adaptive average pooling."""
    with torch.inference_mode(False):
        matrix = torch.zeros(bins, length, dtype=dtype)
        for row in range(bins):
            start, end = row * length // bins, -(-(row + 1) * length // bins)
            matrix[row, start:end] = 1 / (end - start)
        return matrix.to(device)
