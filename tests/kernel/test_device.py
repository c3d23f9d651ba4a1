"""What a GPU would show, on a CPU: a step on a device without values, where reading a value or mixing devices fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import toys
from kd_segmentation.criterion import SegmentationLoss
from kd_segmentation.losses import HolisticCritic
from kd_segmentation.networks import PSPNet
from torch import Tensor, nn

from kd_tasks.distiller import Distiller
from kd_tasks.engine import compat, randomness
from kd_tasks.engine.compat import build_optimisers, gradient_norms, start_process_group, synchronise_norms
from kd_tasks.engine.runner import DistillRunner
from kd_tasks.errors import UserError
from kd_tasks.losses import WGANGP
from kd_tasks.task import ImagePreprocessor, TaskModel
from kd_tasks.vision.pooling import region_means

SIZE = 65
CLASSES = 5
CLIPPED = {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}, "clip_grad": {"max_norm": 1.0}}
TRANSFERS: dict[str, Any] = {
    "pixel": {"on": "logits", "loss": {"type": "PixelWise"}},
    "pair": {"on": "psp", "loss": {"type": "PairWise", "pool": 2, "neighbours": 4}},
    "hint": {"student": "backbone.layer2", "teacher": "backbone.layer3", "connector": "regressor", "loss": "Hint"},
    "attention": {"on": "backbone.layer3", "loss": "AttentionTransfer", "weight": 10.0},
    "channels": {"on": "logits", "loss": "ChannelWise"},
}


@pytest.fixture
def valueless(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device `meta`, with an autocast that it knows."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    yield "meta"


def pspnets(**teacher: Any) -> Distiller:
    named = {
        n: {**t, "loss": {"type": t["loss"]} if isinstance(t["loss"], str) else t["loss"]} for n, t in TRANSFERS.items()
    }
    critic = {"on": "logits", "loss": WGANGP(HolisticCritic(width=8, conditional=True))}
    return Distiller(
        PSPNet("resnet18", num_classes=CLASSES, width=0.25),
        {**named, "critic": critic},
        teacher={
            "type": "PSPNet",
            "backbone": "resnet18",
            "num_classes": CLASSES,
            "width": 0.5,
            "channels": 64,
            **teacher,
        },
        criterion=SegmentationLoss(class_weight=[1.0, 2.0, 1.0, 1.0, 0.5]),
        data_preprocessor=ImagePreprocessor(pad_divisor=13, channels_last=True),
        input_size=(SIZE, SIZE),
    ).train()


def batch() -> dict[str, Any]:
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    masks = torch.randint(0, CLASSES, (2, SIZE, SIZE), dtype=torch.uint8)
    return {"inputs": images, "targets": {"mask": masks}, "meta": [{"path": "a.png", "index": 0}] * 2}


def test_a_step_reads_no_value_and_mixes_no_devices(valueless: str) -> None:
    model = pspnets(mean=[0, 0, 0], std=[1, 1, 1], size=(SIZE, SIZE), prepare={"dtype": "bfloat16"}).to(valueless)
    optim = build_optimisers(model, {**CLIPPED, "critic": CLIPPED})
    log = model.train_step(batch(), optim)
    assert {"loss", "task.ce", "task.aux_ce", "critic.critic", *(f"kd.{name}" for name in TRANSFERS)} <= set(log)
    assert {value.device.type for value in log.values()} == {valueless}
    with pytest.raises(RuntimeError):
        log["loss"].item()


def test_the_norm_of_clipped_gradients_is_read_at_the_log_alone(tmp_path: Path) -> None:
    model = toys.distiller().train()
    optim = build_optimisers(model, CLIPPED)
    model.train_step(toys.batch(), optim)
    assert isinstance(optim.grad_norm, Tensor)
    assert gradient_norms(optim) == {"grad_norm": pytest.approx(float(optim.grad_norm))}
    folder = toys.trained(tmp_path / "run", **{"optim_wrapper.clip_grad": {"max_norm": 0.1}})
    assert '"grad_norm": ' in (folder / "scalars.json").read_text()


def test_batches_are_pinned_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = {"batch_size": 2, "dataset": {"type": "ToyDataset"}, "sampler": {"type": "EpochSampler"}}
    assert not DistillRunner.build_dataloader(loader, seed=0).pin_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert DistillRunner.build_dataloader(loader, seed=0).pin_memory
    assert not DistillRunner.build_dataloader({**loader, "pin_memory": False}, seed=0).pin_memory


def test_each_rank_keeps_the_random_state_of_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 writes the checkpoint; what it knows of the other ranks' GPUs is their seed."""
    own = torch.arange(16, dtype=torch.uint8)
    restored: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": own if device == "cuda" else own * 0)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": restored.append((state, device)))
    randomness.restore_random_state(randomness.capture_random_state())
    assert [(state.tolist(), device) for state, device in restored] == [(own.tolist(), "cuda")]


# --- Precision and compilation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prepare", "expected"), [({"dtype": "bfloat16"}, torch.bfloat16), ({}, torch.float16)])
def test_a_teacher_keeps_the_precision_it_was_prepared_in(prepare: dict[str, Any], expected: torch.dtype) -> None:
    model = toys.distiller(teacher={"type": "ToyNet", "width": 6, "prepare": prepare})
    seen: list[torch.dtype] = []
    stage = model.teachers["teacher"].network.get_submodule("stage1")
    stage.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        model.teachers["teacher"].run(torch.randn(2, 3, toys.SIZE, toys.SIZE))
    assert seen == [expected]


def test_a_teacher_is_compiled_for_the_batches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()  # what other tests compiled would make the batch a free size
    sizes: list[int] = []

    def counting(graph: Any, inputs: list[Tensor]) -> Any:
        sizes.extend(
            len(tensor) for tensor in inputs if tensor.dim() == 4 and tensor.shape[1:] == (3, toys.SIZE, toys.SIZE)
        )
        return graph.forward

    compiled_by = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled_by(self, backend=counting))
    model = toys.distiller(teacher={"type": "ToyNet", "width": 6, "prepare": {"compile": True}})
    assert sizes == []
    model.teachers["teacher"].run(torch.randn(7, 3, toys.SIZE, toys.SIZE))
    assert sizes == [7]


# --- Deterministic mode ----------------------------------------------------------------------------------------------


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [(9, 13), (12, 6)])
def test_region_means_in_deterministic_mode_are_the_same(deterministic: None, size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size)
    torch.testing.assert_close(region_means(maps, 6, 3), F.adaptive_avg_pool2d(maps, (6, 3)))


def test_deterministic_mode_uses_nothing_that_a_gpu_refuses(
    deterministic: None, valueless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU these have no deterministic gradient, or as for the last one no deterministic value."""
    used: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            used.append(
                f"{function.overloadpacket.__name__} {args[3] if 'nll_loss2d' in str(function) else ''}".strip()
            )
            return function(*args, **(kwargs or {}))

    model = pspnets().to(valueless)
    with Watch():
        inputs = model.data_preprocessor(batch(), True)
        model.parse_losses(model(**inputs, mode="loss"))[0].backward()
    assert any(name.startswith("convolution") for name in used)
    assert not {name for name in used if "adaptive" in name}
    reductions = {name for name in used if name.startswith("nll_loss2d_forward")}
    assert reductions == {"nll_loss2d_forward 0"}  # no reduction


def test_deterministic_mode_gives_cublas_its_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        toys.trained(tmp_path / "run", **{"randomness.deterministic": True})
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


# --- Several processes -----------------------------------------------------------------------------------------------


def test_synchronised_norms_are_the_same_modules_and_spare_the_critics(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pspnets()
    with pytest.raises(UserError, match=r"sync_bn: .* needs GPUs"):
        synchronise_norms(model)
    before = {name: (module, len(module._forward_hooks)) for name, module in model.named_modules()}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    synchronise_norms(model)
    assert {name: (module, len(module._forward_hooks)) for name, module in model.named_modules()} == before
    kinds = {name: type(m) for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds.pop("transfers.critic.loss.critic.norm") is nn.BatchNorm2d
    assert set(kinds.values()) == {nn.SyncBatchNorm}
    assert {type(m) for m in model.teachers["teacher"].network.modules()}.isdisjoint({nn.SyncBatchNorm})
    model.eval()(torch.randn(1, 3, SIZE, SIZE))  # in eval mode it works anywhere


@pytest.mark.parametrize(("rank", "message"), [(1, ""), (2, r"there are 2 GPUs; .*--nproc-per-node 2")])
def test_a_rank_joins_with_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, rank: int, message: str) -> None:
    joined: list[Any] = []
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", joined.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, device_id: joined.extend((backend, device_id)))
    if message:
        with pytest.raises(UserError, match=message):
            start_process_group("pytorch")
        assert joined == []
    else:
        assert start_process_group("pytorch")
        assert joined == [1, "nccl", torch.device("cuda", 1)]


@pytest.mark.parametrize("aux_weight", [0.4, 0.0])
@pytest.mark.parametrize("distilled", [False, True])
def test_a_head_that_the_criterion_leaves_out_is_no_fault_in_parallel(
    tmp_path: Path, distilled: bool, aux_weight: float
) -> None:
    network, criterion = PSPNet("resnet18", num_classes=CLASSES, width=0.25), SegmentationLoss(aux_weight=aux_weight)
    model: TaskModel = TaskModel(network, criterion)
    if distilled:
        taught = {"type": "PSPNet", "backbone": "resnet18", "num_classes": CLASSES, "width": 0.25}
        model = Distiller(network, {"pixel": TRANSFERS["pixel"]}, teacher=taught, criterion=criterion)
    assert model.skips_parameters == (aux_weight == 0)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = compat.DistillDataParallel(module=model.train(), find_unused_parameters=model.skips_parameters)
        optim = build_optimisers(wrapped, CLIPPED)
        for _ in range(2):
            wrapped.train_step(batch(), optim)
    finally:
        dist.destroy_process_group()


# --- Accumulated gradients beside a critic ---------------------------------------------------------------------------


def test_student_and_critic_count_iterations_and_keep_the_last_ones() -> None:
    model = toys.distiller(transfers={"critic": toys.ADVERSARIAL}).train()
    each = {"optimizer": {"type": "SGD", "lr": 0.1}, "accumulative_counts": 2}
    optim = build_optimisers(model, {**each, "critic": each})
    assert isinstance(optim, compat.StudentAndCritic)
    optim.initialize_count_status(model, 0, 3)
    moves: list[tuple[bool, bool]] = []
    for _ in range(3):
        before = [p.detach().clone() for p in (model.network.head.weight, *model.critics[0].parameters())]
        model.train_step(toys.batch(), optim)
        after = [model.network.head.weight, *model.critics[0].parameters()]
        changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
        moves.append((changed[0], changed[1]))
    assert moves == [(False, False), (True, True), (True, True)]
