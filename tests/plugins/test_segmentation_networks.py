"""Segmentation networks, criterion and decoder: sizes, counts, gradients, export."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from kd_segmentation.criterion import SegmentationLoss
from kd_segmentation.decoder import SegmentationDecoder
from kd_segmentation.networks import ESPNet, PSPNet, SmallSegNet, region_means
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18
from torchvision.models._utils import IntermediateLayerGetter

from kd_tasks.errors import UserError
from kd_tasks.registry import CRITERIA, DECODERS, NETWORKS
from kd_tasks.task import ImagePreprocessor, TaskModel, collate_samples, resized_logits
from kd_tasks.vision.backbones import MobileNetV2, ResNet, build_backbone

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = {
    "psp_resnet18": lambda: PSPNet("resnet18", num_classes=5, width=0.25),
    "psp_deep_resnet50": lambda: PSPNet("resnet50", num_classes=5, width=0.25, channels=16, stem="deep"),
    "psp_mobilenet": lambda: PSPNet("mobilenet_v2", num_classes=5, width=0.25),
    "espnet": lambda: ESPNet(num_classes=5, p=1, q=1),
    "espnet_c_3_classes": lambda: ESPNet(num_classes=3, p=1, q=1, decoder=False),
    "espnet_2_classes": lambda: ESPNet(num_classes=2, p=1, q=1),
    "small": lambda: SmallSegNet(num_classes=5, width=8),
    "small_deep": lambda: SmallSegNet(num_classes=5, width=4, depth=2),
}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def seeded(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = SMALL[name]()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return network


# --- Networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "millions", "channels", "stages"),
    [
        ("resnet101", 70.44, 512, [(256, 129), (512, 65), (1024, 65), (2048, 65)]),
        ("resnet18", 13.07, 128, [(64, 129), (128, 65), (256, 65), (512, 65)]),
    ],
)
def test_official_geometry_and_parameter_counts_of_pspnet(backbone, millions, channels, stages):
    with torch.device("meta"):
        network = PSPNet(backbone, num_classes=19, stem="deep").train()
        features = network.backbone(torch.empty(2, 3, 512, 512))
        pyramid = network.psp(features[3])
        outputs = network(torch.empty(2, 3, 512, 512))
    assert round(parameters(network) / 1e6, 2) == millions
    assert [(f.shape[1], f.shape[2], f.shape[3]) for f in features] == [(c, s, s) for c, s in stages]
    assert pyramid.shape == (2, channels, 65, 65)
    assert {name: tuple(o.shape) for name, o in outputs.items()} == {
        "logits": (2, 19, 65, 65),
        "aux": (2, 19, 65, 65),
    }


@pytest.mark.parametrize(("decoder", "millions"), [(True, 0.365), (False, 0.349)])
def test_parameter_counts_of_espnet(decoder, millions):
    """The published 0.364 M of ESPNet with 20 classes, p = 2, q = 8; ESPNet-C lacks the decoder alone."""
    with torch.device("meta"):
        network = ESPNet(num_classes=20, p=2, q=8, decoder=decoder)
    assert parameters(network) / 1e6 == pytest.approx(millions, abs=6e-4)


def test_width_makes_a_teacher_and_a_student_of_the_small_network():
    with torch.device("meta"):
        teacher, student = SmallSegNet(11, width=32), SmallSegNet(11, width=6)
    assert 0.9e6 < parameters(teacher) < 1.5e6
    assert 40e3 < parameters(student) < 60e3


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 50), (71, 97)])
def test_any_size_gives_logits_at_the_stride_rounded_up(name, size):
    network = seeded(name)
    classes = {"espnet_c_3_classes": 3, "espnet_2_classes": 2}.get(name, 5)
    images = torch.rand(2, 3, *size)
    trained, tested = network.train()(images), network.eval()(images)
    stride = 1 if name in ("espnet", "espnet_2_classes") else 4 if name.startswith("small") else 8
    expected = tuple(-(-length // stride) for length in size)
    if "deep_resnet" not in name:  # its pooling rounds up, which may add a pixel
        assert tuple(tested["logits"].shape) == (2, classes, *expected)
    assert trained["logits"].shape == tested["logits"].shape
    assert list(tested) == ["logits"]
    assert list(trained) == (["logits", "aux"] if name.startswith("psp") else ["logits"])


def test_aux_head_can_be_left_out():
    assert list(PSPNet("resnet18", 5, width=0.25, aux_head=False).train()(torch.rand(2, 3, 32, 32))) == ["logits"]


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_finite_gradient_in_channels_last(name):
    network = seeded(name).train().to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 65, 96).to(memory_format=torch.channels_last)
    sum(output.float().pow(2).mean() for output in network(images).values()).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


@pytest.mark.parametrize("name", ["psp_resnet18", "psp_mobilenet", "espnet", "small"])
def test_memory_format_does_not_change_the_outputs(name):
    network, images = seeded(name).eval(), torch.rand(2, 3, 40, 56)
    with torch.no_grad():
        plain = network(images)["logits"]
        last = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))["logits"]
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_taps_before_an_activation_are_not_changed_by_it():
    network, seen = PSPNet("resnet18", 5, width=0.25).eval(), {}

    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        seen[module] = output, output.clone()

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(keep)
    network(torch.rand(1, 3, 32, 32))
    assert len(seen) > 20
    assert all(torch.equal(*pair) for pair in seen.values())
    assert not any(getattr(module, "inplace", False) for module in MobileNetV2().modules())


def test_resnet_at_stride_32_is_torchvisions():
    reference = resnet18(weights=None).eval()
    ours = ResNet("resnet18", output_stride=32).eval()
    ours.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    wanted = IntermediateLayerGetter(reference, {f"layer{i}": str(i) for i in range(1, 5)})
    images = torch.rand(1, 3, 64, 96)
    for mine, theirs in zip(ours(images), wanted(images).values(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_dilation_takes_the_place_of_the_stride(name):
    dilated = build_backbone(name).eval()
    with torch.no_grad():
        stages = dilated(torch.rand(1, 3, 64, 96))
    assert tuple(stage.shape[1] for stage in stages) == dilated.channels
    assert [tuple(stage.shape[2:]) for stage in stages] == [(16, 24), (8, 12), (8, 12), (8, 12)]
    assert dilated.strides == (4, 8, 8, 8)
    for layer, dilation in ((dilated.layer2, 1), (dilated.layer3, 2), (dilated.layer4, 4)):
        kernels = [part for part in layer.modules() if getattr(part, "kernel_size", None) == (3, 3)]
        assert {part.dilation for part in kernels} == {(dilation, dilation)}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_dilated_block_computes_on_every_second_pixel_what_the_strided_network_computes(name):
    strided, dilated = (build_backbone(name, output_stride=s).eval() for s in (16, 8))
    dilated.load_state_dict(strided.state_dict())
    first = next(part for part in dilated.layer3[1].modules() if isinstance(part, nn.Conv2d))
    maps = torch.randn(1, first.in_channels, 14, 10)
    with torch.no_grad():
        coarse, fine = strided.layer3[1](maps[..., ::2, ::2]), dilated.layer3[1](maps)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(65, 65), (8, 13), (4, 5)])
def test_exported_pyramid_averages_like_the_trained_one(bins, size):
    class Pool(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return region_means(maps, bins, bins)

    maps = torch.rand(2, 3, *size)
    exported = torch.export.export(Pool(), (maps,))
    assert not any("pool" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(maps), F.adaptive_avg_pool2d(maps, bins))


@pytest.mark.parametrize("name", ["psp_resnet18", "espnet", "small"])
def test_onnx_with_dynamic_batch_agrees_with_torch(name, tmp_path):
    network, file = seeded(name).eval(), tmp_path / "student.onnx"
    torch.onnx.export(
        network,
        (torch.rand(2, 3, 72, 88),),
        file,
        dynamo=True,
        verbose=False,
        external_data=False,
        opset_version=20,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    onnx.checker.check_model(onnx.load(file))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.rand(batch, 3, 72, 88)
        with torch.no_grad():
            expected = network(images)["logits"].numpy()
        np.testing.assert_allclose(
            session.run(["logits"], {"image": images.numpy()})[0], expected, rtol=1e-4, atol=1e-4
        )


def test_faults_of_a_person_are_named():
    with pytest.raises(UserError, match="Did you mean 'resnet101'"):
        PSPNet("resnet110")
    with pytest.raises(UserError, match="stem 'deeep'"):
        build_backbone("resnet18", stem="deeep")
    with pytest.raises(UserError, match="mobilenet_v2"):
        build_backbone("mobilenet_v2", stem="deep")
    with pytest.raises(UserError, match=r"width 0\.5"):
        build_backbone("resnet18", width=0.5, pretrained=True)
    with pytest.raises(UserError, match="IMAGENET1K_V1"):
        build_backbone("resnet18", pretrained="IMAGENET1K_V9")
    with pytest.raises(UserError, match=r"no file nowhere\.pth"):
        build_backbone("resnet18", pretrained="nowhere.pth")
    with pytest.raises(UserError, match="width and depth"):
        SmallSegNet(width=0)


@pytest.mark.parametrize(("name", "build"), [("resnet18", resnet18), ("mobilenet_v2", mobilenet_v2)])
def test_pretrained_weights_of_a_file_reach_the_backbone(name, build, tmp_path):
    reference = build(weights=None)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(name, pretrained=str(tmp_path / "weights.pth"))
    given = {value.data_ptr(): value for value in reference.state_dict().values() if value.dim() == 4}
    wanted = [v for v in backbone.state_dict().values() if v.dim() == 4]
    assert len(wanted) > 15
    assert all(any(v.shape == g.shape and torch.equal(v, g) for g in given.values()) for v in wanted)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save(mobilenet_v2(weights=None).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"conv1\.weight"):
        build_backbone("resnet18", pretrained=str(tmp_path / "weights.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="not a file of weights"):
        build_backbone("resnet18", pretrained=str(tmp_path / "text.pth"))


def test_weights_that_cannot_be_downloaded_name_the_file_to_place(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"no network.*resnet18-\w+\.pth.*checkpoints/resnet18-\w+\.pth"):
        build_backbone("resnet18", pretrained=True)


def test_configs_find_networks_criterion_and_decoder():
    network = NETWORKS.build({"type": "PSPNet", "backbone": "resnet18", "num_classes": 4, "width": 0.25})
    assert network.head.out_channels == 4
    assert CRITERIA.build({"type": "SegmentationLoss"}).aux_weight == 0.4
    assert DECODERS.build({"type": "SegmentationDecoder"}).align_corners


# --- Criterion -------------------------------------------------------------------------------------------------------


def fixture() -> tuple[Tensor, Tensor, Tensor, dict]:
    data = np.load(FIXTURES / "losses" / "skd_dsn_ce.npz")
    main, aux = (torch.from_numpy(data[key]).requires_grad_() for key in ("in_main", "in_aux"))
    return main, aux, torch.from_numpy(data["in_label"]), data


def test_loss_and_gradient_are_those_of_structured_distillation():
    main, aux, labels, data = fixture()
    losses = SegmentationLoss()({"logits": main, "aux": aux}, {"mask": labels})
    total = sum(losses.values())
    total.backward()
    assert list(losses) == ["ce", "aux_ce"]
    assert json.loads(str(data["hp"]))["aux_weight"] == 0.4
    np.testing.assert_allclose(total.item(), data["out"], rtol=1e-12)
    np.testing.assert_allclose(main.grad, data["grad_main"], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(aux.grad, data["grad_aux"], rtol=1e-9, atol=1e-15)


def test_labels_of_bytes_give_the_same_loss():
    main, aux, labels, _ = fixture()
    outputs = {"logits": main, "aux": aux}
    wide, narrow = (SegmentationLoss()(outputs, {"mask": m}) for m in (labels, labels.to(torch.uint8)))
    assert all(torch.equal(wide[name], narrow[name]) for name in wide)


@pytest.mark.parametrize("class_weight", [None, (0.5, 2.0, 1.0, 0.0)])
def test_a_batch_without_labels_gives_zero_and_zero_gradient(class_weight):
    main, aux, labels, _ = fixture()
    losses = SegmentationLoss(class_weight=class_weight)(
        {"logits": main, "aux": aux}, {"mask": torch.full_like(labels, 255)}
    )
    sum(losses.values()).backward()
    assert [value.item() for value in losses.values()] == [0, 0]
    assert main.grad.abs().max() == aux.grad.abs().max() == 0


def test_class_weights_make_a_weighted_mean():
    main, _, labels, _ = fixture()
    weight = (0.5, 2.0, 1.0, 0.25)
    loss = SegmentationLoss(class_weight=weight)({"logits": main}, {"mask": labels})["ce"]
    maps = F.interpolate(main, size=labels.shape[-2:], mode="bilinear", align_corners=True)
    expected = F.cross_entropy(maps, labels, torch.tensor(weight, dtype=torch.float64), ignore_index=255)
    torch.testing.assert_close(loss, expected)


def test_loss_stays_in_float32_under_autocast():
    main, _, labels, _ = fixture()
    exact = SegmentationLoss()({"logits": main.bfloat16().float()}, {"mask": labels})["ce"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = SegmentationLoss()({"logits": main.bfloat16()}, {"mask": labels})["ce"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact)


def test_masks_of_several_sizes_are_refused():
    with pytest.raises(UserError, match="crop or resize"):
        SegmentationLoss()({"logits": torch.rand(2, 4, 3, 3)}, {"mask": [torch.zeros(9, 9), torch.zeros(9, 8)]})


# --- Decoder ---------------------------------------------------------------------------------------------------------


def meta(original, size=None, padded=None):
    entries = {"original_size": original, "input_size": size or original}
    return entries | ({"padded_size": padded} if padded else {})


@pytest.mark.parametrize("align_corners", [True, False])
def test_decoder_resizes_logits_and_takes_the_best_class(align_corners):
    logits = torch.randn(3, 4, 9, 7)
    predictions = SegmentationDecoder(align_corners)({"logits": logits}, [meta((33, 20))] * 3)
    maps = F.interpolate(logits, size=(33, 20), mode="bilinear", align_corners=align_corners)
    assert len(predictions) == 3
    for prediction, expected in zip(predictions, maps.argmax(1), strict=True):
        assert prediction["mask"].dtype == torch.uint8
        assert torch.equal(prediction["mask"].long(), expected)


def test_decoder_cuts_padding_off_before_it_resizes():
    inside = torch.randn(1, 4, 16, 24)
    padded = F.pad(inside, (0, 8, 0, 16), value=1e3)
    (prediction,) = SegmentationDecoder()({"logits": padded}, [meta((40, 30), (16, 24), (32, 32))])
    expected = F.interpolate(inside, size=(40, 30), mode="bilinear", align_corners=True).argmax(1)[0]
    assert torch.equal(prediction["mask"].long(), expected)


def test_samples_of_several_sizes_decode_as_they_do_alone():
    logits = torch.randn(3, 4, 8, 8)
    metas = [meta((20, 31), (32, 24), (32, 32)), meta((32, 32)), meta((7, 9), (20, 32), (32, 32))]
    together = SegmentationDecoder()({"logits": logits}, metas)
    for i, m in enumerate(metas):
        (alone,) = SegmentationDecoder()({"logits": logits[i : i + 1]}, [m])
        assert together[i]["mask"].shape == m["original_size"]
        assert torch.equal(together[i]["mask"], alone["mask"])


def test_large_maps_are_decoded_in_parts(monkeypatch):
    logits, metas = torch.randn(5, 4, 8, 8), [meta((20, 31))] * 5
    whole = SegmentationDecoder()({"logits": logits}, metas)
    monkeypatch.setattr("kd_segmentation.decoder.ELEMENTS_AT_ONCE", 2 * 4 * 20 * 31)
    parts = SegmentationDecoder()({"logits": logits}, metas)
    assert len(parts) == 5
    assert all(torch.equal(a["mask"], b["mask"]) for a, b in zip(whole, parts, strict=True))


def test_half_precision_logits_are_resized_in_float32():
    logits = torch.randn(1, 4, 8, 8).bfloat16()
    (half,) = SegmentationDecoder()({"logits": logits}, [meta((64, 64))])
    (full,) = SegmentationDecoder()({"logits": logits.float()}, [meta((64, 64))])
    assert torch.equal(half["mask"], full["mask"])


def test_more_classes_than_a_byte_holds_are_refused():
    with pytest.raises(UserError, match="256 classes"):
        SegmentationDecoder()({"logits": torch.zeros(1, 256, 2, 2)}, [meta((2, 2))])


def test_preprocessor_tells_the_decoder_of_its_padding():
    """Two images of different sizes, padded together, predict what each predicts alone (1x1 network)."""

    class Pixelwise(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"logits": images}

    model = TaskModel(Pixelwise(), decoder=SegmentationDecoder(), data_preprocessor=ImagePreprocessor(pad_divisor=16))
    sizes = [(20, 31), (24, 12)]
    samples = [
        {
            "inputs": torch.randint(0, 255, (3, *size), dtype=torch.uint8),
            "targets": {},
            "meta": meta((2 * size[0] - 1, 2 * size[1] - 1), size),
        }
        for size in sizes
    ]
    together = model.val_step(collate_samples(samples))
    for sample, prediction in zip(samples, together, strict=True):
        image = model.data_preprocessor.normalise(sample["inputs"].float())
        expected = resized_logits(image, sample["meta"], align_corners=True).argmax(0)
        assert torch.equal(prediction["mask"].long(), expected)
