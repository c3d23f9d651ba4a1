"""The task model: batches, the preprocessor, modes, losses."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor, nn

from kd_tasks.engine.checkpoints import save_student
from kd_tasks.engine.compat import build_optimisers
from kd_tasks.registry import NETWORKS
from kd_tasks.task import ImagePreprocessor, TaskModel, collate_samples, resized_logits

NEUTRAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def sample(height: int, width: int, label: int = 0) -> dict:
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    meta = {"original_size": (height, width), "input_size": (height, width)}
    return {"inputs": image, "targets": {"label": torch.tensor(label), "mask": image[0]}, "meta": meta}


def task_model(**parts: object) -> TaskModel:
    return TaskModel({"type": "ToyNet"}, {"type": "ToyCriterion"}, {"type": "ToyDecoder"}, **parts)  # type: ignore[arg-type]


def test_samples_of_one_shape_are_stacked_and_others_stay_a_list() -> None:
    same = collate_samples([sample(4, 6, 1), sample(4, 6, 2)])
    assert same["inputs"].shape == (2, 3, 4, 6)
    assert same["targets"]["label"].tolist() == [1, 2]
    mixed = collate_samples([sample(4, 6), sample(5, 6)])
    assert [tuple(i.shape) for i in mixed["inputs"]] == [(3, 4, 6), (3, 5, 6)]
    assert isinstance(mixed["targets"]["mask"], list) and isinstance(mixed["targets"]["label"], Tensor)


def test_images_are_normalised() -> None:
    batch = collate_samples([sample(4, 6), sample(4, 6)])
    preprocessor = ImagePreprocessor(mean=(10, 20, 30), std=(2, 4, 8))
    expected = (batch["inputs"].float() - torch.tensor([10.0, 20, 30]).view(3, 1, 1)) / torch.tensor([2.0, 4, 8]).view(
        3, 1, 1
    )
    torch.testing.assert_close(preprocessor(batch)["inputs"], expected)


def test_images_of_several_sizes_are_padded_at_the_right_and_the_bottom() -> None:
    first, second = sample(4, 6), sample(5, 3)
    batch = ImagePreprocessor(pad_divisor=4)(collate_samples([first, second]))
    images = batch["inputs"]
    assert images.shape == (2, 3, 8, 8)
    alone = ImagePreprocessor()(collate_samples([first]))["inputs"][0]
    torch.testing.assert_close(images[0, :, :4, :6], alone)
    assert not images[0, :, 4:].any() and not images[0, :, :, 6:].any()
    assert not images[1, :, 5:].any() and not images[1, :, :, 3:].any()
    assert [meta["padded_size"] for meta in batch["meta"]] == [(8, 8), (8, 8)]


def test_meta_is_not_looked_through() -> None:
    lanes = [[(float(i), 2.0 * i) for i in range(50)]]
    batch = collate_samples([{**sample(4, 6), "meta": {"lanes": lanes}}] * 2)
    prepared = ImagePreprocessor()(batch)
    assert all(meta["lanes"] is lanes for meta in prepared["meta"])


def test_channels_last() -> None:
    images = ImagePreprocessor(channels_last=True)(collate_samples([sample(4, 6)] * 2))["inputs"]
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_logits_are_resized_to_the_original_without_the_padding() -> None:
    ramp = torch.arange(8.0).view(1, 1, 8).expand(2, 8, 8)
    meta = {"input_size": (8, 4), "padded_size": (8, 8), "original_size": (16, 8)}
    expected = F.interpolate(ramp[None, :, :, :4], size=(16, 8), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resized_logits(ramp, meta, align_corners=False), expected)


def test_modes() -> None:
    model = task_model().eval()
    data = model.data_preprocessor(toys.batch())
    outputs = model(data["inputs"])
    assert torch.equal(outputs["logits"], model.network(data["inputs"])["logits"])
    losses = model(**data, mode="loss")
    torch.testing.assert_close(losses["labels"], F.cross_entropy(outputs["logits"], data["targets"]["label"]))
    predictions = model(**data, mode="predict")
    assert [p["label"] for p in predictions] == outputs["logits"].argmax(1).tolist()
    assert model.val_step(toys.batch()) == predictions
    with pytest.raises(ValueError, match="mode is 'losses'"):
        model(data["inputs"], mode="losses")
    with pytest.raises(ValueError, match="no decoder"):
        TaskModel({"type": "ToyNet"})(data["inputs"], mode="predict")


def test_every_term_is_summed_whatever_its_name() -> None:
    terms = {"accuracy": torch.tensor(1.0), "loss": torch.tensor(2.0), "x": torch.tensor(4.0, dtype=torch.bfloat16)}
    total, log = task_model().parse_losses(terms)
    assert total == 7 and log["loss"] == 7 and log["accuracy"] == 1


def test_a_step_trains_the_network() -> None:
    torch.manual_seed(0)
    model = task_model().train()
    optim = build_optimisers(model, {"optimizer": {"type": "Adam", "lr": 0.03}})
    values = [float(model.train_step(toys.batch(), optim)["loss"]) for _ in range(20)]
    assert values[-1] < 0.7 * values[0]


@NETWORKS.register
class ToySelfInitialising(toys.ToyNet):
    """A network with a method of a name that mmengine calls before training."""

    def init_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def test_mmengines_initialisation_does_not_overwrite_loaded_weights(tmp_path: Path) -> None:
    trained = toys.ToyNet()
    save_student(trained, tmp_path / "student.pth", {})
    model = TaskModel({"type": "ToySelfInitialising"}, checkpoint=str(tmp_path / "student.pth"))
    model.init_weights()
    for key, value in trained.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value)
