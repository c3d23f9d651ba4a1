"""What structured distillation needs for segmentation alone: the critic of whole logit maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.registry import CRITICS

FINAL_KERNEL = 4
MAX_GROWTH = 8


@CRITICS.register
class HolisticCritic(nn.Module):
    """Scores a whole logit map: high for the teacher's, low for the student's.

    Batch normalisation of the input, then n convolutions (4 x 4, stride 2, spectrally normalised, leaky ReLU with slope
    0.1) of `width`, 2, 4, 8 times `width` channels, self-attention after each of the last two, and a 4 x 4 convolution
    to one score. n is the largest number that leaves at least 4 x 4 positions, and at least 1: 4 for logits of 65 x 65,
    3 for 33 x 33, 2 for 17 x 17. Where more than one score is left, their mean counts.

    Liu et al. 2019, the discriminator of the holistic term (arXiv 1903.04197).

    Args:
        width: channels of the first convolution.
        conditional: see the image beside the logits, resized to their size, as in the paper. False: logits alone, as in
            the authors' code.

    The layers are created by `prepare`, once the number of classes and the size are known. Maps of another size, not
    square or tiny, are scored as well; where a map is smaller than a kernel it is padded with zeros.

    *Deviations*: the authors' class works on 65 x 65 alone, and in training mode this one equals it there. Channels
    stop growing at 8 times `width`. The power iteration of the spectral norm rests in eval mode; the authors' goes on.
    """

    def __init__(self, width: int = 64, conditional: bool = False) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"HolisticCritic: width must be at least 1, not {width!r}.")
        self.width = width
        self.conditional = conditional
        self.stages = nn.ModuleList()

    def prepare(self, student: Tensor, teacher: Tensor, image: Tensor | None = None) -> None:
        """Create the layers for logits (N, K, h, w) and, if conditional, images (N, c, H, W).

        Raises:
            ValueError: if the logits are no maps, or the critic is conditional and there is no image.
        """
        if student.ndim != 4:
            raise ValueError(f"HolisticCritic scores logit maps (N, K, h, w), but the shape is {tuple(student.shape)}.")
        channels = student.shape[1]
        if self.conditional:
            channels += self._given(image).shape[1]
        depth = max(1, (min(student.shape[2:]) // FINAL_KERNEL).bit_length() - 1)
        widths = [self.width * min(2**i, MAX_GROWTH) for i in range(depth)]
        self.norm = nn.BatchNorm2d(channels)
        self.stages = nn.ModuleList(
            _Stage(before, after, attention=i >= depth - 2)
            for i, (before, after) in enumerate(zip([channels, *widths], widths, strict=False))
        )
        self.last = nn.Conv2d(widths[-1], 1, FINAL_KERNEL)
        self.to(student.device)

    def forward(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Scores (N,) of logits (N, K, h, w).

        Raises:
            ValueError: before `prepare`, without the image of a conditional critic, or for a single pixel in training
                mode, which has no batch statistics.
        """
        if not self.stages:
            raise ValueError("HolisticCritic has no layers yet; call prepare(student, teacher, image) first.")
        if self.conditional:
            resized = F.interpolate(self._given(image).to(logits), logits.shape[2:], mode="bilinear")
            logits = torch.cat([logits, resized], dim=1)
        features = self.norm(logits)
        for stage in self.stages:
            features = stage(features)
        return self.last(_at_least(features, FINAL_KERNEL)).mean(dim=(1, 2, 3))

    @staticmethod
    def _given(image: Tensor | None) -> Tensor:
        if image is None:
            raise ValueError("HolisticCritic(conditional=True) needs the image (N, 3, H, W) beside the logits.")
        return image


class SpectralConv2d(nn.Conv2d):
    """Convolution whose weight is divided by its largest singular value, as an (out, in * kh * kw) matrix.

    The value is estimated by one power iteration a forward pass in training mode, which goes on where the last one
    stopped: `v` first, then `u`. Both are buffers, so that a resumed run goes on in the same place. Several forward
    passes may come before a backward pass.

    Miyato et al. 2018, algorithm 1. torch's own parametrisation updates `u` before `v` and gives other numbers.
    """

    u: Tensor
    v: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        rows, columns = self.weight.flatten(1).shape
        self.register_buffer("u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(columns), dim=0))

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self._normalised_weight(), self.bias)

    def _normalised_weight(self) -> Tensor:
        matrix = self.weight.flatten(1)
        u, v = self.u.clone(), self.v.clone()
        if self.training:
            with torch.no_grad():
                v = F.normalize(matrix.T @ u, dim=0)
                u = F.normalize(matrix @ v, dim=0)
                self.u.copy_(u)
                self.v.copy_(v)
        return self.weight / (u @ (matrix @ v))


class SelfAttention(nn.Module):
    """Self-attention over the positions of a map: `gamma * attention(x) + x`, with `gamma` from 0.

    Queries and keys have an eighth of the channels; the products are not scaled. Zhang et al. 2019, SAGAN.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def weights(self, features: Tensor) -> Tensor:
        """How much each position (row) attends to each other (column), (N, h * w, h * w)."""
        query, key = self.query(features).flatten(2), self.key(features).flatten(2)
        return F.softmax(query.transpose(1, 2) @ key, dim=2)

    def forward(self, features: Tensor) -> Tensor:
        attended = self.value(features).flatten(2) @ self.weights(features).transpose(1, 2)
        return self.gamma * attended.reshape(features.shape) + features


class _Stage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, attention: bool) -> None:
        super().__init__()
        self.conv = SpectralConv2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.attention = SelfAttention(out_channels) if attention else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.attention(F.leaky_relu(self.conv(_at_least(features, 2)), 0.1))


def _at_least(features: Tensor, size: int) -> Tensor:
    height, width = features.shape[2:]
    return F.pad(features, (0, max(0, size - width), 0, max(0, size - height)))
