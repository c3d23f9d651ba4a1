"""Networks, data and metrics of a second's work, registered for the tests."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS
from torch import Tensor, nn
from torch.utils.data import Dataset

from kd_tasks.distiller import Distiller
from kd_tasks.engine.config import with_options
from kd_tasks.engine.randomness import sample_seed
from kd_tasks.engine.runner import DistillRunner
from kd_tasks.engine.train import train
from kd_tasks.losses.base import Loss
from kd_tasks.registry import CRITERIA, CRITICS, DECODERS, LOSSES, NETWORKS
from kd_tasks.task import Meta, Outputs

CLASSES = 4
SIZE = 16


@NETWORKS.register
class ToyNet(nn.Module):
    """Two stages of convolution, BatchNorm and in-place ReLU, the second at half the size; a linear head.

    Args:
        width: channels of `stage1`; `stage2` has twice as many.
        dropout: probability before the head.
        norm: BatchNorm in the stages.
        classes: length of the logits.
    """

    def __init__(self, width: int = 4, dropout: float = 0.0, norm: bool = True, classes: int = CLASSES) -> None:
        super().__init__()
        self.stage1 = _stage(3, width, 1, norm)
        self.stage2 = _stage(width, 2 * width, 2, norm)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.stage2(self.stage1(images))
        return {"logits": self.head(self.dropout(maps.mean((2, 3))))}


def _stage(channels: int, width: int, stride: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, stride, padding=1)]
    if norm:
        layers.append(nn.BatchNorm2d(width))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


@CRITERIA.register
class ToyCriterion(nn.Module):
    """Cross-entropy, under a name that does not contain the word loss."""

    def forward(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"labels": F.cross_entropy(outputs["logits"], targets["label"])}


@DECODERS.register
class ToyDecoder:
    """The most likely class."""

    def __call__(self, outputs: Outputs, meta: Sequence[Meta]) -> list[dict[str, Any]]:
        return [{"label": int(row.argmax())} for row in outputs["logits"]]


@LOSSES.register
class ToyScaled(Loss):
    """Squared difference with a learnt scale: a loss that has a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (self.scale * student - teacher).square().mean()


@LOSSES.register
class ToyLabelled(Loss):
    """Squared difference on the samples whose label is even: a loss that needs context."""

    def compute(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        return ((student - teacher).square().mean(1) * (label % 2 == 0)).mean()


@LOSSES.register
class ToyPaired(Loss):
    """Sum of squared differences over lists of tensors."""

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        return torch.stack([(s - t).square().mean() for s, t in zip(student, teacher, strict=True)]).sum()


@LOSSES.register
class ToyNotFinite(Loss):
    """Squared difference for the first `after` steps, then not a number."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.after = after
        self.steps = 0

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.steps += self.training
        return (student - teacher).square().mean() * (float("nan") if self.steps > self.after else 1.0)


@CRITICS.register
class ToyCritic(nn.Module):
    """A score from logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(CLASSES, 1)

    def forward(self, logits: Tensor) -> Tensor:
        return self.layer(logits)


@DATASETS.register_module()
class ToyDataset(Dataset[dict[str, Any]]):
    """Noise around one pattern a class, shifted at random in training as (seed, epoch, index) demand.

    Args:
        samples: how many.
        augment: shift and invert the pictures at random.
    """

    def __init__(self, samples: int = 16, augment: bool = True) -> None:
        self.samples, self.augment = samples, augment
        self.metainfo = {"classes": [str(n) for n in range(CLASSES)], "palette": [[0, 0, 0]] * CLASSES}

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        fixed = torch.Generator().manual_seed(int(index))
        label = int(index) % CLASSES
        image = torch.randint(0, 64, (3, SIZE, SIZE), generator=fixed)
        image[:, 4 * label : 4 * label + 4] += 128
        if self.augment:
            drawn = torch.Generator().manual_seed(sample_seed(index))
            image = image.roll(int(torch.randint(0, SIZE, (), generator=drawn)), dims=2)
            image = image + torch.randint(0, 32, image.shape, generator=drawn)
        meta = {"path": f"{int(index)}.png", "index": int(index), "original_size": (SIZE, SIZE)}
        return {
            "inputs": image.to(torch.uint8),
            "targets": {"label": torch.tensor(label)},
            "meta": {**meta, "input_size": (SIZE, SIZE)},
        }


@HOOKS.register_module()
class ToyKilled(Hook):
    """Kills its own process after the iteration `at`, as a power cut would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        if runner.iter == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class ToyKeeper(Hook):
    """Writes what each rank has at the end to `rank_N.pth` in the run folder."""

    def after_train(self, runner: Any) -> None:
        model = getattr(runner.model, "module", runner.model)
        torch.save(model.state_dict(), Path(runner.work_dir) / f"rank_{get_rank()}.pth")


@METRICS.register_module()
class ToyAccuracy(BaseMetric):
    """Share of right labels, in percent."""

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        labels = data_batch["targets"]["label"].tolist()
        self.results += [float(s["label"] == label) for s, label in zip(data_samples, labels, strict=True)]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"top1": 100 * sum(results) / len(results)}


def batch(samples: int = 4, size: int = SIZE, seed: int = 0) -> dict[str, Any]:
    """A batch as `collate_samples` makes it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "inputs": torch.randint(0, 256, (samples, 3, size, size), generator=generator, dtype=torch.uint8),
        "targets": {"label": torch.arange(samples) % CLASSES},
        "meta": [
            {"path": f"{n}.png", "original_size": (size, size), "input_size": (size, size)} for n in range(samples)
        ],
    }


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` with statistics and affine parameters in its BatchNorm layers that are not the neutral ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def distiller(**changes: Any) -> Distiller:
    """A small distiller: soft targets and a hint; `changes` replace its arguments."""
    arguments: dict[str, Any] = {
        "student": {"type": "ToyNet"},
        "teacher": {"type": "ToyNet", "width": 6},
        "criterion": {"type": "ToyCriterion"},
        "decoder": {"type": "ToyDecoder"},
        "transfers": {
            "soft": {"on": "logits", "loss": {"type": "SoftTargets"}},
            "hint": {"on": "stage2", "connector": "conv1x1", "loss": {"type": "Hint"}},
        },
        "input_size": (SIZE, SIZE),
    }
    return Distiller(**{**arguments, **changes})


ADVERSARIAL = {"on": "logits", "loss": {"type": "WGANGP", "critic": {"type": "ToyCritic"}}, "weight": 0.1}


def config(work_dir: Path | str, **changes: Any) -> Config:
    """A training of two epochs of four iterations; `changes` as `--cfg-options` make them, by dotted path."""
    loader = {"batch_size": 4, "num_workers": 0}
    plain: dict[str, Any] = {
        "default_scope": "mmengine",
        "model": {
            "type": "Distiller",
            "student": {"type": "ToyNet"},
            "teacher": {"type": "ToyNet", "width": 6},
            "criterion": {"type": "ToyCriterion"},
            "decoder": {"type": "ToyDecoder"},
            "transfers": {
                "soft": {"on": "logits", "loss": {"type": "SoftTargets"}},
                "hint": {"on": "stage2", "connector": "conv1x1", "loss": {"type": "Hint"}},
            },
            "input_size": (SIZE, SIZE),
        },
        "train_dataloader": {**loader, "dataset": {"type": "ToyDataset"}},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9}},
        "param_scheduler": [{"type": "PolyLR", "by_epoch": True, "end": 4}],
        "train_cfg": {"by_epoch": True, "max_epochs": 2},
        "randomness": {"seed": 3},
        "work_dir": str(work_dir),
    }
    return with_options(Config(plain), changes)


TESTING = {
    "val_dataloader": {"batch_size": 4, "num_workers": 0, "dataset": {"type": "ToyDataset", "augment": False}},
    "test_dataloader": {"batch_size": 4, "num_workers": 0, "dataset": {"type": "ToyDataset", "augment": False}},
    "val_evaluator": {"type": "ToyAccuracy"},
    "test_evaluator": {"type": "ToyAccuracy"},
}


def trained(work_dir: Path | str, resume: bool = False, amp: str | None = None, **changes: Any) -> Path:
    """The run folder of the training that `config` describes."""
    return train(config(work_dir, **changes), resume=resume, amp=amp)


__all__ = ["DistillRunner", "batch", "config", "distiller", "randomised", "trained"]
