"""From the network's outputs to embeddings to compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_tasks.losses.base import full_precision
from kd_tasks.registry import DECODERS


@DECODERS.register
class EmbeddingDecoder:
    """The embedding of each picture.

    Args:
        normalise: scale it to length 1; a row of zeros stays as it is.
    """

    def __init__(self, normalise: bool = True) -> None:
        self.normalise = normalise

    @torch.no_grad()
    def __call__(self, outputs: Mapping[str, Tensor], meta: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """One `dict(embedding=float32 (D,))` a picture, on the outputs' device.

        Args:
            outputs: `embedding` (N, D), from a network or from an exported artefact.
            meta: N dicts; not read.
        """
        embedding = full_precision(outputs["embedding"]).float()
        if self.normalise:
            embedding = F.normalize(embedding)
        return [{"embedding": row} for row in embedding]
