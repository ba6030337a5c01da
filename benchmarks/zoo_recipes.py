"""The models of the zoo: architectures, initial weights, losses and processors.

Every model is an unmodified transformers class. During training, an auxiliary linear head, which is discarded
afterwards, predicts the class of each cell of the last feature map. The masks are known, and this dense signal teaches
a small transformer in minutes what labels alone would take hours to teach.

To add a model, write a `build_` function and a loss, and add entries to `RECIPES` and `zoo_quality.FLOORS`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn

from benchmarks.dialogues import (
    IMAGE,
    TEMPLATE,
    Dialogue,
    answer_ids,
    dialogues,
    in_clear_order,
    prompt_ids,
    word_tokenizer,
)
from benchmarks.scenes import BLOCK, COLORS, LABELS, MAX_ITEMS, PROMPTS, SIZE, SceneBatch, SceneBlocks, Size

SMALL: Size = (48, 64)
"""Size of single-item scenes, at a quarter of the cost, on which models learn what clothes look like."""

Loss = Callable[[hf.PreTrainedModel, nn.Module, Any, torch.Tensor], torch.Tensor]
"""`(model, dense head, batch, pixel_values) -> scalar`; the batch is what the recipe's `prepare` returned."""
Prepare = Callable[[SceneBatch, np.random.Generator], Any]
"""`(batch, rng) -> batch`, with `images` and `to(device)` as a `SceneBatch` has them."""


def as_drawn(batch: SceneBatch, rng: np.random.Generator) -> SceneBatch:
    """The scenes as they are."""
    return batch


@dataclass(frozen=True)
class Stage:
    """One part of a curriculum: the number of steps, the size of the scenes, and the most items per scene."""

    steps: int
    size: Size = SIZE
    max_items: int = MAX_ITEMS


@dataclass(frozen=True)
class Recipe:
    """Everything that defines one model.

    Args:
        build: returns a new model for scenes of a size; the folder of the zoo is for models that start from another.
        loss: the training loss.
        processor: returns the processor that is saved with the model.
        head: returns the dense head, which is discarded after training; the loss determines its input.
        task: the Hub's name of the task.
        stages: the curriculum.
        start: the model of the zoo that provides the initial weights.
        compiled: the part worth compiling, since a narrow transformer spends most of its time between matrix products.
        learning_rate: the peak learning rate of the schedule.
        batch: scenes per step.
        precision: of the matrix products; bfloat16 is slow on a processor without instructions for it.
        optimizer: of the matrices inside the network. Muon takes fewer steps; its own work per step is the same for a
            batch of any size, so AdamW suits small batches.
        gentle: the part that has been trained already, which learns at a quarter of the rate.
        prepare: what the loss needs beside the scenes, made where the scenes are drawn.
        about: what the model card adds on the data.
    """

    build: Callable[[Size, Path], hf.PreTrainedModel]
    loss: Loss
    processor: Callable[[], hf.BaseImageProcessor | hf.ProcessorMixin]
    head: Callable[[], nn.Module]
    task: str
    stages: tuple[Stage, ...]
    start: str | None = None
    compiled: str | None = None
    learning_rate: float = 2e-3
    batch: int = BLOCK
    precision: torch.dtype = torch.bfloat16
    optimizer: Literal["muon", "adamw"] = "muon"
    gentle: str | None = None
    prepare: Prepare = as_drawn
    about: str = ""


# --- losses ------------------------------------------------------------------------------------------------------


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Scale uint8 in [0, 255] to float in [-1, 1], as the saved processors do with a mean and deviation of 0.5."""
    return images.float() / 127.5 - 1


def label_loss(logits: torch.Tensor, batch: SceneBatch) -> torch.Tensor:
    """Binary cross-entropy of `(B, 10)` logits, summed over the labels."""
    return F.binary_cross_entropy_with_logits(logits.float(), batch.multi_hot(), reduction="none").sum(1).mean()


def dense_loss(head: nn.Module, feature_map: torch.Tensor, batch: SceneBatch) -> torch.Tensor:
    """Loss of the head's prediction, from each cell of `(B, C, h, w)`, of the share of each class in that cell."""
    return cell_loss(head(feature_map), batch.classes)


def cell_loss(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `(B, n, h, w)` logits with the shares of a mask's values; the background has less weight."""
    shares = cell_shares(values, *logits.shape[1:])
    weight = 0.1 + shares[:, 1:].sum(1)
    return (F.cross_entropy(logits.float(), shares, reduction="none") * weight).sum() / weight.sum()


def cell_shares(values: torch.Tensor, bins: int, h: int, w: int) -> torch.Tensor:
    """The share of each value of a mask `(B, H, W)` in each cell: float32 `(B, bins, h, w)`, with sum 1."""
    count, height, width = values.shape
    rows = torch.arange(height, device=values.device)[:, None] * h // height
    columns = torch.arange(width, device=values.device) * w // width
    cell = torch.arange(count, device=values.device)[:, None, None] * h * w + rows * w + columns
    counts = torch.bincount((cell * bins + values).flatten(), minlength=count * h * w * bins)
    shares = counts.view(count, h, w, bins).permute(0, 3, 1, 2).float()
    return shares / shares.sum(1, keepdim=True)


def convnext_loss(
    model: hf.PreTrainedModel, head: nn.Module, batch: SceneBatch, pixel_values: torch.Tensor
) -> torch.Tensor:
    """Loss of the labels from the pooled map, and of the classes from each of its cells."""
    out = model.convnext(pixel_values)
    return label_loss(model.classifier(out.pooler_output), batch) + dense_loss(head, out.last_hidden_state, batch)


def vit_loss(model: hf.PreTrainedModel, head: nn.Module, batch: SceneBatch, pixel_values: torch.Tensor) -> torch.Tensor:
    """Loss of the labels from the class token, and of the classes from each patch token."""
    tokens = model.vit(pixel_values).last_hidden_state
    return label_loss(model.classifier(tokens[:, 0]), batch) + dense_loss(
        head, lay_out(tokens[:, 1:], pixel_values), batch
    )


def swin_loss(
    model: hf.PreTrainedModel, head: nn.Module, batch: SceneBatch, pixel_values: torch.Tensor
) -> torch.Tensor:
    """Loss of the labels from the pooled tokens, and of the classes from each token."""
    out = model.swin(pixel_values)
    feature_map = lay_out(out.last_hidden_state, pixel_values)
    return label_loss(model.classifier(out.pooler_output), batch) + dense_loss(head, feature_map, batch)


def dinov2_loss(
    model: hf.PreTrainedModel, head: nn.Module, batch: SceneBatch, pixel_values: torch.Tensor
) -> torch.Tensor:
    """Loss of the labels from the class token and the mean patch, and of the classes from each patch token."""
    tokens = model.dinov2_with_registers(pixel_values).last_hidden_state
    patches = tokens[:, 1 + model.config.num_register_tokens :]
    logits = model.classifier(torch.cat([tokens[:, 0], patches.mean(1)], 1))
    return label_loss(logits, batch) + dense_loss(head, lay_out(patches, pixel_values), batch)


def segformer_loss(
    model: hf.PreTrainedModel, head: nn.Module, batch: SceneBatch, pixel_values: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy with the shares of the classes in each output cell; the output is a quarter of the scene's size."""
    logits = model(pixel_values).logits.float()
    return F.cross_entropy(logits, cell_shares(batch.classes, *logits.shape[1:]))


class DetectionHead(nn.Module):
    """Auxiliary training signals for DETR: class and box per cell, and spare groups of queries.

    A query that is matched to no item learns little, so each group is matched to all items independently
    (Group DETR, arXiv:2207.13085).
    """

    def __init__(self, channels: int, queries: int, groups: int) -> None:
        super().__init__()
        self.cells = nn.Conv2d(channels, len(LABELS) + 1 + 4, 1)
        self.queries = nn.Parameter(torch.randn(groups, queries, channels))


def detr_loss(
    model: hf.PreTrainedModel, head: DetectionHead, batch: SceneBatch, pixel_values: torch.Tensor
) -> torch.Tensor:
    """DETR's own loss at every decoder layer for each group of queries, and class and box losses per encoded cell."""
    boxes = relative_boxes(batch)
    out = model.model(pixel_values)
    encoded = lay_out(out.encoder_last_hidden_state, pixel_values)
    positions = model.model.position_embedding(shape=encoded.shape, device=encoded.device, dtype=pixel_values.dtype)
    spare = [
        model.model.decoder(
            inputs_embeds=torch.zeros_like(queries),
            object_queries_position_embeddings=queries,
            encoder_hidden_states=out.encoder_last_hidden_state,
            spatial_position_embeddings=positions.flatten(2).transpose(1, 2),
        ).intermediate_hidden_states
        for queries in head.queries[:, None].expand(-1, len(batch), -1, -1)
    ]
    hidden = [states.float() for states in (out.intermediate_hidden_states, *spare)]
    with torch.autocast(pixel_values.device.type, enabled=False):
        groups = torch.stack([group_loss(model, states, batch, boxes) for states in hidden])
    classes, found = head.cells(encoded).split([len(LABELS) + 1, 4], 1)
    return sum(groups) / len(groups) + cell_loss(classes, batch.classes) + 5 * box_loss(found, batch, boxes)


def group_loss(model: hf.PreTrainedModel, hidden: torch.Tensor, batch: SceneBatch, boxes: torch.Tensor) -> torch.Tensor:
    """DETR's own loss for the hidden states of one group, `(layers, B, Q, C)`."""
    items = [
        {"class_labels": labels[labels >= 0], "boxes": box[labels >= 0]}
        for labels, box in zip(batch.labels, boxes, strict=True)
    ]
    logits, found = model.class_labels_classifier(hidden), model.bbox_predictor(hidden).sigmoid()
    return model.loss_function(logits[-1], items, hidden.device, found[-1], model.config, logits, found)[0]


def box_loss(found: torch.Tensor, batch: SceneBatch, boxes: torch.Tensor) -> torch.Tensor:
    """Distance between the box predicted by each cell, `(B, 4, h, w)`, and the box of the item at that cell."""
    shares = cell_shares(batch.instances, 1 + MAX_ITEMS, *found.shape[-2:])[:, 1:]
    distance = (found.float().sigmoid()[:, None] - boxes[..., None, None]).abs().sum(2)
    return (distance * shares).sum() / shares.sum()


def maskformer_loss(
    model: hf.PreTrainedModel, head: nn.Module, batch: SceneBatch, pixel_values: torch.Tensor
) -> torch.Tensor:
    """The model's own loss, on masks of half the scene's size."""
    there = batch.labels >= 0
    slots = torch.arange(1, 1 + MAX_ITEMS, device=there.device)[:, None, None]
    masks = (batch.instances[:, None, ::2, ::2] == slots).float()
    out = model.model(pixel_values)
    with torch.autocast(pixel_values.device.type, enabled=False):
        queries, pixels = out.transformer_decoder_last_hidden_state, out.pixel_decoder_last_hidden_state
        found = torch.einsum("bqc,bchw->bqhw", model.mask_embedder(queries.float()), pixels.float())
        return model.get_loss(
            model.get_loss_dict(
                found,
                model.class_predictor(queries.float()),
                [mask[kept] for mask, kept in zip(masks, there, strict=True)],
                [labels[kept] for labels, kept in zip(batch.labels, there, strict=True)],
                [],
            )
        )


def relative_boxes(batch: SceneBatch) -> torch.Tensor:
    """Boxes `(B, 4, 4)` as centre x, centre y, width and height, relative to the scene's size."""
    height, width = batch.images.shape[-2:]
    corners = batch.boxes / torch.tensor([width, height, width, height], device=batch.boxes.device)
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def clip_loss(
    model: hf.PreTrainedModel, head: nn.Module, batch: SceneBatch, pixel_values: torch.Tensor
) -> torch.Tensor:
    """Contrastive losses: scenes with all prompts and with captions, and patches with all prompts and with "none"."""
    side = model.config.vision_config.image_size
    pixel_values = F.interpolate(pixel_values, (side, side), mode="bilinear", antialias=True)
    tokens = model.vision_model(pixel_values).last_hidden_state
    # Patches are projected as the class token is, so that a prompt that matches the scene also matches at its place.
    embeddings = model.visual_projection(model.vision_model.post_layernorm(tokens)).float()
    embeddings = F.normalize(embeddings, dim=-1) * model.logit_scale.exp()
    template = TEMPLATES[int(torch.randint(len(TEMPLATES), ()))]
    texts = embed_text(model, [template.format(prompt) for prompt in PROMPTS])
    similarities = embeddings @ texts.T
    captions = embeddings[:, 0] @ embed_text(model, [batch.scene(i).caption for i in range(len(batch))]).T
    pairs = torch.arange(len(batch), device=captions.device)
    contrast = (F.cross_entropy(captions, pairs) + F.cross_entropy(captions.T, pairs)) / 2
    none = head.weight.expand(*similarities.shape[:2], 1)[:, 1:]
    patches = torch.cat([none, similarities[:, 1:]], -1)
    return (
        prompt_loss(similarities[:, 0], batch.true_prompts())
        + contrast
        + 2 * prompt_loss(patches, patch_prompts(batch, side // model.config.vision_config.patch_size))
    )


def prompt_loss(similarities: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Loss of each true prompt of a scene or patch compared with all false ones; both arguments are `(..., P)`."""
    rivals = similarities.masked_fill(truth, -torch.inf).logsumexp(-1, keepdim=True)
    return F.softplus(rivals - similarities)[truth].mean()


def patch_prompts(batch: SceneBatch, grid: int) -> torch.Tensor:
    """Which of "none" and `PROMPTS` are true for most of each of `grid * grid` patches: bool `(B, N, 1 + P)`."""
    items = cell_shares(batch.instances, 1 + MAX_ITEMS, grid, grid).argmax(1).flatten(1)
    labels, colors = (F.pad(tensor, (1, 0), value=-1).gather(1, items) for tensor in (batch.labels, batch.colors))
    plain = torch.where(labels >= 0, 1 + labels * len(COLORS), 0)
    truth = torch.zeros(*items.shape, 1 + len(PROMPTS), dtype=torch.bool, device=items.device)
    for found in (plain, torch.where(labels >= 0, plain + colors, 0)):
        truth.scatter_(2, found[..., None], True)
    return truth


def embed_text(model: hf.PreTrainedModel, texts: list[str]) -> torch.Tensor:
    """The texts' embeddings as unit vectors, `(T, C)`."""
    tokens = clip_tokenizer()(texts, padding=True, return_tensors="pt").to(model.device)
    return F.normalize(model.text_projection(model.text_model(**tokens).pooler_output).float(), dim=-1)


@dataclass(frozen=True)
class Asked:
    """Scenes with a clear order from left to right, and one question of each kind about each of them."""

    scenes: SceneBatch
    packed: Packed

    @property
    def images(self) -> torch.Tensor:
        """The pictures, uint8 `(B, 3, H, W)`."""
        return self.scenes.images

    def to(self, device: torch.device | str) -> Asked:
        """The same batch on another device."""
        return Asked(self.scenes.to(device), self.packed.to(device))


def ask(batch: SceneBatch, rng: np.random.Generator) -> Asked:
    """Draw the questions."""
    drawn = [batch.scene(i) for i in range(len(batch))]
    clear = [i for i, scene in enumerate(drawn) if in_clear_order(scene)]
    return Asked(batch.sample(clear), Packed.of([dialogues(drawn[i], rng) for i in clear]))


def llava_loss(model: hf.PreTrainedModel, head: nn.Module, batch: Asked, pixel_values: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answers to one question of each kind, and of class and colour from each cell."""
    pixel_values = to_square(pixel_values, model.config.vision_config.image_size)
    cells = model.model.get_image_features(pixel_values).pooler_output
    cells = torch.stack(list(cells)) if not isinstance(cells, torch.Tensor) else cells
    logits = batch.packed.logits(model, cells)
    classes, colors = head(lay_out(cells, pixel_values)).split([len(LABELS) + 1, len(COLORS) + 1], 1)
    dense = cell_loss(classes, batch.scenes.classes) + cell_loss(colors, color_mask(batch.scenes))
    return F.cross_entropy(logits.float(), batch.packed.answers) + dense / 2


def to_square(pixel_values: torch.Tensor, side: int) -> torch.Tensor:
    """Resize pictures as `clip_processor` does."""
    return F.interpolate(pixel_values, (side, side), mode="bilinear", antialias=True)


def color_mask(batch: SceneBatch) -> torch.Tensor:
    """The colour at each pixel, int64 `(B, H, W)`: 0 is background, `1 + color` is that colour."""
    of_instance = F.pad(batch.colors + 1, (1, 0))
    return of_instance.gather(1, batch.instances.flatten(1)).view_as(batch.instances)


@dataclass(frozen=True)
class Packed:
    """Several dialogues about each picture in one sequence, in which every dialogue sees the picture and itself alone.

    The picture is by far the longest part, so this costs little more than one dialogue. `before` `(P,)` are the tokens
    that precede the picture, `after` `(B, L)` all dialogues side by side, `block` and `place` `(L,)` the dialogue of
    each token and its position in it. `spoken` `(B, L)` marks the tokens that precede one of an answer, and `answers`
    `(n,)` are those answers' tokens in order.
    """

    before: torch.Tensor
    after: torch.Tensor
    block: torch.Tensor
    place: torch.Tensor
    spoken: torch.Tensor
    answers: torch.Tensor

    @classmethod
    def of(cls, asked: Sequence[Sequence[Dialogue]]) -> Packed:
        """Pack the dialogues about each picture; every picture has as many."""
        tokenizer = word_tokenizer()
        columns = list(zip(*asked, strict=True))
        texts, goals, block, place = [], [], [], []
        for number, column in enumerate(columns):
            before, prompts = prompt_ids(tokenizer, column)
            said = [answer_ids(tokenizer, one.answer) for one in column]
            length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, said, strict=True)) - 1
            text = torch.full((len(column), length), tokenizer.pad_token_id)
            goal = torch.full((len(column), length), -100)
            for row, (prompt, answer) in enumerate(zip(prompts, said, strict=True)):
                end = len(prompt) + len(answer) - 1
                text[row, :end] = torch.tensor(prompt + answer[:-1])
                goal[row, len(prompt) - 1 : end] = torch.tensor(answer)
            texts.append(text)
            goals.append(goal)
            block += [number] * length
            place += range(length)
        goal = torch.cat(goals, 1)
        parts = (torch.tensor(before), torch.cat(texts, 1), torch.tensor(block), torch.tensor(place), goal != -100)
        return cls(*parts, goal[goal != -100])

    def to(self, device: torch.device | str) -> Packed:
        """The same on another device."""
        return Packed(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def logits(self, model: hf.PreTrainedModel, cells: torch.Tensor) -> torch.Tensor:
        """The logits `(n, vocabulary)` at the marked tokens, from the projected cells `(B, N, C)` of the pictures."""
        embed = model.get_input_embeddings()
        before = embed(self.before).expand(len(cells), -1, -1)
        sequence = torch.cat([before, cells, embed(self.after)], 1)
        shared = before.shape[1] + cells.shape[1]
        block = F.pad(self.block, (shared, 0), value=-1)
        causal = torch.ones(len(block), len(block), dtype=torch.bool, device=cells.device).tril()
        seen = causal & ((block == -1) | (block == block[:, None]))
        mask = torch.zeros(seen.shape, device=cells.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        positions = torch.cat([torch.arange(shared, device=cells.device), shared + self.place])
        hidden = model.model.language_model(
            inputs_embeds=sequence, attention_mask=mask[None, None], position_ids=positions[None]
        ).last_hidden_state
        return model.lm_head(hidden[:, shared:][self.spoken])


def lay_out(tokens: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Arrange tokens `(B, h * w, C)` of square cells as a map `(B, C, h, w)`."""
    height, width = pixel_values.shape[-2:]
    stride = math.isqrt(height * width // tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (height // stride, width // stride))


# --- architectures -----------------------------------------------------------------------------------------------


def class_names() -> dict[str, dict[int, str] | dict[str, int]]:
    """`id2label` and `label2id` of the ten labels, as keyword arguments of a config."""
    return {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}


def build_convnext(size: Size, zoo: Path) -> hf.PreTrainedModel:
    """A ConvNeXt with three stages, so that the last feature map of a scene still has 6 x 8 cells."""
    config = hf.ConvNextConfig(
        num_stages=3,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 5],
        layer_scale_init_value=0.5,
        image_size=list(size),
        problem_type="multi_label_classification",
        **class_names(),
    )
    return hf.ConvNextForImageClassification(config)


def build_vit(size: Size, zoo: Path) -> hf.PreTrainedModel:
    """A ViT with patches of 8 pixels: 12 x 16 tokens and a class token."""
    config = hf.ViTConfig(
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=384,
        image_size=list(size),
        patch_size=8,
        problem_type="multi_label_classification",
        **class_names(),
    )
    return hf.ViTForImageClassification(config)


def build_swin(size: Size, zoo: Path) -> hf.PreTrainedModel:
    """A Swin with three stages and windows of 4 x 4 tokens; the last feature map of a scene has 6 x 8 cells."""
    config = hf.SwinConfig(
        image_size=list(size),
        patch_size=4,
        embed_dim=40,
        depths=[2, 2, 2],
        num_heads=[2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
        problem_type="multi_label_classification",
        **class_names(),
    )
    return hf.SwinForImageClassification(config)


def build_dinov2(size: Size, zoo: Path) -> hf.PreTrainedModel:
    """The zoo's ViT with four register tokens; its square grid of positions is interpolated in every forward pass."""
    config = hf.Dinov2WithRegistersConfig(
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=112,
        patch_size=8,
        num_register_tokens=4,
        problem_type="multi_label_classification",
        **class_names(),
    )
    model = hf.Dinov2WithRegistersForImageClassification(config)
    renamed = rename(vit_weights(zoo), DINOV2_NAMES)
    name = "dinov2_with_registers.embeddings.position_embeddings"
    renamed[name] = resize_positions(renamed[name], 14 * 14)
    model.load_state_dict(renamed, strict=False)
    return model


def build_segformer(size: Size, zoo: Path) -> hf.PreTrainedModel:
    """A SegFormer whose label 0 is the background."""
    names = ("background", *LABELS)
    config = hf.SegformerConfig(
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 2, 2],
        num_attention_heads=[1, 1, 2, 4],
        decoder_hidden_size=64,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    return hf.SegformerForSemanticSegmentation(config)


def build_detr(size: Size, zoo: Path) -> hf.PreTrainedModel:
    """The zoo's ConvNeXt without its last two blocks, followed by a small encoder and decoder with 12 queries.

    Its first stages are frozen, as those of the ResNet in the paper are, which halves the time of a step.
    """
    source = hf.ConvNextForImageClassification.from_pretrained(zoo / "convnext", dtype=torch.float32)
    backbone = hf.ConvNextConfig(
        num_stages=3, hidden_sizes=source.config.hidden_sizes, depths=[2, 2, 3], out_features=["stage3"]
    )
    config = hf.DetrConfig(
        backbone_config=backbone,
        d_model=80,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        num_queries=12,
        dropout=0.0,
        auxiliary_loss=True,
        eos_coefficient=0.25,
        **class_names(),
    )
    model = hf.DetrForObjectDetection(config)
    convnext = model.model.backbone.model
    convnext.load_state_dict(source.convnext.state_dict(), strict=False)
    for part in (convnext.embeddings, *convnext.encoder.stages[:2]):
        part.requires_grad_(False)
    return model


def build_maskformer(size: Size, zoo: Path) -> hf.PreTrainedModel:
    """The frozen backbone and the decoder of the zoo's DETR, without its encoder, with a new pyramid for masks."""
    source = hf.DetrForObjectDetection.from_pretrained(zoo / "detr", dtype=torch.float32)
    backbone = hf.ConvNextConfig.from_dict(source.config.backbone_config.to_dict())
    backbone.out_features = ["stage1", "stage2", "stage3"]
    config = hf.MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=hf.DetrConfig.from_dict(source.config.to_dict()),
        fpn_feature_size=32,
        mask_feature_size=32,
        no_object_weight=0.25,
        **class_names(),
    )
    model = hf.MaskFormerForInstanceSegmentation(config)
    parts = (
        (model.model.pixel_level_module.encoder, source.model.backbone.model),
        (model.model.transformer_module.decoder, source.model.decoder),
        (model.model.transformer_module.input_projection, source.model.input_projection),
        (model.model.transformer_module.queries_embedder, source.model.query_position_embeddings),
        (model.class_predictor, source.class_labels_classifier),
    )
    for part, trained in parts:
        part.load_state_dict(trained.state_dict(), strict=False)
    for part in (parts[0][0].embeddings, parts[0][0].encoder):
        part.requires_grad_(False)
    return model


def build_clip(size: Size, zoo: Path) -> hf.PreTrainedModel:
    """The zoo's ViT on a square picture, and a text encoder with two layers."""
    tokenizer = clip_tokenizer()
    config = hf.CLIPConfig(
        vision_config={
            "hidden_size": 96,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "intermediate_size": 384,
            "image_size": size[0],
            "patch_size": 8,
            "hidden_act": "gelu",
        },
        text_config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "max_position_embeddings": 48,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=64,
    )
    model = hf.CLIPModel(config)
    renamed = rename(vit_weights(zoo), CLIP_NAMES)
    positions = resize_positions(renamed.pop("positions"), (size[0] // 8) ** 2)[0]
    # CLIP's patch embedding has no bias and is normalized: the positions absorb the bias, a scale undoes the norm.
    positions[1:] += renamed.pop("patch_bias")
    renamed["vision_model.embeddings.position_embedding.weight"] = positions
    name = "vision_model.embeddings.class_embedding"
    renamed[name] = renamed[name].flatten()
    model.load_state_dict(renamed, strict=False)
    with torch.no_grad():
        pixel_values = normalize(SceneBlocks("train", size=(size[0], size[0]))[0].images)
        model.vision_model.pre_layrnorm.weight.fill_(model.vision_model.embeddings(pixel_values).std(-1).mean())
    return model


def build_llava(size: Size, zoo: Path) -> hf.PreTrainedModel:
    """The picture tower of the zoo's CLIP up to its last layer but one, a projector and a small Llama.

    As in LLaVA, the language model reads the output of the last layer but one, so the last one is left out.
    """
    source = hf.CLIPModel.from_pretrained(zoo / "clip", dtype=torch.float32)
    tokenizer = word_tokenizer()
    vision = hf.CLIPVisionConfig(**source.config.vision_config.to_dict() | {"num_hidden_layers": 5})
    text = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=224,
        max_position_embeddings=512,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=True,
    )
    model = hf.LlavaForConditionalGeneration(config)
    tower = model.model.vision_tower
    tower.load_state_dict(source.vision_model.state_dict(), strict=False)
    return model


# --- initial weights ---------------------------------------------------------------------------------------------

DINOV2_NAMES = {
    "vit.layers.": "dinov2_with_registers.encoder.layer.",
    "vit.": "dinov2_with_registers.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
CLIP_NAMES = {
    "vit.embeddings.cls_token": "vision_model.embeddings.class_embedding",
    "vit.embeddings.position_embeddings": "positions",
    "vit.embeddings.patch_embeddings.projection.bias": "patch_bias",
    "vit.embeddings.patch_embeddings.projection.weight": "vision_model.embeddings.patch_embedding.weight",
    "vit.layers.": "vision_model.encoder.layers.",
    "attention.o_proj": "self_attn.out_proj",
    ".attention.": ".self_attn.",
    "layernorm_before": "layer_norm1",
    "layernorm_after": "layer_norm2",
    "vit.layernorm": "vision_model.post_layernorm",
}


def vit_weights(zoo: Path) -> dict[str, torch.Tensor]:
    """The weights of the zoo's ViT without its classifier."""
    model = hf.ViTForImageClassification.from_pretrained(zoo / "vit", dtype=torch.float32)
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("vit.")}


def rename(weights: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The same weights, with the parts of their names replaced in order."""
    renamed = {}
    for name, tensor in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def grid_of(count: int) -> Size:
    """The grid of `count` patches, square or else 3 : 4 as a scene is: 144 is 12 x 12, 192 is 12 x 16."""
    side = math.isqrt(count)
    return (side, side) if side * side == count else (3 * math.isqrt(count // 12), 4 * math.isqrt(count // 12))


def resize_positions(positions: torch.Tensor, count: int) -> torch.Tensor:
    """Interpolate position embeddings `(..., 1 + n, C)` to `(..., 1 + count, C)`; that of the class token is kept."""
    special, patches = positions[..., :1, :], positions[..., 1:, :]
    grid = patches.reshape(1, *grid_of(patches.shape[-2]), -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, grid_of(count), mode="bilinear").flatten(2).transpose(1, 2)
    return torch.cat([special, resized.reshape(*positions.shape[:-2], count, -1)], -2)


# --- processors --------------------------------------------------------------------------------------------------

SCENE_PIXELS = {
    "size": {"height": SIZE[0], "width": SIZE[1]},
    "resample": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
"""Resize to the size of a scene with bilinear interpolation, then scale to [-1, 1]."""

TEMPLATES = ("{}", "{}", "a photo of {}", "a picture of {}", "there is {}", "{} on the floor")


@lru_cache(maxsize=1)
def clip_tokenizer() -> hf.CLIPTokenizer:
    """A byte-pair tokenizer with one token per word of the captions, which spells out all other words."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    words = " and ".join(template.format(prompt) for prompt in PROMPTS for template in TEMPLATES).replace("-", " - ")
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        [words], trainers.BpeTrainer(end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False)
    )
    learned = json.loads(tokenizer.to_str())["model"]
    letters = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet)])
    words_and_parts = [token for token in sorted(learned["vocab"], key=learned["vocab"].get) if token not in letters]
    vocab = {token: i for i, token in enumerate([*letters, *words_and_parts, start, end])}
    return hf.CLIPTokenizer(vocab=vocab, merges=[tuple(merge) for merge in learned["merges"]], model_max_length=48)


def clip_processor() -> hf.CLIPProcessor:
    """Resize to a square without cropping, so that items at the edge are kept."""
    square = SCENE_PIXELS | {"size": {"height": SIZE[0], "width": SIZE[0]}, "do_center_crop": False}
    return hf.CLIPProcessor(hf.CLIPImageProcessor(**square), clip_tokenizer())


def llava_processor() -> hf.LlavaProcessor:
    """The pictures of `clip_processor`, and LLaVA 1.5's format of a chat."""
    return hf.LlavaProcessor(
        clip_processor().image_processor,
        word_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def detr_processor() -> hf.DetrImageProcessor:
    """Resize with the aspect ratio kept, as detectors do."""
    return hf.DetrImageProcessor(**SCENE_PIXELS | {"size": {"shortest_edge": SIZE[0], "longest_edge": SIZE[1]}})


# --- the zoo -----------------------------------------------------------------------------------------------------

label_processor = partial(hf.ViTImageProcessor, **SCENE_PIXELS)
segment_processor = partial(hf.SegformerImageProcessor, do_reduce_labels=False, **SCENE_PIXELS)
instance_processor = partial(hf.MaskFormerImageProcessor, do_reduce_labels=False, **SCENE_PIXELS)


def cell_head(channels: int, outputs: int = len(LABELS) + 1) -> Callable[[], nn.Module]:
    """A linear classifier per cell."""
    return partial(nn.Conv2d, channels, outputs, 1)


CLASSIFY, SEGMENT, DETECT, COMPARE, ANSWER = (
    "image-classification",
    "image-segmentation",
    "object-detection",
    "zero-shot-image-classification",
    "image-text-to-text",
)

RECIPES = {
    "convnext": Recipe(
        build_convnext, convnext_loss, label_processor, cell_head(128), CLASSIFY, (Stage(1200, SMALL, 1), Stage(1700))
    ),
    "vit": Recipe(
        build_vit,
        vit_loss,
        label_processor,
        cell_head(96),
        CLASSIFY,
        (Stage(4000, SMALL, 1), Stage(800)),
        compiled="vit",
    ),
    "segformer": Recipe(
        build_segformer,
        segformer_loss,
        segment_processor,
        nn.Identity,
        SEGMENT,
        (Stage(1800, (64, 64), 2), Stage(900)),
    ),
    "clip": Recipe(
        build_clip,
        clip_loss,
        clip_processor,
        partial(nn.Embedding, 1, 1),  # the similarity above which a prompt matches a patch
        COMPARE,
        (Stage(1500),),
        start="vit",
        compiled="vision_model",
    ),
    # On a map of three cells, a window of four would shrink permanently, so the small scenes are 64 high here.
    "swin": Recipe(
        build_swin,
        swin_loss,
        label_processor,
        cell_head(160),
        CLASSIFY,
        (Stage(1500, (64, 64), 2), Stage(1000)),
    ),
    "dinov2": Recipe(
        build_dinov2,
        dinov2_loss,
        label_processor,
        cell_head(96),
        CLASSIFY,
        (Stage(500),),
        start="vit",
        compiled="dinov2_with_registers",
    ),
    "detr": Recipe(
        build_detr,
        detr_loss,
        detr_processor,
        partial(DetectionHead, channels=80, queries=12, groups=2),
        DETECT,
        (Stage(1400),),
        start="convnext",
    ),
    "maskformer": Recipe(
        build_maskformer,
        maskformer_loss,
        instance_processor,
        nn.Identity,
        SEGMENT,
        (Stage(600),),
        start="detr",
    ),
    "llava": Recipe(
        build_llava,
        llava_loss,
        llava_processor,
        cell_head(96, len(LABELS) + 1 + len(COLORS) + 1),
        ANSWER,
        (Stage(450),),
        start="clip",
        batch=32,
        precision=torch.float32,
        optimizer="adamw",
        gentle="model.vision_tower",
        prepare=ask,
        about="Each scene comes with four questions and their answers in LLaVA 1.5's format: what is in the picture, "
        "what colour an item is, what is on the left or right, and how many items there are "
        "(`benchmarks/dialogues.py`). Scenes whose items have no clear order from left to right are left out.",
    ),
}
"""The recipes, ordered so that every model comes after the one that it starts from."""
