"""The classification plugin against torchvision and scikit-learn."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from kd_classification.criterion import CrossEntropy
from kd_classification.datasets import CIFAR10, CIFAR100, Digits, ImageFolder
from kd_classification.decoder import TopKDecoder
from kd_classification.drawing import RIGHT, WRONG, ClassificationDrawing
from kd_classification.metrics import Accuracy
from kd_classification.networks import SmallClassifier, TorchvisionClassifier
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import top_k_accuracy_score
from torchvision import models

from kd_tasks.errors import UserError
from kd_tasks.taps import Taps
from kd_tasks.task import collate_samples


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# --- Networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "densenet121", "swin_t"])
def test_weights_and_outputs_are_those_of_torchvision(architecture: str) -> None:
    ours = TorchvisionClassifier(architecture, num_classes=7).eval()
    theirs = models.get_model(architecture, num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images)["logits"], theirs(images))


def test_taps_are_called_as_in_torchvision() -> None:
    network = TorchvisionClassifier("resnet18", num_classes=7).eval()
    images = torch.randn(2, 3, 64, 64)
    _, tapped = Taps(network, ["layer3", "avgpool", "layer1.0.bn2"], images).run(images)
    theirs = models.resnet18(num_classes=7).eval()
    theirs.load_state_dict(network.state_dict())
    stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    block = theirs.layer1[0]
    before_the_sum = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(stem)))))
    third = theirs.layer3(theirs.layer2(theirs.layer1(stem)))
    torch.testing.assert_close(tapped["layer1.0.bn2"], before_the_sum)
    torch.testing.assert_close(tapped["layer3"], third)
    torch.testing.assert_close(tapped["avgpool"], theirs.layer4(third).mean((2, 3), keepdim=True))


@pytest.mark.parametrize("network", [TorchvisionClassifier("resnet18", 5), SmallClassifier(4, 5)])
def test_networks_export_with_any_batch(network: torch.nn.Module) -> None:
    network.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(2, 3, 32, 32),), dynamic_shapes={"images": {0: batch}})
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(images)["logits"], network(images)["logits"])


def test_pretrained_weights_are_taken_but_for_a_classifier_of_another_length(monkeypatch: pytest.MonkeyPatch) -> None:
    published = {k: torch.full_like(v, 3) for k, v in models.resnet18().state_dict().items()}
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **_: published)
    network = TorchvisionClassifier("resnet18", num_classes=7, pretrained=True)
    assert (network.layer3[0].conv1.weight == 3).all()
    assert network.fc.weight.shape == (7, 512) and not (network.fc.weight == 3).any()
    assert (TorchvisionClassifier("resnet18", num_classes=1000, pretrained=True).fc.weight == 3).all()


def test_pretrained_weights_without_a_network_say_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, **_: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(UserError, match=r"resnet18-.*\.pth.*checkpoints"):
        TorchvisionClassifier("resnet18", pretrained=True)


@pytest.mark.parametrize("name", ["resnet81", "inception_v3"])
def test_unknown_architecture_names_the_nearest(name: str) -> None:
    with pytest.raises(UserError, match=rf"no '{name}'"):
        TorchvisionClassifier(name)


# --- Criterion, decoder, metric --------------------------------------------------------------------------------------


def test_cross_entropy_with_smoothing_is_the_formula() -> None:
    logits, label = torch.randn(6, 4, dtype=torch.bfloat16), torch.tensor([0, 1, 2, 3, 0, 1])
    target = F.one_hot(label, 4) * 0.9 + 0.1 / 4
    expected = -(target * torch.log_softmax(logits.float(), dim=1)).sum(1).mean()
    loss = CrossEntropy(label_smoothing=0.1)({"logits": logits}, {"label": label})["cross_entropy"]
    torch.testing.assert_close(loss, expected)


def test_a_label_beyond_the_logits_is_explained() -> None:
    with pytest.raises(UserError, match="label 9, but the network has 4 classes"):
        CrossEntropy()({"logits": torch.zeros(2, 4)}, {"label": torch.tensor([1, 9])})


def test_accuracy_is_that_of_scikit_learn() -> None:
    classes, logits = 8, torch.randn(50, 8)
    label = torch.cat([torch.arange(8), torch.randint(0, 7, (42,))])
    metric = Accuracy(topk=(1, 3))
    metric.dataset_meta = {"classes": [f"class {i}" for i in range(classes)]}
    for part in torch.arange(50).split(16):
        predictions = TopKDecoder(k=5)({"logits": logits[part]}, [{}] * len(part))
        metric.process({"targets": {"label": label[part]}}, predictions)
    result = metric.evaluate(50)
    names = list(range(classes))
    for k in (1, 3):
        expected = 100 * top_k_accuracy_score(label.numpy(), logits.numpy(), k=k, labels=names)
        assert result[f"top{k}"] == pytest.approx(expected)
        for c in names:
            own = label == c
            expected = 100 * top_k_accuracy_score(label[own].numpy(), logits[own].numpy(), k=k, labels=names)
            assert metric.per_class[f"class {c}"][f"top{k}"] == pytest.approx(expected)


def test_accuracy_asks_for_as_many_classes_as_it_needs() -> None:
    metric = Accuracy(topk=(1, 5))
    metric.dataset_meta = {"classes": list("abcdefgh")}
    with pytest.raises(UserError, match="k=5"):
        metric.process({"targets": {"label": torch.tensor([0])}}, TopKDecoder(k=2)({"logits": torch.zeros(1, 8)}, [{}]))


def test_with_few_classes_the_decoder_gives_all_of_them() -> None:
    (prediction,) = TopKDecoder(k=5)({"logits": torch.tensor([[0.0, 2.0, 1.0]])}, [{}])
    assert prediction["label"].tolist() == [1, 2, 0]
    assert prediction["scores"].sum().item() == pytest.approx(1.0)


# --- Image folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, names in {"train": ("zebra", "ant", "Bee"), "val": ("zebra", "ant")}.items():
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_image_folder_is_that_of_torchvision(folder: Path) -> None:
    ours, theirs = ImageFolder(folder, "train"), torchvision.datasets.ImageFolder(folder / "train")
    assert list(ours.metainfo["classes"]) == theirs.classes
    assert len(ours) == len(theirs)
    for item, (image, label) in zip(ours, theirs, strict=True):
        assert np.array_equal(item["inputs"].permute(1, 2, 0).numpy(), np.asarray(image))
        assert item["targets"]["label"] == label


def test_a_class_has_the_same_number_in_every_split(folder: Path) -> None:
    data = ImageFolder(folder, "val")
    assert data.metainfo["classes"] == ["Bee", "ant", "zebra"]
    assert {item["meta"]["path"].split("/")[1]: int(item["targets"]["label"]) for item in data} == {
        "ant": 1,
        "zebra": 2,
    }


def test_samples_of_several_sizes_collate_with_labels_as_one_vector(folder: Path) -> None:
    data = ImageFolder(folder, "train")
    batch = collate_samples([data[i] for i in (0, 1, 5)])
    assert isinstance(batch["inputs"], list)
    assert batch["targets"]["label"].tolist() == [0, 0, 1]


def test_image_folder_says_what_is_wrong(folder: Path) -> None:
    (folder / "val" / "anf").mkdir()
    with pytest.raises(UserError, match=r"no such class.*'ant'"):
        ImageFolder(folder, "val")
    (folder / "train" / "cow").mkdir()
    with pytest.raises(UserError, match=r"cow: this class has no images"):
        ImageFolder(folder, "train")
    with pytest.raises(UserError, match="no sample of the split 'test'"):
        ImageFolder(folder, "test")


# --- CIFAR -----------------------------------------------------------------------------------------------------------

NAMES = {10: [f"n{i}" for i in range(10)], 100: [f"n{i}" for i in range(100)]}


def batch_of(classes: int, seed: int, size: int = 7) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (size, 3072), dtype=np.uint8), rng.integers(0, classes, size).tolist()


def write_pickled(root: Path, classes: int, protocol: int = 2) -> None:
    kind = torchvision.datasets.CIFAR10 if classes == 10 else torchvision.datasets.CIFAR100
    base, key = root / kind.base_folder, "labels" if classes == 10 else "fine_labels"
    base.mkdir(parents=True)
    for seed, (name, _) in enumerate(kind.train_list + kind.test_list):
        data, labels = batch_of(classes, seed)
        (base / name).write_bytes(pickle.dumps({"data": data, key: labels}, protocol=protocol))
    (base / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: NAMES[classes]}, protocol=protocol))


def write_binary(root: Path, classes: int) -> None:
    base = root / ("cifar-10-batches-bin" if classes == 10 else "cifar-100-binary")
    base.mkdir(parents=True)
    names = (
        [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        if classes == 10
        else ["train.bin", "test.bin"]
    )
    for seed, name in enumerate(names):
        data, labels = batch_of(classes, seed)
        before = [np.array(labels, dtype=np.uint8)[:, None]]
        coarse = [] if classes == 10 else [np.zeros((len(labels), 1), dtype=np.uint8)]
        (base / name).write_bytes(np.concatenate([*coarse, *before, data], axis=1).tobytes())
    text = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
    (base / text).write_text("\n".join(NAMES[classes]) + "\n\n")


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("split", ["train", "test"])
def test_pickled_cifar_is_read_as_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, split: str, protocol: int
) -> None:
    write_pickled(tmp_path, classes, protocol)
    kind = torchvision.datasets.CIFAR10 if classes == 10 else torchvision.datasets.CIFAR100
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    theirs = kind(tmp_path, train=split == "train")
    ours = (CIFAR10 if classes == 10 else CIFAR100)(tmp_path, split)
    assert ours.metainfo["classes"] == theirs.classes
    assert len(ours) == len(theirs)
    for item, (image, label) in zip(ours, theirs, strict=True):
        assert np.array_equal(item["inputs"].permute(1, 2, 0).numpy(), np.asarray(image))
        assert item["targets"]["label"] == label


@pytest.mark.parametrize(("kind", "classes"), [(CIFAR10, 10), (CIFAR100, 100)])
def test_both_editions_hold_the_same(tmp_path: Path, kind: type[CIFAR10], classes: int) -> None:
    write_pickled(tmp_path / "python", classes)
    write_binary(tmp_path / "binary", classes)
    for split in ("train", "test"):
        pickled, binary = kind(tmp_path / "python", split), kind(tmp_path / "binary", split)
        assert pickled.metainfo == binary.metainfo
        assert np.array_equal(pickled.images, binary.images)
        assert np.array_equal(pickled.labels, binary.labels)


class Intruder:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return exec, (f"open({str(self.trace)!r}, 'w').close()",)


def test_code_in_a_batch_is_refused_and_not_run(tmp_path: Path) -> None:
    write_pickled(tmp_path, 10)
    trace = tmp_path / "trace"
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": Intruder(trace)}))
    with pytest.raises(UserError, match=r"test_batch: it asks for builtins\.exec.*not loaded"):
        CIFAR10(tmp_path, "test")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists()


def test_a_broken_batch_is_named(tmp_path: Path) -> None:
    write_pickled(tmp_path / "python", 10)
    path = tmp_path / "python" / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="data_batch_3: not a readable batch"):
        CIFAR10(tmp_path / "python", "train")
    path.unlink()
    with pytest.raises(UserError, match="data_batch_3 is missing"):
        CIFAR10(tmp_path / "python", "train")
    write_binary(tmp_path / "binary", 10)
    path = tmp_path / "binary" / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test_batch\.bin: \d+ bytes"):
        CIFAR10(tmp_path / "binary", "test")


# --- Digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_split_without_overlap_and_evenly() -> None:
    splits = {name: Digits(split=name) for name in ("train", "val", "test")}
    places = [item["meta"]["path"] for data in splits.values() for item in data]
    truth = load_digits()
    assert len(places) == len(set(places)) == len(truth.target)
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        labels = np.array([int(item["targets"]["label"]) for item in splits[name]])
        expected = share * np.bincount(truth.target)
        assert np.abs(np.bincount(labels, minlength=10) - expected).max() < 2


def test_a_few_digits_are_the_first_of_each_class() -> None:
    everything, few = Digits(split="train"), Digits(split="train", per_class=3)
    found = [int(item["targets"]["label"]) for item in few]
    assert sorted(found) == sorted(3 * list(range(10)))
    for label in range(10):
        first = [item["meta"]["path"] for item in everything if item["targets"]["label"] == label][:3]
        assert [item["meta"]["path"] for item in few if item["targets"]["label"] == label] == first


def test_digits_are_those_of_scikit_learn_enlarged() -> None:
    data, truth = Digits(split="val"), load_digits()
    for index in (0, 17, len(data) - 1):
        item = data[index]
        place = int(item["meta"]["path"].split("/")[1])
        assert item["targets"]["label"] == truth.target[place]
        coarse = F.avg_pool2d(item["inputs"].float(), 4)
        original = torch.from_numpy(truth.images[place]) * 255 / 16
        assert item["inputs"].shape == (3, 32, 32)
        assert torch.corrcoef(torch.stack([coarse[1].flatten(), original.flatten()]))[0, 1] > 0.97


# --- Drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("best", "colour"), [(1, RIGHT), (0, WRONG)])
def test_the_caption_shows_by_its_colour_whether_the_prediction_is_right(
    best: int, colour: tuple[int, int, int]
) -> None:
    drawing = ClassificationDrawing({"classes": ["ant", "bee"]})
    image = np.full((32, 32, 3), 255, dtype=np.uint8)
    prediction = {"label": torch.tensor([best, 1 - best]), "scores": torch.tensor([0.8, 0.2])}
    panels = dict(drawing.panels(image, {"label": torch.tensor(1)}, prediction))
    assert set(panels) == {"label", "prediction"}
    assert colour in {tuple(pixel) for pixel in panels["prediction"].reshape(-1, 3).tolist()}
    assert colour in {c for _, c in drawing.legend()}
    assert set(dict(drawing.panels(image, {"label": torch.tensor(1)}, None))) == {"label"}
    assert set(dict(drawing.panels(image, {}, prediction))) == {"image", "prediction"}
