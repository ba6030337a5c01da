"""The structural probe on made-up nets, each with one property, and on tiny transformers and timm models."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import timm
import torch
import transformers
from torch import nn
from torch.autograd.graph import get_gradient_edge
from transformers.utils import ModelOutput

from hf_cam.errors import UnknownArchitecture
from hf_cam.layouts import NCHW, NHWC, TOKENS, Layout
from hf_cam.target_layers import noise
from hf_cam.target_layers.noise import check_layouts
from hf_cam.target_layers.probe import probe
from hf_cam.target_layers.trace import path_shares
from nets import tiny
from pictures import SIZE, pictures
from unchanged import unchanged


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def picture(size=SIZE, batch=1):
    return {"pixel_values": pictures(batch, size)}


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, s, 1), nn.ReLU(inplace=True)) for s in (1, 2))
        self.head = nn.Linear(8, 5)

    def features(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(query, key, value))
        return x + self.mlp(self.norm2(x))


class TokenNet(nn.Module):
    """A pre-norm transformer; `front` and `behind` count learned tokens, `column_major` flattens the other way."""

    def __init__(self, front=0, behind=0, readout="mean", column_major=False, width=16):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.front = nn.Parameter(torch.randn(1, front, width))
        self.behind = nn.Parameter(torch.randn(1, behind, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)
        self.readout, self.column_major = readout, column_major

    def forward(self, pixel_values):
        x = self.patch(pixel_values)
        x = (x.transpose(2, 3) if self.column_major else x).flatten(2).transpose(1, 2)
        x = torch.cat([self.front.expand(len(x), -1, -1), x], dim=1)
        x = torch.cat((x, self.behind.expand(len(x), -1, -1)), 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.readout == "class" else x.mean(1))


# Made-up nets --------------------------------------------------------------------------------------------------------


def test_a_conv_net_is_read_at_its_last_stage():
    finding = probe(ConvNet(), picture())
    assert (finding.layer, finding.layout) == ("stages.1", Layout(NCHW))
    assert finding.coverage >= 0.95
    assert finding.share == 1
    assert finding.verdict == "confirmed"


def test_class_registers_and_suffix_tokens_are_counted_and_a_dead_last_output_is_avoided():
    net = TokenNet(front=3, behind=4, readout="class")
    finding = probe(net, picture())
    # Only the class token is read: after the last attention no patch matters, before it every patch does.
    assert finding.layer == "blocks.2.norm1"
    assert finding.layout == Layout(TOKENS, prefix=3, suffix=4, patch=(16, 16))
    assert finding.verdict == "confirmed"


def test_pooled_tokens_are_read_as_deep_as_they_go():
    assert probe(TokenNet(front=1), picture()).layer == "norm"


def test_a_channels_last_net_is_read_channels_last():
    class ChannelsLast(ConvNet):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return self.head(self.norm(self.features(x).permute(0, 2, 3, 1)).mean((1, 2)))

    finding = probe(ChannelsLast(), picture())
    assert (finding.layer, finding.layout, finding.verdict) == ("norm", Layout(NHWC), "confirmed")


def test_a_decoder_is_not_followed_past_the_coarsest_map():
    class UNet(ConvNet):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(8, 8, 2, 2)
            self.classify = nn.Conv2d(8, 5, 1)

        def forward(self, x):
            return self.classify(self.up(self.features(x)))

    assert probe(UNet(), picture()).layer == "stages.1"


def test_a_second_hourglass_is_not_entered():
    class Hourglasses(ConvNet):
        def __init__(self):
            super().__init__()
            self.again = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
            self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 5, 1))

        def forward(self, x):
            return self.up(self.again(self.features(x)))

    assert probe(Hourglasses(), picture()).layer == "stages.1"


def test_class_maps_and_modules_that_run_twice_are_passed_over():
    class Squeeze(ConvNet):
        def __init__(self):
            super().__init__()
            self.act, self.maps = nn.ReLU(), nn.Conv2d(8, 5, 1)

        def forward(self, x):
            return self.act(self.maps(self.act(self.features(x)))).mean((2, 3))

    assert probe(Squeeze(), picture()).layer == "stages.1"


@pytest.mark.parametrize("last", [nn.Conv2d(8, 8, 3, 2), nn.MaxPool2d(3, 2), nn.AvgPool2d(3, 2)])
def test_a_layer_without_padding_may_leave_the_series_of_strides(last):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), last,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    finding = probe(net, picture((75, 107)))
    assert (finding.layer, finding.layout) == ("4", Layout(NCHW))


def test_a_forward_under_no_grad_can_be_probed():
    class Hidden(ConvNet):
        def features(self, x):
            with torch.no_grad():
                return super().features(x)

    assert probe(Hidden(), picture()).layer == "stages.1"


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda logits: ModelOutput(hidden=logits.detach(), logits=logits), id="a record"),
        pytest.param(lambda logits: (logits.argmax(-1), logits), id="a tuple with labels first"),
        pytest.param(lambda logits: [{"labels": logits.argmax(-1), "scores": logits[0]}], id="a list of dicts"),
        pytest.param(lambda logits: logits.masked_fill(logits == logits.min(), torch.inf), id="an infinite class"),
        pytest.param(lambda logits: ModelOutput(logits=0 * logits, other=logits), id="a first field without gradient"),
    ],
)
def test_every_form_of_output_is_understood(wrap):
    class Wrapped(ConvNet):
        def forward(self, x):
            return wrap(super().forward(x))

    net = Wrapped()
    net.head.bias.data.sub_(1)
    assert probe(net, picture()).layer == "stages.1"


def test_a_batch_is_not_mistaken_for_windows():
    finding = probe(TokenNet(front=1, readout="class"), picture(batch=3))
    assert (finding.layer, finding.layout.prefix, finding.verdict) == ("blocks.2.norm1", 1, "confirmed")


# The noise check -----------------------------------------------------------------------------------------------------


def test_tokens_in_column_order_are_refuted_and_the_map_at_the_entrance_does_not_stand_in_for_them():
    net = TokenNet(column_major=True)
    assert probe(net, picture(), check=False).layer == "norm"
    with pytest.raises(UnknownArchitecture, match=r"'patch', near the entrance .*'norm', it does not change where the"):
        probe(net, picture())


@pytest.mark.parametrize(
    ("layout", "verdict"),
    [
        (Layout(TOKENS, prefix=2, suffix=1, patch=(8, 8)), "confirmed"),
        (Layout(TOKENS, prefix=1, suffix=2, patch=(8, 8)), "refuted"),
        (Layout(TOKENS, prefix=3, suffix=0, patch=(8, 8)), "refuted"),
        (Layout(TOKENS, prefix=0, suffix=0, patch=(8, 8)), "undecided"),  # does not even fit
    ],
)
def test_a_shift_by_one_token_is_refuted(layout, verdict):
    net = TokenNet(front=2, behind=1)
    net.patch = nn.Conv2d(3, 16, 8, 8)
    assert check_layouts(net, picture(), [("blocks.1", layout)]) == [verdict]


def test_tokens_in_window_order_are_refuted():
    class Windows(TokenNet):
        def forward(self, x):
            x = self.patch(x).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 3, 5, 1).flatten(1, 4)
            return self.head(self.norm(x).mean(1))

    net = Windows()
    assert check_layouts(net, picture(), [("norm", Layout(TOKENS, patch=(16, 16)))]) == ["refuted"]


def test_patches_that_are_shuffled_at_random_are_refuted():
    class Shuffled(TokenNet):
        def __init__(self):
            super().__init__()
            self.shuffle = nn.ModuleList([nn.LayerNorm(16)])

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = self.shuffle[0](x[:, torch.randperm(x.shape[1])])
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean(1))

    with pytest.raises(UnknownArchitecture, match=r"'patch', near the entrance .*'blocks.2', it does not change"):
        probe(Shuffled(), picture())


def test_a_change_that_spreads_all_over_decides_nothing():
    class Mixed(TokenNet):
        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.head(self.norm(torch.randn(24, 24, generator=torch.Generator().manual_seed(3)) @ x).mean(1))

    assert check_layouts(Mixed(), picture(), [("norm", Layout(TOKENS, patch=(16, 16)))]) == ["undecided"]


def test_a_second_look_at_more_places_decides_what_three_leave_open(monkeypatch):
    class Mixed(TokenNet):
        shift = 0

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(3)) / 2 + torch.eye(24)
            return self.head(self.norm((mixing @ x).roll(self.shift, 1)).mean(1))

    torch.manual_seed(2)
    net, claim = Mixed(), [("norm", Layout(TOKENS, patch=(16, 16)))]
    assert check_layouts(net, picture(), claim) == ["confirmed"]
    net.shift = 1
    assert check_layouts(net, picture(), claim) == ["refuted"]
    net.shift = 0
    monkeypatch.setattr(noise, "_WEAK", noise._STRONG)
    assert check_layouts(net, picture(), claim) == ["undecided"]


def test_cells_half_a_patch_off_are_not_taken_for_shifted_tokens():
    class Off(TokenNet):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (8, -8)))

    assert check_layouts(Off(), picture(), [("blocks.1", Layout(TOKENS, patch=(16, 16)))]) == ["confirmed"]


def test_a_finding_that_no_candidate_confirms_is_refuted():
    class Shuffled(TokenNet):
        def forward(self, x):
            order = torch.randperm(x.shape[2])
            return super().forward(x[:, :, order])

    assert probe(Shuffled(), picture()).verdict == "refuted"


# What comes back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_untouched(fails):
    class Fragile(ConvNet):
        def forward(self, x):
            if fails and torch.is_grad_enabled():
                raise RuntimeError("out of luck")
            return super().forward(x)

    net = Fragile().train()
    net.stages[0].eval()
    net.stem.weight.requires_grad_(False)
    inputs = picture()
    pixels = inputs["pixel_values"].clone()
    with unchanged(net), pytest.raises(RuntimeError, match="out of luck") if fails else nullcontext():
        probe(net, inputs)
    assert inputs["pixel_values"].equal(pixels)
    assert not inputs["pixel_values"].requires_grad


def test_it_works_where_the_caller_switched_gradients_off():
    with torch.no_grad():
        assert probe(ConvNet(), picture()).layer == "stages.1"
    net = ConvNet()
    with torch.inference_mode():
        assert probe(net, picture()).layer == "stages.1"


@pytest.mark.parametrize(
    ("net", "inputs", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 96, 5)), picture(), "no layer of Sequential"),
        (nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.Softsign()), {"x": torch.ones(1, 9)}, "needs a picture"),
        (nn.Identity(), {"pixel_values": torch.rand(1, 4, 3, 64, 96)}, "needs a picture"),
    ],
    ids=["no space", "no picture", "a video"],
)
def test_what_cannot_be_probed_is_refused_with_the_next_step(net, inputs, message):
    with pytest.raises(UnknownArchitecture, match=rf"{message}.*layers="):
        probe(net, inputs)


def test_path_shares_count_every_path_once():
    x = torch.ones(3, requires_grad=True)
    left, right = x.exp(), x.sin()
    middle = left + right  # 2 paths
    side = middle.cos()
    end = middle + side * middle  # (1 + 2) * 2 = 6 paths
    share = path_shares(end.sum(), x)
    for tensor, expected in [(end, 1), (middle, 1), (left, 1 / 2), (side, 1 / 3), ((x * 2), 0)]:
        assert share(get_gradient_edge(tensor)) == pytest.approx(expected)


# Real architectures --------------------------------------------------------------------------------------------------


def _tokens(prefix=0, suffix=0, patch=16):
    return Layout(TOKENS, prefix, suffix, (patch, patch))


@pytest.mark.parametrize(
    ("name", "own", "size", "layer", "layout"),
    [
        ("ViTForImageClassification", {"image_size": SIZE}, SIZE, "vit.layers.1.layernorm_before", _tokens(1)),
        ("DeiTForImageClassification", {"image_size": SIZE}, SIZE, "deit.layers.1.layernorm_before", _tokens(2)),
        (
            "Dinov2WithRegistersForImageClassification", {"image_size": 64, "num_register_tokens": 3},
            SIZE, "dinov2_with_registers.layernorm", _tokens(4),
        ),
        ("YolosForObjectDetection", {"image_size": SIZE}, SIZE, "vit.encoder.layer.1.layernorm_before", _tokens(1, 6)),
        (
            "SwinForImageClassification", {"image_size": (100, 164), "window_size": 3},
            (100, 164), "swin.layernorm", _tokens(patch=4),
        ),
        (
            "PvtForImageClassification", {"image_size": 96},
            (96, 96), "pvt.encoder.block.3.0.layer_norm_1", _tokens(1, patch=4),
        ),
        ("SegformerForSemanticSegmentation", {}, (96, 160), "segformer.stages.3", Layout(NCHW)),
        ("ConvNextForImageClassification", {}, (96, 160), "convnext.encoder.stages.3", Layout(NCHW)),
        ("ResNetForImageClassification", {}, (100, 164), "resnet.encoder.stages.3", Layout(NCHW)),
    ],
    ids=lambda value: value if isinstance(value, str) and value[0].isupper() else "",
)  # fmt: skip
def test_models_of_transformers_are_read_without_the_catalogue(name, own, size, layer, layout):
    finding = probe(tiny(getattr(transformers, name), **own), picture(size))
    assert (finding.layer, finding.layout) == (layer, layout)
    assert finding.verdict != "refuted"


@pytest.mark.parametrize(
    ("name", "options", "layer", "layout"),
    [
        ("vit_tiny_patch16_224", {"img_size": SIZE, "depth": 2}, "blocks.1.norm1", _tokens(1)),
        (
            "vit_small_patch16_dinov3",
            {"img_size": SIZE, "depth": 2, "embed_dim": 48, "num_heads": 2},
            "norm",
            _tokens(5),
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": (96, 160), "embed_dim": 16, "depths": (1,) * 4},
            "norm",
            Layout(NHWC),
        ),
        ("resnet18", {}, "layer4.1", Layout(NCHW)),
    ],
)
def test_networks_of_timm_are_read_without_their_metadata(name, options, layer, layout):
    net = timm.create_model(name, pretrained=False, num_classes=5, **options)
    finding = probe(net, picture(options.get("img_size", (96, 160))))
    assert (finding.layer, finding.layout) == (layer, layout)
