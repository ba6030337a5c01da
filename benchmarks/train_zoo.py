"""Train one small model of the zoo on scenes, from a fixed seed, and save it in Hub format with its model card.

python -m benchmarks.train_zoo convnext [--device cuda] [--steps N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.scenes import BLOCK, LABELS, SceneBlocks
from benchmarks.zoo_quality import FLOORS, SCENES, ZOO
from benchmarks.zoo_recipes import RECIPES, Recipe, Stage, normalize, resize_positions

SEED = 0
WEIGHT_DECAY = 0.05
WARMUP = 100
GENTLE = 0.25
"""Share of the learning rate at which a part that has been trained already learns."""
COMMAND = "python -m benchmarks.train_zoo"


def train(recipe: Recipe, device: torch.device, steps: int | None, zoo: Path) -> hf.PreTrainedModel:
    """Run the curriculum; `steps` overrides its total length, and the stages keep their proportions."""
    torch.manual_seed(SEED)
    total = sum(stage.steps for stage in recipe.stages)
    scale = 1.0 if steps is None else steps / total
    head = recipe.head().to(device)
    model, done = None, 0
    for number, stage in enumerate(recipe.stages):
        earlier, model = model, recipe.build(stage.size, zoo).to(device)
        if earlier is not None:
            carry_over(earlier, model)
        schedule = Schedule(done, done + max(1, round(stage.steps * scale)), total * scale, recipe.learning_rate)
        train_stage(model, head, recipe, stage, schedule, SEED + number, device)
        done = schedule.last
    return model


def resume(
    recipe: Recipe,
    device: torch.device,
    steps: int | None,
    folder: Path,
    cycle: int,
    rate: float | None = None,
    frozen: str | None = None,
    until: int | None = None,
) -> hf.PreTrainedModel:
    """Run the last stage once more, from saved weights, on scenes that no earlier cycle has used.

    Args:
        rate: the peak learning rate; by default half the recipe's.
        frozen: a part that stays as it is.
        until: the step before which to stop, ahead of the end of the schedule.
    """
    torch.manual_seed(SEED + cycle)
    stage = recipe.stages[-1]
    model = load_saved(folder).to(device)
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    length = steps or stage.steps
    schedule = Schedule(0, until or length, length, rate or recipe.learning_rate / 2)
    train_stage(model, recipe.head().to(device), recipe, stage, schedule, SEED + 10 * cycle, device)
    return model


def load_saved(folder: Path) -> hf.PreTrainedModel:
    """Load a model from a folder, with the class that its config names."""
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(hf, architecture).from_pretrained(folder)


@dataclass(frozen=True)
class Schedule:
    """Steps `first` to `last` of one cosine over `total` steps, with a warm-up at the start of each stage."""

    first: int
    last: int
    total: float
    peak: float

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.peak * min(1.0, (step - self.first + 1) / WARMUP) * (1 + math.cos(math.pi * step / self.total)) / 2


def train_stage(
    model: hf.PreTrainedModel,
    head: nn.Module,
    recipe: Recipe,
    stage: Stage,
    schedule: Schedule,
    seed: int,
    device: torch.device,
) -> None:
    """Take the steps of one stage on the scenes of `seed`."""
    model.train()
    optimizers = build_optimizers(model, head, recipe)
    # In bfloat16 on a CPU, the fused kernel's backward pass takes more than half of a step; the plain one is three
    # times as fast. In float32, the fused kernel is faster.
    model.set_attn_implementation("sdpa" if recipe.precision == torch.float32 else "eager")
    if recipe.compiled:
        getattr(model, recipe.compiled).compile(dynamic=False)
    began = time.perf_counter()
    batches = Batches(recipe, SceneBlocks("train", seed, stage.size, stage.max_items, max(BLOCK, recipe.batch)))
    steps = range(schedule.first, schedule.last)
    for step, batch in zip(steps, load(batches, len(steps), device), strict=True):
        batch = batch.to(device)
        with torch.autocast(device.type, recipe.precision, enabled=recipe.precision != torch.float32):
            loss = recipe.loss(model, head, batch, normalize(batch.images))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * schedule.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            rate = recipe.batch * (step - schedule.first + 1) / (time.perf_counter() - began)
            print(f"step {step} loss {loss.item():.4f} scenes/s {rate:.0f}", flush=True)


@dataclass(frozen=True)
class Batches(Dataset[Any]):
    """What a recipe's loss takes, one batch per block of scenes."""

    recipe: Recipe
    blocks: SceneBlocks

    def __getitem__(self, step: int) -> Any:
        """Draw the batch of one step."""
        rng = np.random.default_rng([self.blocks.seed, step])
        return self.recipe.prepare(self.blocks[step].sample(range(self.recipe.batch)), rng)


def load(batches: Batches, count: int, device: torch.device) -> Iterator[Any]:
    """Batches 0 to `count`, made by worker processes if an accelerator would otherwise wait for them."""
    workers = 0 if device.type == "cpu" else max(1, (os.cpu_count() or 2) - 1)
    return iter(DataLoader(batches, batch_size=None, sampler=range(count), num_workers=workers))


def build_optimizers(model: hf.PreTrainedModel, head: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The recipe's optimizer for the matrices inside the network, AdamW for all other parameters."""
    inner = {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.requires_grad
        and min(module.weight.shape) >= 32
        and "classifier" not in name
    }
    trained = set(model.get_submodule(recipe.gentle).parameters()) if recipe.gentle else set()
    muon = recipe.optimizer == "muon"
    learning = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    matrices = [p for p in learning if p in inner and muon]
    rest = [p for p in learning if not (p in inner and muon)]
    found = [torch.optim.AdamW(groups(rest, trained), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))]
    if muon:
        muon_groups = groups(matrices, trained)
        found.insert(0, torch.optim.Muon(muon_groups, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"))
    return found


def groups(parameters: list[nn.Parameter], gentle: set[nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters by the share of the learning rate that they learn at."""
    parts = [
        {"params": [p for p in parameters if p not in gentle], "share": 1.0},
        {"params": [p for p in parameters if p in gentle], "share": GENTLE},
    ]
    return [part for part in parts if part["params"]]


def carry_over(source: hf.PreTrainedModel, target: hf.PreTrainedModel) -> None:
    """Copy a model's weights into one for scenes of another size, interpolating the position embeddings if needed."""
    old = source.state_dict()
    for name, tensor in target.state_dict().items():
        same = old[name].shape == tensor.shape
        tensor.copy_(old[name] if same else resize_positions(old[name], tensor.shape[-2] - 1))


def save(model: hf.PreTrainedModel, recipe: Recipe, folder: Path) -> None:
    """Save weights in float16, the configs and the processor; `from_pretrained` gives float32, which suits any CPU."""
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2) + "\n")
    recipe.processor().save_pretrained(folder)


CARD = """---
library_name: transformers
license: mit
pipeline_tag: {task}
tags: [hf-cam, demo]
---

# {name}: a tiny {architecture} that looks at clothes

An unmodified `transformers.{architecture}` with {parameters:,} parameters in float16, small enough to
ship, trained on scenes in which the right evidence is known. It demonstrates explanations of this architecture and is
of no use on real photographs.

**Data.** Scenes of 96 x 128 pixels (height x width) with one to four items of clothing, each grey or tinted red, green,
blue, yellow, purple or orange, on textured backgrounds, drawn from the 60,000 training pictures of Fashion-MNIST by
`benchmarks/scenes.py`. Labels: {labels}.
{about}
**Training.** On scenes from fixed seeds{start}:

```
{commands}
```

**Quality.** On {held_out} scenes drawn from the 10,000 test pictures, none of which was used for training:

| metric | measured | floor |
| --- | --- | --- |
{rows}

Measured from these weights by `python -m benchmarks.zoo_quality {name}`.
"""


def write_card(name: str, commands: list[str], folder: Path, device: torch.device) -> None:
    """Write the model card, with the quality measured on the saved weights."""
    model, recipe = load_saved(folder), RECIPES[name]
    measured = [(floor, floor.measure(folder, SCENES, device)) for floor in FLOORS[name]]
    text = CARD.format(
        name=name,
        task=recipe.task,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        labels=", ".join(LABELS),
        about="\n" + fill(recipe.about, 120) + "\n" if recipe.about else "",
        start=f", starting from the zoo's `{recipe.start}` of that time" if recipe.start else "",
        commands="\n".join(commands),
        held_out=SCENES,
        rows="\n".join(f"| {floor.metric} | {quality:.3f} | {floor.minimum:.2f} |" for floor, quality in measured),
    )
    (folder / "README.md").write_text(text)


def commands_of(folder: Path) -> list[str]:
    """The commands that made a model, from its card, including those of the model that it started from."""
    card = (folder / "README.md").read_text()
    return [line for line in card.splitlines() if line.startswith(COMMAND)]


def main() -> None:
    """Train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--steps", type=int, help="steps of all stages together (default: as in the recipe)")
    parser.add_argument("--resume", action="store_true", help="run the last stage again, from the weights in the zoo")
    parser.add_argument("--rate", type=float, help="peak learning rate of a resumed run (default: half the recipe's)")
    parser.add_argument("--freeze", metavar="PART", help="a part that a resumed run leaves as it is")
    parser.add_argument("--batch", type=int, help="scenes per step (default: as in the recipe)")
    parser.add_argument("--until", type=int, help="step before which a resumed run stops, ahead of its schedule")
    parser.add_argument("--out", type=Path, default=ZOO, help="folder that holds the zoo (default: %(default)s)")
    options = parser.parse_args()
    recipe, folder = RECIPES[options.model], options.out / options.model
    recipe = replace(recipe, batch=options.batch or recipe.batch)
    before = folder if options.resume else options.out / recipe.start if recipe.start else None
    commands = commands_of(before) if before else []
    if options.resume:
        part, cycle = {"rate": options.rate, "frozen": options.freeze, "until": options.until}, len(commands)
        model = resume(recipe, options.device, options.steps, folder, cycle, **part)
    else:
        model = train(recipe, options.device, options.steps, options.out)
    save(model, recipe, folder)
    given = {name: getattr(options, name) for name in ("resume", "steps", "batch", "rate", "freeze", "until")}
    written = "".join(f" --{name}{'' if value is True else f' {value}'}" for name, value in given.items() if value)
    commands.append(f"{COMMAND} {options.model}{written}")
    write_card(options.model, commands, folder, options.device)


if __name__ == "__main__":
    main()
