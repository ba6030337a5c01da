"""Each method written out from its paper's equation, slowly and in float64, next to hf-cam's map of the same picture.

Nothing here is taken from another package. Each entry of `EQUATIONS` returns hf-cam's map and the equation's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

from benchmarks.tiny_models import settings
from hf_cam import CAM
from hf_cam.methods import get_method
from hf_cam.targets import PromptSimilarity, QueryLogit, as_target

SIZE = (64, 96)
CLASS, QUERY = 1, 2
Pair = tuple[Tensor, Tensor]
Compare = Callable[[], Pair]
EQUATIONS: dict[tuple[str, str, str], Compare] = {}
"""By method, options and what they are computed on."""


def equation(method: str, options: str = "", on: str = "random signals") -> Callable[[Compare], Compare]:
    def add(compare: Compare) -> Compare:
        EQUATIONS[method, options, on] = compare
        return compare

    return add


# Models --------------------------------------------------------------------------------------------------------------

DEEP = {"num_hidden_layers": 3, "num_labels": 7}
TOWERS = {
    "text_config": {"num_hidden_layers": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "vision_config": {"num_hidden_layers": 3, "image_size": 64},
}
BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "out_features": ["stage2"]}
NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: tiny(
        hf.ResNetForImageClassification, hidden_sizes=[8, 16, 32], depths=[1] * 3, layer_type="basic", num_labels=7
    ),
    "vit": lambda: tiny(hf.ViTForImageClassification, image_size=SIZE, **DEEP),
    "gated": lambda: tiny(hf.Dinov2WithRegistersForImageClassification, image_size=64, use_swiglu_ffn=True, **DEEP),
    "siglip": lambda: tiny(hf.SiglipModel, **TOWERS),
    "detr": lambda: tiny(
        hf.DetrForObjectDetection,
        backbone_config=hf.ResNetConfig(**BACKBONE),
        encoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        num_queries=5,
        num_labels=3,
    ),
}


def tiny(model_class: Any, **own: Any) -> nn.Module:
    kind = model_class.config_class
    return model_class(kind(**settings(kind.model_type, kind, **own)))


def make(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """One of `NETS` with wide random weights, the same on each call."""
    torch.manual_seed(0)
    net = NETS[name]().eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator) / 10
        parameter.data = noise if parameter.ndim > 1 else parameter.data + noise / 3
    return net.to(dtype)


def pictures(count: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)


def raw_map(net: nn.Module, method: str, target: Any, inputs: dict[str, Any] | None = None, **options: Any) -> Tensor:
    """hf-cam's map of one picture on the layer's grid, before it is scaled and enlarged."""
    cam = CAM(net, method, **options)
    return cam.saliency(pictures(), lambda _: [[as_target(target)]], **(inputs or {})).raw[0][0][0].clamp_min(0)


# Methods that read a layer: channel by channel, cell by cell ---------------------------------------------------------


def layer_equation(method: str, options: str = "") -> Callable[[Callable[[np.ndarray, np.ndarray], np.ndarray]], Any]:
    """An equation of activations and gradients `[C, h, w]`, compared on random ones."""

    def add(slow: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Any:
        def compare() -> Pair:
            generator = torch.Generator().manual_seed(0)
            a, g = (torch.randn(1, 5, 6, 7, generator=generator, dtype=torch.float64) for _ in range(2))
            a = a + 4 * F.one_hot(torch.tensor(17), 42).reshape(6, 7)  # one cell stands out
            record = get_method(method)
            ours = record.map(**{name: {"activations": a, "gradients": g}[name] for name in record.needs})[0]
            theirs = torch.from_numpy(slow(a[0].numpy(), g[0].numpy()))
            if method in ("eigencam", "eigengradcam", "segeigencam", "kpcacam"):  # of either sign
                theirs = min(theirs, -theirs, key=lambda one: float((one.clamp_min(0) - ours).abs().max()))
            return ours, theirs.clamp_min(0)

        equation(method, options)(compare)
        return slow

    return add


def weighted(a: np.ndarray, weight: Callable[[int], float]) -> np.ndarray:
    total = np.zeros(a.shape[1:])
    for channel in range(len(a)):
        total += weight(channel) * a[channel]
    return total


@layer_equation("gradcam")
def gradcam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Eqs. 1 and 2 of Grad-CAM."""
    return weighted(a, lambda c: sum(g[c].flat) / g[c].size)


@layer_equation("hirescam")
def hirescam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Eq. 3 of HiResCAM."""
    return sum(g[c] * a[c] for c in range(len(a)))


@layer_equation("gradcam-elementwise")
def elementwise(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The positive part of each product."""
    return sum(np.maximum(g[c] * a[c], 0) for c in range(len(a)))


@layer_equation("gradcam++")
def plusplus(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Eqs. 9 and 19 of Grad-CAM++, with the departure's epsilon."""

    def weight(c: int) -> float:
        total = sum(a[c].flat)
        return sum(one**2 / (2 * one**2 + total * one**3 + 1e-6) * max(one, 0) for one in g[c].flat if one)

    return weighted(a, weight)


@layer_equation("xgradcam")
def xgradcam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Eq. 8 of XGrad-CAM."""
    return weighted(a, lambda c: sum((a[c] * g[c]).flat) / sum(a[c].flat))


@layer_equation("layercam")
def layercam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Eqs. 5 to 7 of LayerCAM."""
    return sum(np.maximum(g[c], 0) * a[c] for c in range(len(a)))


@layer_equation("fem")
def fem(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """FEM: each channel is binarized at mean plus two deviations and weighted by its mean."""
    total = np.zeros(a.shape[1:])
    for channel in a:
        mean = sum(channel.flat) / channel.size
        deviation = (sum((value - mean) ** 2 for value in channel.flat) / channel.size) ** 0.5
        for cell in np.ndindex(channel.shape):
            if channel[cell] > mean + 2 * deviation:
                total[cell] += mean
    return total


def component(values: np.ndarray) -> np.ndarray:
    """The cells' coordinates on the first right singular vector of the centred matrix of cells and channels."""
    cells = values.reshape(len(values), -1).T
    cells = cells - cells.mean(0)
    return (cells @ np.linalg.svd(cells, full_matrices=False)[2][0]).reshape(values.shape[1:])


@layer_equation("eigencam")
def eigencam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Eq. 2 of Eigen-CAM, on centred vectors."""
    return component(a)


@layer_equation("eigengradcam")
def eigengradcam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The same of gradient times activation."""
    return component(a * g)


@layer_equation("segeigencam")
def segeigencam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Eqs. 10 to 12 of Seg-Eigen-CAM."""
    return component(np.abs(g) * a)


@layer_equation("kpcacam")
def kpcacam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """KPCA-CAM's sigmoid kernel `tanh(x y / C + 1)`, centred; the scale of a kernel's coordinates is free."""
    cells = a.reshape(len(a), -1).T
    cells = cells - cells.mean(0)
    gram = np.tanh(cells @ cells.T / cells.shape[1] + 1)
    middle = np.eye(len(gram)) - 1 / len(gram)
    strengths, bases = np.linalg.eigh(middle @ gram @ middle)
    return (bases[:, np.argmax(strengths)] * np.linalg.norm(cells)).reshape(a.shape[1:])


# Methods that run or differentiate the model -------------------------------------------------------------------------

LAST = "resnet.encoder.stages.2"


def resnet_layer(net: nn.Module, x: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The last stage's output, connected to the graph, and the logits, after a change to that output."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(output if change is None else change(output))
        return seen[-1]

    handle = net.get_submodule(LAST).register_forward_hook(hook)
    try:
        logits = net(x).logits[0]
    finally:
        handle.remove()
    return seen[0], logits


@equation("ablationcam", on="a ResNet")
def ablationcam() -> Pair:
    """Eq. 3 of Ablation-CAM: a whole forward without each channel."""
    net, x = make("resnet"), pictures()
    a, logits = resnet_layer(net, x)
    total = torch.zeros_like(a[0, 0])
    for c in range(a.shape[1]):
        without = torch.ones(a.shape[1], 1, 1).index_fill(0, torch.tensor(c), 0)
        lost = resnet_layer(net, x, lambda output, without=without: output * without)[1][CLASS]
        total = total + (logits[CLASS] - lost) / logits[CLASS].abs() * a[0, c]
    return raw_map(net, "ablationcam", CLASS), total.clamp_min(0).detach()


@equation("scorecam", on="a ResNet")
def scorecam() -> Pair:
    """Algorithm 1 of Score-CAM with the target's value as the score; the softmax cancels the score of the baseline."""
    net, x = make("resnet"), pictures()
    a, _ = resnet_layer(net, x)
    scores = []
    for channel in a[0].detach():
        mask = F.interpolate(channel[None, None], SIZE, mode="bilinear")[0, 0]
        span = mask.max() - mask.min()
        mask = (mask - mask.min()) / span if span > 0 else torch.zeros_like(mask)
        scores.append(net(x * mask).logits[0, CLASS].detach())
    weights = torch.stack(scores).softmax(0)
    weights = torch.where(a[0].amax((1, 2)) == a[0].amin((1, 2)), 0, weights)
    return raw_map(net, "scorecam", CLASS), sum(w * c for w, c in zip(weights, a[0].detach(), strict=True)).clamp_min(0)


@equation("finercam", on="a ResNet")
def finercam() -> Pair:
    """Finer-CAM: Grad-CAM of `y_t - alpha sum(p_k y_k) / sum(p_k)` for the three classes of the nearest logits."""
    net = make("resnet")
    a, logits = resnet_layer(net, pictures())
    near = sorted((abs(logits.tolist()[k] - logits.tolist()[CLASS]), k) for k in range(7) if k != CLASS)[:3]
    shares = logits.softmax(0)
    rivals = sum(shares[k] * logits[k] for _, k in near) / sum(shares[k] for _, k in near)
    [g] = torch.autograd.grad(logits[CLASS] - rivals, a)
    return raw_map(net, "finercam", CLASS), (g.mean((2, 3), keepdim=True) * a).sum(1)[0].clamp_min(0).detach()


@equation("cam", on="a ResNet")
def class_activation_map() -> Pair:
    """Eq. 2 of CAM: the class's row of the last linear layer, on the activations before the pooling."""
    net = make("resnet")
    a, _ = resnet_layer(net, pictures())
    weights = net.classifier[-1].weight[CLASS]
    total = torch.zeros_like(a[0, 0])
    for c in range(a.shape[1]):
        total = total + weights[c] * a[0, c]
    return raw_map(net, "cam", CLASS), total.clamp_min(0).detach()


def pixel_gradient(net: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(net(x).logits[0, CLASS], x)[0][0]


@equation("gradient", on="a ResNet")
def gradient() -> Pair:
    """The gradient at the pixels, with the largest absolute value over the colours."""
    net = make("resnet")
    return raw_map(net, "gradient", CLASS), pixel_gradient(net, pictures()).abs().amax(0)


@equation("input-x-gradient", on="a ResNet")
def input_x_gradient() -> Pair:
    """Pixel times gradient, summed over the colours."""
    net, x = make("resnet"), pictures()
    return raw_map(net, "input-x-gradient", CLASS), (x[0] * pixel_gradient(net, x)).sum(0).clamp_min(0)


@equation("integrated-gradients", "steps=20", on="a ResNet")
def integrated_gradients() -> Pair:
    """Eq. 3 of Integrated Gradients from a picture of zeros, with the gradients taken in the middle of each step."""
    net, x = make("resnet"), pictures()
    total = torch.zeros_like(x[0])
    for step in range(20):
        total += pixel_gradient(net, x * (step + 0.5) / 20) / 20
    return raw_map(net, "integrated-gradients", CLASS, steps=20), (x[0] * total).sum(0).clamp_min(0)


class Curved(nn.Module):
    """The sum of the features' exponentials, whose Hessian is not zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 4, 16, stride=16)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.features(pixel_values).exp().sum((1, 2, 3))[:, None]


@equation("shapleycam", on="a net with curvature")
def shapleycam() -> Pair:
    """ShapleyCAM: weights `mean(g - H a / 2)` with the whole Hessian."""
    net = Curved().double()
    a = net.features(pictures()).detach()
    hessian = torch.autograd.functional.hessian(lambda flat: flat.exp().sum(), a.flatten())
    gradient = a.flatten().exp()
    weights = (gradient - hessian @ a.flatten() / 2).reshape(a.shape).mean((2, 3), keepdim=True)
    return raw_map(net, "shapleycam", 0, layers="features"), (weights * a).sum(1)[0].clamp_min(0)


@equation("fullgrad", on="a convolutional net")
def fullgrad() -> Pair:
    """Eq. 4 of FullGrad: input and biases times their gradients, absolute, each scaled to [0, 1], and summed."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7))
    net, x = net.double().eval(), pictures().requires_grad_()
    one = first(x)
    two = second(one.relu())
    score = net[-1](two.relu().mean((2, 3)))[0, CLASS]
    gradients = torch.autograd.grad(score, [x, one, two])
    terms = [
        x * gradients[0],
        first.bias[:, None, None] * gradients[1],
        second.bias[:, None, None] * gradients[2],
    ]
    total = torch.zeros(SIZE, dtype=torch.float64)
    for term in terms:
        strength = term[0].detach().abs()
        total += ((strength - strength.min()) / (strength.max() - strength.min())).sum(0)
    return raw_map(net, "fullgrad", CLASS), total


@equation("refinecam", on="a ResNet")
def refinecam() -> Pair:
    """RefineCAM: the product of the stages' Grad-CAM++ maps, each scaled to [0, 1]."""
    net, x = make("resnet"), pictures()
    layers = [f"resnet.encoder.stages.{stage}" for stage in range(3)]
    seen: list[Tensor] = []
    handles = [
        net.get_submodule(one).register_forward_hook(lambda _, __, output: seen.append(output)) for one in layers
    ]
    logits = net(x).logits[0]
    for handle in handles:
        handle.remove()
    product = torch.ones(SIZE, dtype=torch.float64)
    for a, g in zip(seen, torch.autograd.grad(logits[CLASS], seen), strict=True):
        own = torch.from_numpy(plusplus(a[0].detach().numpy(), g[0].numpy())).clamp_min(0)
        product *= stretched(F.interpolate(stretched(own)[None, None], SIZE, mode="bilinear")[0, 0])
    return CAM(net, "refinecam", layers=layers)(x, CLASS)[0].double(), stretched(product)


def stretched(one: Tensor) -> Tensor:
    return (one - one.min()) / (one.max() - one.min())


# Attention: a ViT written out ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A forward written out: each layer's weights, queries, keys, values, mixed values and tokens, and the score."""

    weights: list[Tensor]
    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    mixed: list[Tensor]
    tokens: list[Tensor]
    score: Tensor
    prefix: int
    grid: tuple[int, int] = (4, 6)

    def on_grid(self, tokens: Tensor) -> Tensor:
        cells = self.grid[0] * self.grid[1]
        return tokens[self.prefix : self.prefix + cells].reshape(self.grid).clamp_min(0).detach()

    @property
    def weight_gradients(self) -> Sequence[Tensor]:
        return torch.autograd.grad(self.score, self.weights, retain_graph=True)


Rule = str | None


def halves(tensor: Tensor, rule: Rule) -> Tensor:
    return (tensor + tensor.detach()) / 2 if rule == "halved" else tensor


def norm(layer: nn.LayerNorm, tokens: Tensor, rule: Rule) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    length = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    return centred / (length.detach() if rule else length) * layer.weight + layer.bias


def attend(part: nn.Module, normed: Tensor, rule: Rule) -> tuple[Tensor, ...]:
    """One head-by-head attention: weights, queries, keys, values and the mixed values before the output projection."""
    q, k, v = (one(normed).unflatten(-1, (2, -1)).transpose(1, 2) for one in (part.q_proj, part.k_proj, part.v_proj))
    weights = (halves(q, rule) @ halves(k, rule).mT / q.shape[-1] ** 0.5).softmax(-1)
    weights = weights.detach() if rule == "frozen" else halves(weights, rule)
    if not weights.requires_grad:
        weights = weights.requires_grad_()
    return weights, q, k, v, (weights @ halves(v, rule)).transpose(1, 2).flatten(2)


def written_vit(net: nn.Module, rule: Rule = None) -> Written:
    """A ViT's forward; under "halved" or "frozen", with the rules of AttnLRP or LibraGrad."""
    tokens = net.vit.embeddings(pictures()).detach().requires_grad_()
    found: list[list[Tensor]] = [[], [], [], [], []]
    states = [tokens]
    for block in net.vit.layers:
        parts = attend(block.attention, norm(block.layernorm_before, tokens, rule), rule)
        for own, part in zip(found, parts, strict=True):
            own.append(part)
        tokens = tokens + block.attention.o_proj(parts[-1])
        hidden = block.mlp.fc1(norm(block.layernorm_after, tokens, rule))
        active = F.gelu(hidden)
        tokens = tokens + block.mlp.fc2(hidden * (active / hidden).detach() if rule else active)
        states.append(tokens)
    score = net.classifier(norm(net.vit.layernorm, tokens, rule)[:, 0])[0, CLASS]
    return Written(*found, states, score, prefix=1)


def written_gated(net: nn.Module, rule: Rule, gates: str) -> Written:
    """A DINOv2 with registers and SwiGLU under the rules of AttnLRP or LibraGrad."""
    model = net.dinov2_with_registers
    tokens = model.embeddings(pictures()).detach().requires_grad_()
    states = [tokens]
    for block in model.encoder.layer:
        mixed = attend(block.attention, norm(block.norm1, tokens, rule), rule)[-1]
        tokens = tokens + block.attention.o_proj(mixed) * block.layer_scale1.lambda1
        normed = norm(block.norm2, tokens, rule)
        gate, value = block.mlp.gate_proj(normed), block.mlp.up_proj(normed)
        gate = gate * gate.sigmoid().detach()
        product = gate.detach() * value if gates == "frozen" else halves(gate, "halved") * halves(value, "halved")
        tokens = tokens + block.mlp.down_proj(product) * block.layer_scale2.lambda1
        states.append(tokens)
    last = norm(model.layernorm, tokens, rule)
    score = net.classifier(torch.cat([last[:, 0], last[:, 5:].mean(1)], 1))[0, CLASS]
    return Written([], [], [], [], [], states, score, prefix=5)


@equation("raw-attention", on="a ViT")
def raw_attention() -> Pair:
    """The last layer's weights, averaged over heads, in the class token's row."""
    net = make("vit")
    written = written_vit(net)
    return raw_map(net, "raw-attention", CLASS), written.on_grid(written.weights[-1][0].mean(0)[0])


@equation("rollout", on="a ViT")
def rollout() -> Pair:
    """Eq. 1 of attention rollout, with the residual as (A + I) / 2."""
    net = make("vit")
    written = written_vit(net)
    total = rolled([one[0].mean(0) for one in written.weights])
    return raw_map(net, "rollout", CLASS), written.on_grid(total[0])


def rolled(weights: Sequence[Tensor]) -> Tensor:
    total = torch.eye(len(weights[0]), dtype=torch.float64)
    for one in weights:
        step = one + torch.eye(len(one))
        total = (step / step.sum(1, keepdim=True)) @ total
    return total


def positive(weights: Tensor, gradients: Tensor) -> Tensor:
    """Eq. 5 of Chefer et al."""
    return (weights[0] * gradients[0]).clamp_min(0).mean(0)


@equation("chefer", on="a ViT")
def chefer() -> Pair:
    """Eqs. 5 and 6 of Chefer et al.: R grows layer by layer from the identity."""
    net = make("vit")
    written = written_vit(net)
    relevance = torch.eye(written.weights[0].shape[-1], dtype=torch.float64)
    for one, gradient in zip(written.weights, written.weight_gradients, strict=True):
        relevance = relevance + positive(one, gradient) @ relevance
    return raw_map(net, "chefer", CLASS), written.on_grid(relevance[0])


def legrad(start_layer: int) -> Pair:
    """Eqs. 6 to 9 of LeGrad: each layer's mean token through the final norm and the classifier."""
    net = make("vit")
    written = written_vit(net)
    total = torch.zeros(25, dtype=torch.float64)
    for one, tokens in list(zip(written.weights, written.tokens[1:], strict=True))[start_layer:]:
        score = net.classifier(norm(net.vit.layernorm, tokens.mean(1), None))[0, CLASS]
        [gradient] = torch.autograd.grad(score, one, retain_graph=True)
        total += gradient[0].clamp_min(0).mean(0).mean(0)
    return raw_map(net, "legrad", CLASS, start_layer=start_layer), written.on_grid(total)


for start in (0, -2):
    equation("legrad", f"start_layer={start}", on="a ViT")(lambda start=start: legrad(start))


@equation("legrad", "start_layer=0, empty_prompt=1", on="a SigLIP")
def legrad_siglip() -> Pair:
    """LeGrad of an attention pool; zero where the map of the empty prompt is high."""
    net, text = make("siglip"), {"input_ids": torch.tensor([[1, 5, 6, 7, 2], [1, 3, 3, 3, 2]])}
    states = net.vision_model(pictures(), output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[1:]
    words = F.normalize(net.text_model(**text).pooler_output, dim=-1).detach()
    sums = [pooled_strengths(net, states, one) for one in words]
    found = sums[0].masked_fill(stretched(sums[1]) > 0.8, 0)
    ours = raw_map(net, "legrad", PromptSimilarity(0), text, start_layer=0, empty_prompt=1)
    return ours, found.reshape(4, 6)


def pooled_strengths(net: nn.Module, states: Sequence[Tensor], words: Tensor) -> Tensor:
    """The sum over layers of `mean_h relu(ds / dA)`, where A are the pool's weights on the layer's tokens."""
    pool, scale = net.vision_model.head, net.logit_scale.exp()
    own, heads = pool.attention, pool.attention.num_heads
    total = torch.zeros(24, dtype=torch.float64)
    for tokens in states:
        tokens = net.vision_model.post_layernorm(tokens)
        matrices, biases = own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3)
        q, k, v = (
            (given @ matrix.T + bias).unflatten(-1, (heads, -1)).transpose(1, 2)
            for given, matrix, bias in zip((pool.probe, tokens, tokens), matrices, biases, strict=True)
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        hidden = own.out_proj((weights @ v).transpose(1, 2).flatten(2))
        hidden = (hidden + pool.mlp(pool.layernorm(hidden)))[:, 0]
        score = (F.normalize(hidden, dim=-1)[0] @ words) * scale + net.logit_bias
        [gradient] = torch.autograd.grad(score.sum(), weights)
        total += gradient[0, :, 0].clamp_min(0).mean(0)
    return total.detach()


def gradeclip(heads: str) -> Pair:
    """Eqs. 8 to 10 of Grad-ECLIP: gradient, value and the scaled cosine of query and key, cell by cell."""
    net = make("vit")
    written = written_vit(net)
    [gradient] = torch.autograd.grad(written.score, written.mixed[-1])
    q, k, v = (one[-1][0].transpose(0, 1).flatten(1) for one in (written.queries, written.keys, written.values))
    spans = [slice(0, 32)] if heads == "merged" else [slice(0, 16), slice(16, 32)]
    total = torch.zeros(24, dtype=torch.float64)
    for span in spans:
        cosine = torch.stack([F.cosine_similarity(q[0, span], key[span], dim=0) for key in k[1:]])
        total += stretched(cosine) * (v[1:, span] @ gradient[0, 0, span])
    return raw_map(net, "gradeclip", CLASS, heads=heads), total.clamp_min(0).reshape(4, 6).detach()


for heads in ("merged", "own"):
    equation("gradeclip", f"heads={heads!r}", on="a ViT")(lambda heads=heads: gradeclip(heads))


def terms(written: Written) -> list[Tensor]:
    """Token times gradient, before the first block and after each."""
    gradients = torch.autograd.grad(written.score, written.tokens)
    return [(token * gradient).sum(-1)[0] for token, gradient in zip(written.tokens, gradients, strict=True)]


@equation("attnlrp", on="a ViT")
def attnlrp() -> Pair:
    """Propositions 3.1 to 3.4 of AttnLRP, as input times gradient."""
    net = make("vit")
    written = written_vit(net, "halved")
    return raw_map(net, "attnlrp", CLASS), written.on_grid(terms(written)[0])


@equation("libragrad", on="a ViT")
def libragrad() -> Pair:
    """LibraGrad's rules, HiResCAM summed over layers."""
    net = make("vit")
    written = written_vit(net, "frozen")
    return raw_map(net, "libragrad", CLASS), written.on_grid(sum(terms(written)))


@equation("libracam", on="a ViT")
def libracam() -> Pair:
    """LibraGrad's HiResCAM; the class token alone is read behind the last block, so it stands before that block."""
    net = make("vit")
    written = written_vit(net, "frozen")
    return raw_map(net, "libracam", CLASS), written.on_grid(terms(written)[-2])


def gated(gates: str) -> Pair:
    """LibraGrad's rules in a gated MLP."""
    net = make("gated")
    written = written_gated(net, "frozen", gates)
    return raw_map(net, "libragrad", CLASS, gates=gates), written.on_grid(sum(terms(written)))


for gates in ("halved", "frozen"):
    equation("libragrad", f"gates={gates!r}", on="a DINOv2 with SwiGLU")(lambda gates=gates: gated(gates))


# DETR ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detected:
    """DETR's weights and their gradients: among the cells, among the queries, and from queries to cells."""

    encoder: list[Pair]
    own: list[Pair]
    cross: list[Pair]


def detected(net: nn.Module) -> Detected:
    """The weights of the model's own step-by-step attention, in float64."""
    net.set_attn_implementation("eager")
    with Wide():
        found = net(pictures().requires_grad_(), output_attentions=True)
    lists = found.encoder_attentions, found.decoder_attentions, found.cross_attentions
    every = [one for weights in lists for one in weights]
    gradients = iter(torch.autograd.grad(found.logits[0, QUERY, CLASS], every))
    return Detected(*([(one, next(gradients)) for one in weights] for weights in lists))


class Wide(torch.overrides.TorchFunctionMode):
    """transformers rounds the softmax of its step-by-step attention to float32; not under this mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is F.softmax:
            given.pop("dtype", None)
        return func(*args, **given)


def query_map(row: Tensor) -> Tensor:
    return row.reshape(8, 12).clamp_min(0).detach()


@equation("rollout", on="a query of DETR")
def rollout_detr() -> Pair:
    """Chefer et al.'s rollout for DETR: `R_qq^T mean_h(A) R_ii` with the last cross-attention, in the query's row."""
    found = detected(make("detr"))
    cells, queries = (rolled([one[0].mean(0) for one, _ in calls]) for calls in (found.encoder, found.own))
    mixed = queries.T @ found.cross[-1][0][0].mean(0) @ cells
    return raw_map(make("detr"), "rollout", QueryLogit(QUERY, CLASS)), query_map(mixed[QUERY])


@equation("chefer", on="a query of DETR")
def chefer_detr() -> Pair:
    """Eqs. 5 to 11 of Chefer et al.; a row of zeros stays zero where eq. 9 divides by zero."""
    found = detected(make("detr"))
    cells, queries = torch.eye(96, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    mixed = torch.zeros(5, 96, dtype=torch.float64)
    for one in found.encoder:
        cells = cells + positive(*one) @ cells

    def normed(relevance: Tensor) -> Tensor:
        gained = relevance - torch.eye(len(relevance))
        sums = gained.sum(1, keepdim=True)
        return torch.where(sums > 0, gained / sums.clamp_min(1e-300), 0) + torch.eye(len(relevance))

    for own, cross in zip(found.own, found.cross, strict=True):
        among = positive(*own)
        queries, mixed = queries + among @ queries, mixed + among @ mixed
        mixed = mixed + normed(queries).T @ positive(*cross) @ normed(cells)
    return raw_map(make("detr"), "chefer", QueryLogit(QUERY, CLASS)), query_map(mixed[QUERY])
