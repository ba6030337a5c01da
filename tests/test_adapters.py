"""Where hf-cam looks: every family of the catalogue on tiny random models and pictures that are not square."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_cam
from benchmarks.tiny_models import Case, settings
from hf_cam.cam import CAM
from hf_cam.errors import LayerError, LayoutError, ModelError, NoGradientError, OptionError, TargetError
from hf_cam.layouts import AnyLayout, Layout, Reshape, read_layouts, token_grids
from hf_cam.target_layers.adapter import Adapter
from hf_cam.target_layers.catalogue import Entry, catalogue, resolve_layer
from hf_cam.target_layers.infer import infer_adapter
from hf_cam.testing import check_adapter
from nets import make
from pictures import SIZE, pictures

# model class, layer, prefix (None: a feature map)
FAMILIES = {
    "vit": ("ViTForImageClassification", "vit.layers.1.layernorm_before", 1),
    "vit_msn": ("ViTMSNForImageClassification", "vit.layers.1.layernorm_before", 1),
    "deit": ("DeiTForImageClassification", "deit.layers.1.layernorm_before", 2),
    "deit_distilled": ("DeiTForImageClassificationWithTeacher", "deit.layers.1.layernorm_before", 2),
    "beit": ("BeitForImageClassification", "beit.layers.3", 1),
    "dinov2": ("Dinov2ForImageClassification", "dinov2.encoder.layer.1", 1),
    "dinov2_with_registers": (
        "Dinov2WithRegistersForImageClassification",
        "dinov2_with_registers.encoder.layer.1",
        5,
    ),
    "dinov3_vit": ("DINOv3ViTModel", "model.layer.1.norm1", 1),
    "dinov3_convnext": ("DINOv3ConvNextModel", "model.stages.3", None),
    "siglip": ("SiglipForImageClassification", "vision_model.encoder.layers.1", 0),
    "swin": ("SwinForImageClassification", "swin.layernorm", 0),
    "swinv2": ("Swinv2ForImageClassification", "swinv2.layernorm", 0),
    "convnext": ("ConvNextForImageClassification", "convnext.encoder.stages.3", None),
    "convnextv2": ("ConvNextV2ForImageClassification", "convnextv2.encoder.stages.3", None),
    "resnet": ("ResNetForImageClassification", "resnet.encoder.stages.3", None),
    "regnet": ("RegNetForImageClassification", "regnet.encoder.stages.3", None),
    "efficientnet": ("EfficientNetForImageClassification", "efficientnet.encoder.top_activation", None),
    "mobilevit": ("MobileViTForImageClassification", "mobilevit.conv_1x1_exp", None),
    "mobilevitv2": ("MobileViTV2ForImageClassification", "mobilevitv2.encoder.layer.4", None),
    "pvt": ("PvtForImageClassification", "pvt.encoder.block.3.0.layer_norm_1", 1),
    "pvt_v2": ("PvtV2ForImageClassification", "pvt_v2.encoder", None),
    "segformer": ("SegformerForImageClassification", "segformer.stages.3", None),
}


def family(name: str) -> Case:
    model_class = FAMILIES[name][0]
    return Case("image-classification", getattr(hf, model_class).config_class.model_type, model_class)


def build(name: str) -> nn.Module:
    return family(name).build()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_is_found_in_the_catalogue_and_its_layout_is_confirmed(name: str) -> None:
    _, layer, prefix = FAMILIES[name]
    net = build(name)
    adapter = infer_adapter(net)
    assert adapter.origin == "catalogue"
    assert adapter.layers == (layer,)
    [layout] = adapter.layouts
    assert (layout.prefix, layout.axes) == ((prefix, "b (h w) c") if prefix is not None else (0, "b c h w"))
    [check] = check_adapter(net, adapter, inputs=family(name).inputs(net))
    assert check.verdict == "confirmed"
    assert check.coverage == 1
    rows, columns = check.grid
    assert columns > rows or name == "pvt"  # which takes square pictures only


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_config_alone_gives_the_same_adapter(name: str) -> None:
    net = build(name)
    config = type(net.config).from_dict(net.config.to_dict())
    config.architectures = [type(net).__name__]
    assert infer_adapter(config) == infer_adapter(net)


@pytest.mark.parametrize("name", ["vit", "deit", "beit", "dinov2", "siglip"])
@pytest.mark.parametrize("size", [(48, 160), (160, 48)])
def test_other_sizes_interpolate_the_positions_by_themselves(name: str, size: tuple[int, int]) -> None:
    net = replace(family(name), picture=(64, 64)).build()  # transformers resizes positions of square pictures only
    maps = CAM(net)(torch.randn(3, 3, *size), targets=[0, 1, 0])
    assert maps.shape == (3, *size)
    assert maps.amax((1, 2)).gt(0.99).all()


def test_a_batch_of_any_size_has_the_same_grid() -> None:
    cam = CAM(make("swin"))
    for batch in (1, 2, 5):
        assert cam.saliency(pictures(batch), lambda _, n=batch: [[0] * n]).raw[0].shape == (1, batch, 4, 6)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (70, 90)])
def test_swin_grids_round_up(size: tuple[int, int]) -> None:
    net = make("swin")
    saliency = CAM(net).saliency(torch.randn(1, 3, *size), lambda outputs: [[0]])
    assert saliency.raw[0].shape[-2:] == (-(-size[0] // 16), -(-size[1] // 16))


def test_a_loaded_model_is_inferred_without_running_it() -> None:
    net = build("vit")
    net.forward = lambda *args, **kwargs: pytest.fail("the model ran")
    started = time.perf_counter()
    infer_adapter(net)
    assert time.perf_counter() - started < 5  # the benchmark measures it; this only catches a forward


def test_wrong_token_count_names_the_layer_and_what_was_expected() -> None:
    adapter = Adapter(("vit.layers.1.layernorm_before",), (Layout("b (h w) c", prefix=2, patch=(16, 16)),))
    with pytest.raises(LayoutError, match=r"layers\.1\.layernorm_before.*25 tokens = 2 prefix \+ 23 cells.*reshape="):
        adapter.to_spatial(torch.zeros(1, 25, 32), SIZE)
    with pytest.raises(LayoutError, match="fit no grid"):
        adapter.to_spatial(torch.zeros(1, 24, 32), SIZE)


def test_a_layer_without_gradient_names_the_one_to_use() -> None:
    with pytest.raises(NoGradientError, match=r"Use layers=\['vit\.layers\.1\.layernorm_before'\]"):
        CAM(build("vit"), layers="vit.layers.1")(pictures(1))


def test_a_layer_in_no_order_of_space_names_the_one_to_use() -> None:
    with pytest.raises(LayoutError, match=r"Use layers=\['vit\.layers\.1\.layernorm_before'\]"):
        CAM(build("vit"), layers="classifier")(pictures(1))


def test_the_callers_layer_is_read_off_its_shape() -> None:
    net = build("vit")
    ours = CAM(net, layers="vit.layers.0")(pictures(1))
    byhand = CAM(net, layers="vit.layers.0", reshape=lambda t: t[:, 1:].transpose(1, 2).reshape(-1, 32, 4, 6))
    torch.testing.assert_close(ours, byhand(pictures(1)))


def test_each_of_several_layers_gives_the_map_that_it_gives_alone() -> None:
    net, x = build("vit"), pictures(1)
    layers = ["vit.layers.0", "vit.layers.1.layernorm_before"]
    both = CAM(net, layers=layers).saliency(x, lambda outputs: [[0]])
    alone = [CAM(net, layers=layer).saliency(x, lambda outputs: [[0]]).raw[0] for layer in layers]
    for together, single in zip(both.raw, alone, strict=True):
        torch.testing.assert_close(together, single)


def test_cam_config_is_written_read_and_preferred(tmp_path: Path) -> None:
    net = build("vit")
    net.save_pretrained(tmp_path)
    chosen = Adapter(
        ("vit.layers.0",), (Layout("b (h w) c", prefix=1, patch=(16, 16)),), method="layercam", reason="mine"
    )
    assert chosen.save_pretrained(tmp_path) == tmp_path / "cam_config.json"
    assert Adapter.from_pretrained(tmp_path).layers == chosen.layers
    loaded = hf.ViTForImageClassification.from_pretrained(tmp_path)
    inferred = infer_adapter(loaded)
    assert (inferred.layers, inferred.layouts, inferred.method) == (chosen.layers, chosen.layouts, "layercam")
    assert inferred.origin == "cam_config"
    assert CAM(loaded, "auto").method.id == "layercam"
    assert infer_adapter(loaded, layers="vit.layers.1.layernorm_before").origin == "caller"


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ("{", LayoutError, "is not valid JSON"),
        ('{"layers": ["x"]}', LayoutError, "not a valid"),
        ('{"layers": ["nope"], "layouts": [{"axes": "b c h w"}]}', LayerError, "nope"),
        ('{"layers": ["vit.layers.0"], "layouts": [{"axes": "c b h w"}]}', LayoutError, "unknown axes"),
    ],
)
def test_a_broken_cam_config_is_an_error(tmp_path: Path, content: str, error: type[Exception], match: str) -> None:
    net = build("vit")
    net.save_pretrained(tmp_path)
    (tmp_path / "cam_config.json").write_text(content)
    with pytest.raises(error, match=match):
        infer_adapter(hf.ViTForImageClassification.from_pretrained(tmp_path))


def test_an_adapter_with_a_function_cannot_be_written() -> None:
    with pytest.raises(LayoutError, match="cannot"):
        Adapter(("x",), (Reshape(lambda t: t),)).to_dict()
    with pytest.raises(ModelError, match="neither a folder nor a repo"):
        Adapter.from_pretrained("/nonexistent/folder")


def test_an_adapter_survives_json() -> None:
    adapter = Adapter(
        ("a", "b"), (Layout("b c h w"), Layout("b (h w) c", 1, 2, (16, 8))), "layercam", "cam_config", "why"
    )
    assert Adapter.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter


def test_every_entry_of_the_catalogue_gives_its_reason_and_a_known_method() -> None:
    for entry in catalogue():
        assert entry.reason, entry
        assert entry.method in hf_cam.list_methods(), entry
        assert entry.model_types, entry


def test_no_two_entries_claim_one_model() -> None:
    claims = [(model_type, head) for entry in catalogue() for model_type in entry.model_types for head in entry.heads]
    assert len(claims) == len(set(claims))


def test_heads_are_matched_by_pattern() -> None:
    entry = Entry("x", ("vit",), ("layers[-1]",), "b c h w", heads=("*ForImageClassification",))
    assert entry.matches("vit", "ViTForImageClassification")
    assert not entry.matches("vit", "ViTModel")
    assert not entry.matches("deit", "DeiTForImageClassification")


def test_a_layer_pattern_names_one_layer_or_is_refused() -> None:
    net = nn.ModuleDict({"tower": nn.ModuleDict({"layers": nn.ModuleList([nn.Identity() for _ in range(12)])})})
    assert resolve_layer(net, "layers[-1]") == "tower.layers.11"
    assert resolve_layer(net, "blocks|layers[-1]") == "tower.layers.11"
    with pytest.raises(LayerError, match="no layer 'blocks"):
        resolve_layer(net, "blocks[-1]")
    twins = nn.ModuleDict(
        {"text": nn.ModuleDict({"norm": nn.Identity()}), "vision": nn.ModuleDict({"norm": nn.Identity()})}
    )
    with pytest.raises(LayerError, match="several"):
        resolve_layer(twins, "norm")
    assert resolve_layer(twins, "vision.norm") == "vision.norm"


@pytest.mark.parametrize(
    ("cells", "size", "patch", "grids"),
    [
        (24, (96, 64), None, [(6, 4)]),
        (24, (64, 96), (16, 16), [(4, 6)]),
        (15, (70, 150), (4, 4), [(3, 5)]),  # a stride of 32 that rounds up, three stages after the patch
        (8, (70, 150), (4, 4), [(2, 4)]),  # and one that rounds down
        (35, (70, 98), (14, 14), [(5, 7)]),
        (23, (64, 96), None, []),
        (0, (64, 96), None, []),
    ],
)
def test_tokens_fit_the_grids_of_the_pictures_shape(
    cells: int, size: tuple[int, int], patch: tuple[int, int] | None, grids: list[tuple[int, int]]
) -> None:
    assert token_grids(cells, size, patch) == grids


def test_layouts_put_every_value_at_its_place() -> None:
    image = torch.arange(2 * 5 * 4 * 6).reshape(2, 5, 4, 6).float()
    tokens = torch.cat([torch.full((2, 3, 5), -1.0), image.flatten(2).mT, torch.full((2, 2, 5), -2.0)], 1)
    assert torch.equal(Layout("b c h w").to_spatial(image, SIZE), image)
    assert torch.equal(Layout("b h w c").to_spatial(image.permute(0, 2, 3, 1), SIZE), image)
    assert torch.equal(Layout("b (h w) c", prefix=3, suffix=2).to_spatial(tokens, SIZE), image)
    assert torch.equal(AnyLayout().to_spatial(image, SIZE), image)
    assert read_layouts((2, 4, 6, 5), SIZE)[0].axes == "b h w c"
    with pytest.raises(LayoutError, match="no common stride"):
        Layout("b c h w").to_spatial(image.permute(0, 2, 3, 1), SIZE)
    with pytest.raises(LayoutError, match="prefix or suffix"):
        Layout("b c h w", prefix=1)


@pytest.mark.parametrize("config", [hf.DeiTConfig, hf.ViTConfig, hf.SwinConfig, hf.ResNetConfig, hf.LevitConfig])
def test_a_bare_config_is_taken_for_its_classifier(config: type) -> None:
    inferred = infer_adapter(config())
    assert inferred.layers
    assert inferred.origin in ("catalogue", "probe")


@pytest.mark.parametrize("model_type", ["poolformer", "bit", "mobilenet_v2"])
def test_a_config_that_the_catalogue_lacks_is_probed_with_random_weights(model_type: str) -> None:
    adapter = infer_adapter(CONFIG_MAPPING[model_type](**settings(model_type)))
    assert adapter.origin == "probe"
    assert adapter.layouts[0].axes == "b c h w"


def test_what_is_neither_model_nor_config_is_refused() -> None:
    for wrong in ("google/vit-base-patch16-224", None, 3):
        with pytest.raises(OptionError, match="a loaded model or a transformers config"):
            infer_adapter(wrong)
    with pytest.raises(OptionError, match="dotted names or modules, not int"):
        infer_adapter(build("vit"), layers=[1])


def test_a_bad_target_does_not_accuse_a_timm_network() -> None:
    import timm

    cam = CAM(timm.create_model("resnet18", pretrained=False, num_classes=5))
    with pytest.raises(TargetError, match="class 9 does not exist"):
        cam(torch.randn(1, 3, 96, 64), targets=[9])
    assert cam.adapter.origin == "timm"


@pytest.mark.parametrize("wrong", ["target", "interpolate_pos_encodng", "foo"])
def test_a_misspelt_input_is_refused(wrong: str) -> None:
    with pytest.raises(OptionError, match=f"no input '{wrong}'"):
        CAM(build("vit"))(pictures(1), **{wrong: 1})
