"""Attention as the model computed it, the methods made of it, and the laws that they obey."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import DeformableDetrForObjectDetection

import hf_cam
import nets
from hf_cam.cam import CAM
from hf_cam.capture.inputs import call
from hf_cam.capture.levels import first_tensor
from hf_cam.capture.local_rules import LocalRules
from hf_cam.capture.recorder import recording
from hf_cam.errors import MethodError, NoGradientError
from hf_cam.methods import get_method, list_methods
from hf_cam.targets import PromptSimilarity, QueryLogit
from nets import TIMM, make, spread, tiny
from pictures import SIZE, pictures
from unchanged import half_frozen, unchanged

GRID = (4, 6)
METHODS = [method for method in list_methods() if get_method(method).needs_attention]
NETS = [name for name in nets.NETS if name not in ("swin", "convnext", "resnet")]
"""Those with attention over the cells of the picture."""
PROMPTS = {"input_ids": torch.tensor([[1, 5, 6, 7, 2]])}


def target_of(name: str) -> Any:
    if name in ("clip", "siglip"):
        return PromptSimilarity(0)
    if name in ("yolos", "detr"):
        return QueryLogit(2, 1)
    if name == "dinov3":
        return lambda output: output.pooler_output[3]
    return 1


def extra(name: str) -> dict[str, Any]:
    return PROMPTS if name in ("clip", "siglip") else {}


def scored(name: str, net: nn.Module, x: Tensor, **inputs: Any) -> tuple[Any, Tensor]:
    """The output and the sum of the targets, by plain autograd."""
    if name.startswith(("clip", "siglip")):
        inputs["interpolate_pos_encoding"] = True
    outputs = call(net, {"pixel_values": x, **extra(name), **inputs})
    if name in ("clip", "siglip"):
        return outputs, outputs.logits_per_image[:, 0].sum()
    if name in ("yolos", "detr"):
        return outputs, outputs.logits[:, 2, 1].sum()
    if name == "dinov3":
        return outputs, outputs.pooler_output[:, 3].sum()
    logits = outputs if isinstance(outputs, Tensor) else outputs.logits
    return outputs, logits[:, 1].sum()


def eager(name: str, net: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Every weight and its gradient from the model's own step by step attention, in the order of the forward."""
    weights: list[Tensor] = []
    softmax, mha = nn.functional.softmax, nn.functional.multi_head_attention_forward
    if name.startswith("timm"):
        for module in net.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    else:
        net.set_attn_implementation("eager")

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if func is softmax and kwargs.get("dtype") == torch.float32 and x.dtype == torch.float64:
                del kwargs["dtype"]  # transformers rounds its weights to single precision, whatever the model's own
            result = func(*args, **kwargs)
            if func in (softmax, torch.softmax, Tensor.softmax) and result.ndim == 4:
                weights.append(result)
            if func is mha:  # hidden from a mode: made again
                given = dict(kwargs or {})
                query, key, heads, matrix, bias = args[0], args[1], args[4], args[5], args[6]
                wide = matrix.shape[1]
                q = query @ matrix[:wide].T + bias[:wide]
                k = key @ matrix[wide : 2 * wide].T + bias[wide : 2 * wide]
                v = key @ matrix[2 * wide :].T + bias[2 * wide :]
                q, k, v = (t.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))
                pooled = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
                weights.append(pooled)
                merged = (pooled @ v).permute(2, 0, 1, 3).flatten(2)
                assert given["need_weights"]
                return merged @ args[11].T + args[12], pooled.mean(1)
            return result

    with Watch():
        _, score = scored(name, net, x.clone().requires_grad_())
    gradients = torch.autograd.grad(score, weights, allow_unused=True)
    return weights, [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]


def recorded(name: str, net: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    x = x.clone().requires_grad_()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with recording(net) as record:
        _, score = scored(name, net, x)
    outputs = [call.output for call in record.calls]
    found = torch.autograd.grad(score, outputs, allow_unused=True)
    calls = [type(c)(**{**c.__dict__, "gradient": g}) for c, g in zip(record.calls, found, strict=True)]
    return [c.weights for c in calls], [c.weight_gradients for c in calls]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", NETS)
def test_weights_and_their_gradients_are_those_of_the_models_own_eager_attention(name, dtype, tolerance):
    x = pictures(dtype=dtype)
    weights, gradients = recorded(name, make(name, dtype), x)
    expected, expected_gradients = eager(name, make(name, dtype), x)
    assert len(weights) == len(expected) >= 3
    for found, wanted in zip(weights + gradients, expected + expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted.detach(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["vit", "timm-vit", "detr"])
def test_attention_computed_step_by_step_is_seen_too(name):
    fused = [CAM(make(name), m)(pictures(), target_of(name)) for m in ("chefer", "gradeclip")]
    net = make(name)
    if name == "timm-vit":
        for module in net.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    else:
        net.set_attn_implementation("eager")
    for method, expected in zip(("chefer", "gradeclip"), fused, strict=True):
        torch.testing.assert_close(CAM(net, method)(pictures(), target_of(name)), expected, atol=1e-4, rtol=0)


# Slow, independent re-implementations on the eager model in float64 -------------------------------------------------


def prefix_of(name: str) -> int:
    if name in ("siglip", "siglip-mean", "detr", "timm-pool"):
        return 0
    return {"deit": 2, "dinov2-registers": 5, "dinov3": 5}.get(name, 1)


def on_grid(name: str, tokens: Tensor) -> Tensor:
    grid = GRID if name != "detr" else (8, 12)
    start = prefix_of(name)
    return tokens[start : start + grid[0] * grid[1]].reshape(grid).clamp_min(0)


def rows_read(name: str, tokens: int) -> list[int]:
    start = prefix_of(name)
    if name == "yolos":
        return [tokens - 5 + 2]
    if name in ("beit", "siglip-mean", "timm-eva"):
        return list(range(start, start + 24))
    return [0]


def slow_rollout(name: str, weights: list[Tensor]) -> Tensor:
    if name in ("siglip", "timm-pool"):
        *weights, pool = weights
    tokens = weights[0].shape[-1]
    total = torch.eye(tokens, dtype=torch.float64)
    for one in weights:
        mean = one[0].mean(0)
        step = torch.stack([(mean[i] + torch.eye(tokens)[i]) / (mean[i].sum() + 1) for i in range(tokens)])
        total = step @ total
    if name in ("siglip", "timm-pool"):
        return (pool[0].mean(0) @ total)[0]
    return torch.stack([total[row] for row in rows_read(name, tokens)]).mean(0)


def slow_chefer(name: str, weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
    steps = [(w[0] * g[0]).clamp(min=0).mean(0) for w, g in zip(weights, gradients, strict=True)]
    pool = steps.pop() if name in ("siglip", "timm-pool") else None
    relevance = torch.eye(len(steps[0]), dtype=torch.float64)
    for step in steps:
        relevance = relevance + step @ relevance
    if pool is not None:
        return (pool @ relevance)[0]
    gained = relevance - torch.eye(len(relevance))
    return torch.stack([gained[row] for row in rows_read(name, len(relevance))]).mean(0)


def slow_chefer_detr(weights: list[Tensor], gradients: list[Tensor], query: int) -> Tensor:
    steps = [(w[0] * g[0]).clamp(min=0).mean(0) for w, g in zip(weights, gradients, strict=True)]
    image, queries = torch.eye(96, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    mixed = torch.zeros(5, 96, dtype=torch.float64)
    for step in steps[:2]:
        image = image + step @ image

    def normed(matrix: Tensor) -> Tensor:
        gained = matrix - torch.eye(len(matrix))
        sums = gained.sum(1, keepdim=True)
        return torch.where(sums > 0, gained / sums.clamp(min=1e-300), gained) + torch.eye(len(matrix))

    for own, cross in ((steps[2], steps[3]), (steps[4], steps[5])):
        queries, mixed = queries + own @ queries, mixed + own @ mixed
        mixed = mixed + normed(queries).T @ cross @ normed(image)
    return mixed[query]


def only_image_tower(name: str, pair: tuple[list[Tensor], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    kept = [i for i, w in enumerate(pair[0]) if w.shape[-1] != PROMPTS["input_ids"].shape[1]]
    if name not in ("clip", "siglip"):
        kept = list(range(len(pair[0])))
    if name == "siglip-mean":
        kept = kept[:3]  # its pool is computed and not read
    return [pair[0][i] for i in kept], [pair[1][i] for i in kept]


def raw_of(name: str, method: str, net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    cam = CAM(net, method, **options)
    target = target_of(name)
    return cam.saliency(x, lambda _: [[cam_target(target)] * len(x)], **extra(name)).raw[0][0].clamp_min(0)


def cam_target(target: Any) -> Any:
    return hf_cam.targets.as_target(target)


@pytest.mark.parametrize("name", [name for name in NETS if name != "detr"])
def test_rollout_and_chefer_match_the_definitions_on_an_eager_model(name):
    x = pictures(1, dtype=torch.float64)
    weights, gradients = only_image_tower(name, eager(name, make(name, torch.float64), x))
    net = make(name, torch.float64)
    rollout, chefer = (raw_of(name, method, net, x)[0] for method in ("rollout", "chefer"))
    torch.testing.assert_close(rollout, on_grid(name, slow_rollout(name, weights)).detach(), atol=1e-9, rtol=0)
    torch.testing.assert_close(chefer, on_grid(name, slow_chefer(name, weights, gradients)).detach(), atol=1e-9, rtol=0)
    assert chefer.std() > 0


def test_chefer_gives_each_detection_of_detr_its_own_map():
    x = pictures(1, dtype=torch.float64)
    weights, gradients = eager("detr", make("detr", torch.float64), x)
    net = make("detr", torch.float64)
    found = raw_of("detr", "chefer", net, x)[0]
    expected = on_grid("detr", slow_chefer_detr(weights, gradients, 2)).detach()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert not torch.allclose(CAM(net, "chefer")(x, QueryLogit(0, 1)), CAM(net, "chefer")(x, QueryLogit(2, 1)))


def test_rollout_rows_sum_to_one_over_all_tokens():
    from hf_cam.capture.attention import AttentionTrace, Cells

    net, x = make("vit", torch.float64), pictures(2, dtype=torch.float64).requires_grad_()
    with recording(net) as record:
        score = net(x).logits[:, 1].sum()
    [gradient] = torch.autograd.grad(score, record.calls[-1].output)
    tokens = Cells(0, (5, 5))  # the class token too
    trace = AttentionTrace(tuple(record.calls), (), None, tokens).with_gradients([None, None, gradient])
    rows = get_method("rollout").contributions(trace)
    torch.testing.assert_close(rows.sum((1, 2, 3)), torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0)


def slow_legrad(net: nn.Module, x: Tensor) -> list[Tensor]:
    """A ViT's: each layer's mean token through its final norm and classifier, by autograd on eager weights."""
    net.set_attn_implementation("eager")
    outputs = net(x.clone().requires_grad_(), output_attentions=True, output_hidden_states=True)
    found = []
    for layer, weights in enumerate(outputs.attentions):
        tokens = outputs.hidden_states[layer + 1]
        mean = tokens.mean(1)
        score = net.classifier(net.vit.layernorm(mean))[0, 1]
        [gradient] = torch.autograd.grad(score, weights, retain_graph=True)
        found.append(gradient[0].clamp(min=0).mean(0).mean(0))
    return found


def test_legrad_matches_its_definition_on_an_eager_model():
    x = pictures(1, dtype=torch.float64)
    found = raw_of("vit", "legrad", make("vit", torch.float64), x, start_layer=0)[0]
    expected = sum(slow_legrad(make("vit", torch.float64), x))
    torch.testing.assert_close(found, on_grid("vit", expected).detach(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["siglip", "timm-pool"])
def test_legrad_of_an_attention_pooled_model_differentiates_the_pools_weights(name):
    x = pictures(1, dtype=torch.float64)
    net = make(name, torch.float64)
    blocks = net.vision_model.encoder.layers if name == "siglip" else net.blocks
    outputs: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, o: outputs.append(first_tensor(o))) for block in blocks]
    scored(name, net, x)
    for handle in handles:
        handle.remove()
    found = raw_of(name, "legrad", net, x, start_layer=0)[0]
    total = torch.zeros(24, dtype=torch.float64)
    for tokens in outputs:
        reading = make(name, torch.float64)
        tokens = tokens.detach()

        class Given(nn.Module):
            def __init__(self, value):
                super().__init__()
                self.value = value

            def forward(self, *args, **kwargs):
                return self.value

        (reading.vision_model.encoder.layers if name == "siglip" else reading.blocks)[-1] = Given(tokens)
        _, gradients = only_image_tower(name, eager(name, reading, x))
        total += gradients[-1][0].clamp(min=0).mean((0, 1))
    torch.testing.assert_close(found, total.reshape(GRID), atol=1e-9, rtol=0)


@pytest.mark.parametrize("heads", ["own", "merged"])
def test_gradeclip_matches_its_definition(heads):
    x = pictures(1, dtype=torch.float64)
    found = raw_of("vit", "gradeclip", make("vit", torch.float64), x, heads=heads)[0]
    net = make("vit", torch.float64)
    last = net.vit.layers[-1]
    seen: dict[str, Tensor] = {}
    for part in ("q_proj", "k_proj", "v_proj"):
        getattr(last.attention, part).register_forward_hook(lambda _, __, o, part=part: seen.update({part: o}))
    last.attention.o_proj.register_forward_pre_hook(lambda _, args: seen.update(o=args[0]))
    score = net(x.clone().requires_grad_()).logits[0, 1]
    [gradient] = torch.autograd.grad(score, seen["o"])
    expected = torch.zeros(24, dtype=torch.float64)
    spans = [slice(0, 16), slice(16, 32)] if heads == "own" else [slice(0, 32)]
    for span in spans:
        query, keys = seen["q_proj"][0, 0, span], seen["k_proj"][0, 1:, span]
        cosine = torch.stack([query @ key / (query.norm() * key.norm()) for key in keys])
        weight = (cosine - cosine.min()) / (cosine.max() - cosine.min())
        expected += weight * (seen["v_proj"][0, 1:, span] @ gradient[0, 0, span])
    torch.testing.assert_close(found, expected.clamp(min=0).reshape(GRID).detach(), atol=1e-9, rtol=0)


def test_gradeclip_without_its_spatial_weight_is_the_class_row_of_the_last_layers_gradient_with_heads_summed():
    x = pictures(1, dtype=torch.float64)
    found = raw_of("vit", "gradeclip", make("vit", torch.float64), x, spatial=False)[0]
    _, gradients = eager("vit", make("vit", torch.float64), x)
    expected = gradients[-1][0, :, 0].sum(0).clamp(min=0)
    torch.testing.assert_close(found, on_grid("vit", expected), atol=1e-9, rtol=0)


# Local rules ---------------------------------------------------------------------------------------------------------

ADDITIVE = ("bias", "token", "position", "pos_embed")


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("clip", "siglip", "detr", "dinov3")])
def test_with_attention_norms_and_gates_frozen_the_network_is_affine(name):
    """Input times gradient plus every additive parameter times its own is the logit."""
    net, x = make(name, torch.float64), pictures(1, dtype=torch.float64).requires_grad_()
    for key, parameter in net.named_parameters():
        parameter.requires_grad_(any(part in key for part in ADDITIVE) and "table" not in key)
    with LocalRules("frozen"):
        _, score = scored(name, net, x)
    _, plain = scored(name, net, x)
    assert torch.equal(score, plain)
    terms = [x] + [parameter for parameter in net.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(score, terms, allow_unused=True)
    total = sum((t * g).sum() for t, g in zip(terms, gradients, strict=True) if g is not None)
    assert abs(float((total - score).detach())) < 1e-4 * max(1, abs(float(score.detach())))
    [chain] = torch.autograd.grad(plain, x)
    assert not torch.allclose(chain, gradients[0])


@pytest.mark.parametrize("name", ["vit", "clip", "dinov2-registers", "timm-eva", "timm-pool", "detr"])
@pytest.mark.parametrize("attend", ["frozen", "halved"])
def test_local_rules_leave_every_value_as_it_is(name, attend):
    net, x = make(name), pictures(1).requires_grad_()
    _, plain = scored(name, net, x)
    with LocalRules(attend):
        _, score = scored(name, net, x)
    assert torch.equal(score, plain)


@pytest.mark.parametrize("method", ["attnlrp", "libragrad"])
def test_an_activation_that_writes_over_its_input_follows_the_same_rule(method):
    net, found = spread(timm.create_model("vit_tiny_patch16_224", **TIMM, act_layer=nn.SiLU)).eval(), []
    for inplace in (True, False):
        for block in net.blocks:
            block.mlp.act.inplace = inplace
        found.append(CAM(net, method).saliency(pictures(1), lambda _: [[1]]).raw[0])
    in_place, plain = found
    torch.testing.assert_close(in_place, plain)


def slow_vit(net: nn.Module, x: Tensor, attend: str) -> tuple[Tensor, list[Tensor]]:
    """A ViT written out with the rules of AttnLRP or LibraGrad; its tokens before and after each block."""

    def norm(layer: nn.LayerNorm, tokens: Tensor) -> Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        return (
            centred / (centred.detach().square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias
        )

    def half(tensor: Tensor) -> Tensor:
        return 0.5 * tensor + 0.5 * tensor.detach()

    def split(tensor: Tensor) -> Tensor:
        return tensor.reshape(1, -1, 2, 16).transpose(1, 2)

    tokens = net.vit.embeddings(x)
    found = [tokens]
    for block in net.vit.layers:
        normed = norm(block.layernorm_before, tokens)
        q, k, v = (split(getattr(block.attention, p)(normed)) for p in ("q_proj", "k_proj", "v_proj"))
        if attend == "halved":
            weights = half((half(q) @ half(k).mT / 4).softmax(-1))
            mixed = weights @ half(v)
        else:
            mixed = (q @ k.mT / 4).softmax(-1).detach() @ v
        tokens = tokens + block.attention.o_proj(mixed.transpose(1, 2).reshape(1, -1, 32))
        hidden = block.mlp.fc1(norm(block.layernorm_after, tokens))
        gate = (nn.functional.gelu(hidden) / hidden).detach()
        tokens = tokens + block.mlp.fc2(hidden * gate)
        found.append(tokens)
    return net.classifier(norm(net.vit.layernorm, tokens)[:, 0])[0, 1], found


@pytest.mark.parametrize(("method", "attend"), [("attnlrp", "halved"), ("libragrad", "frozen"), ("libracam", "frozen")])
def test_relevance_matches_a_vit_written_out_with_the_rules(method, attend):
    x = pictures(1, dtype=torch.float64)
    net = make("vit", torch.float64)
    score, tokens = slow_vit(net, x, attend)
    gradients = torch.autograd.grad(score, tokens)
    terms = [(t * g).sum(-1)[0] for t, g in zip(tokens, gradients, strict=True)]
    # The class token alone is read behind the last block, so the last cells that count stand before it.
    expected = {"attnlrp": terms[0], "libragrad": sum(terms), "libracam": terms[-2]}[method]
    found = raw_of("vit", method, make("vit", torch.float64), x)[0]
    torch.testing.assert_close(found, on_grid("vit", expected).detach(), atol=1e-9, rtol=0)


def test_the_rule_for_gated_products_changes_libragrad_and_halving_is_the_default():
    net, x = make("dinov2-registers", torch.float64), pictures(1, dtype=torch.float64)
    halved, frozen = (raw_of("dinov2-registers", "libragrad", net, x, gates=gates) for gates in ("halved", "frozen"))
    assert torch.equal(raw_of("dinov2-registers", "libragrad", net, x), halved)
    assert (halved - frozen).abs().max() > 0.01 * halved.max()


# What holds for all of them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_a_batch_gets_the_maps_of_its_images_one_by_one(name, method):
    if (name, method) == ("detr", "legrad"):
        with pytest.raises(MethodError, match="use 'chefer'"):
            CAM(make(name), method)(pictures(), target_of(name))
        return
    net, x = make(name, torch.float64), pictures(2, dtype=torch.float64)
    cam = CAM(net, method)
    together = cam(x, target_of(name), **extra(name))
    alone = torch.cat([cam(one[None], target_of(name), **extra(name)) for one in x])
    assert together.shape == (2, *SIZE)
    assert together.isfinite().all()
    signed = ("attnlrp", "libragrad", "libracam")  # nothing need speak for a target of random weights
    assert together.amax() == 1 or (method in signed and not together.any())
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_comes_back_as_it_was_also_after_an_exception(method):
    net = half_frozen(make("vit"))

    def broken(output: Any) -> Tensor:
        raise RuntimeError("broken")

    with unchanged(net):
        CAM(net, method)(pictures(1), 1)
    with unchanged(net), pytest.raises(RuntimeError, match="broken"):
        CAM(net, method)(pictures(1), broken)


def test_nothing_of_a_forward_stays_alive():
    net = make("vit")
    cam = CAM(net, "chefer")
    cam(pictures(1), 1)
    gc.collect()
    before = sum(type(thing) is Tensor for thing in gc.get_objects())
    for _ in range(3):
        cam(pictures(1), 1)
    gc.collect()
    assert sum(type(thing) is Tensor for thing in gc.get_objects()) <= before


@pytest.mark.parametrize("method", METHODS)
def test_windows_deformable_sampling_and_convolutions_are_refused_by_name(method):
    windows = make("swin")
    with pytest.raises(MethodError, match=r"within windows.*'gradcam'"):
        CAM(windows, method)(pictures(1))
    sampling = tiny(DeformableDetrForObjectDetection)
    with pytest.raises(MethodError, match="'gradcam'"):
        CAM(sampling, method, layers="model.backbone.model.encoder.stages.3")(pictures(1), QueryLogit(0, 1))
    convolutions = make("resnet")
    with pytest.raises(MethodError, match=r"no attention over the picture's cells.*'gradcam'"):
        CAM(convolutions, method)(pictures(1))


def test_a_target_that_attention_does_not_reach_is_refused():
    with pytest.raises(NoGradientError, match="zero at the last attention"):
        CAM(make("vit"), "chefer")(pictures(1), lambda output: output.logits.sum() * 0)


@pytest.mark.parametrize("method", METHODS)
def test_views_are_averaged_and_half_precision_ranks_the_cells_alike(method):
    net, x = make("vit"), pictures(2)
    plain, smoothed = CAM(net, method)(x, 1), CAM(net, method)(x, 1, aug_smooth=True)
    assert smoothed.shape == plain.shape
    assert not torch.equal(smoothed, plain)
    half = CAM(make("vit").to(torch.bfloat16), method)(x, 1)
    assert half.dtype == torch.float32
    assert torch.corrcoef(torch.stack([plain.flatten(), half.flatten()]))[0, 1] > 0.9
