"""What the maps of all words of an answer cost, in forwards and in memory, on the demo model and at real length.

    python -m benchmarks.word_cost [--repeats 3] [--models demo:llava long] [--write PAGE]

Times are those of the processor in one thread, as medians of paired repetitions over one teacher-forced forward of
prompt and answer, after the generation that the weights of all words are taken from: warm (the place and the footprints
are known), at a new picture size on a known model, and cold, with the check of how the picture is removed. The evidence
of all words has a column of its own, and so has drawing their maps in the picture's pixels, which `hf_cam.explain` does
word by word when a heatmap is read. `long` is a random Qwen2-VL with 1,200 picture tokens and four layers of the width
of the 0.5B language model; one repetition takes minutes of a core. Memory is the peak of the process above what it held
with the loaded weights, over that of `generate` alone; each in a process of its own. `eager` is what others start from:
one forward over prompt and answer with `output_attentions=True`, for which the language model's attention has to be
computed step by step, in forwards, and its peak memory over that of `generate`.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import Tensor, nn

from benchmarks.scenes import scenes
from hf_cam.capture.guard import borrowed
from hf_cam.words.footprints import blank, disturbed
from hf_cam.words.locate import Known, Located, expected, located
from hf_cam.words.place import kept_at
from hf_cam.words.removal import readings_without
from hf_cam.words.scores import Score
from hf_cam.words.weighing import DEFAULT, Question, weighed
from hf_cam.words.writing import Written, answer_rows, cached_inputs, whole_inputs, written

WORDS = 20
SIZES = ((480, 640), (640, 480), (512, 640), (600, 480), (448, 672))
"""Pictures of the demo model: those that a raster is confirmed at, and others."""
LONG = ((840, 1120), (1120, 840), (980, 980), (784, 1204))
SECTION = re.compile(r"(<!-- cost -->\n).*?(<!-- end cost -->)", re.DOTALL)
COLUMNS = ("warm", "evidence", "new size", "cold", "drawing", "memory", "eager", "eager memory")
LIMITS = {"warm": 0.6, "new size": 2.0, "cold": 6.0, "memory": 1.15}


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Args:
        name: For the table.
        model: Itself.
        prepare: From pictures to the inputs of a prompt.
        sizes: Heights and widths of pictures that it takes.
        picture: From a size and a number to a picture of the kind that it knows.
    """

    name: str
    model: nn.Module
    prepare: Callable[[Any], dict[str, Tensor]]
    sizes: tuple[tuple[int, int], ...]
    picture: Callable[[tuple[int, int], int], Image.Image]


def scene(size: tuple[int, int], number: int) -> Image.Image:
    """One of the scenes that the demo model describes."""
    [*_, found] = scenes("test", number + 1, seed=7)
    return Image.fromarray(found.image).resize(size[::-1], Image.Resampling.BICUBIC)


def noise(size: tuple[int, int], number: int) -> Image.Image:
    """What a random model knows no less than any other picture."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8))


def demo() -> Subject:
    """`demo:llava` with its own processor."""
    from benchmarks.dialogues import DESCRIBE
    from hf_cam.models.loading import load
    from hf_cam.words.prompts import prompt_of

    loaded = load("demo:llava")
    return Subject("demo:llava", loaded.model, prompt_of(loaded.processor, DESCRIBE[0], 1), SIZES, scene)


def long() -> Subject:
    """A random Qwen2-VL of the width of the 0.5B language model, and of real length."""
    torch.manual_seed(0)
    text = {"hidden_size": 896, "num_hidden_layers": 4, "num_attention_heads": 14, "num_key_value_heads": 2,
            "intermediate_size": 4864, "vocab_size": 1000, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}}  # fmt: skip
    vision = {"depth": 4, "embed_dim": 640, "num_heads": 8, "hidden_size": 896}
    ids = {"image_token_id": 990, "video_token_id": 991, "vision_start_token_id": 992, "vision_end_token_id": 993}
    config = hf.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    model = hf.Qwen2VLForConditionalGeneration(config).eval()
    processor = hf.Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 1300 * 28 * 28})

    def prepare(pictures: Any) -> dict[str, Tensor]:
        made = processor(images=[*pictures], return_tensors="pt")
        count = int(made["image_grid_thw"].prod()) // 4
        ids = torch.tensor([[5, 992, *[990] * count, 993, *range(10, 30)]])
        types = (ids == 990).long()
        return {**made, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}

    return Subject("random Qwen2-VL, 1,200 picture tokens", model, prepare, LONG, noise)


SUBJECTS: dict[str, Callable[[], Subject]] = {"demo:llava": demo, "long": long}


def text_of(replica: nn.Module, inputs: dict[str, Tensor]) -> Written:
    """An answer of so many tokens, with a cache of its own."""
    forced = torch.arange(30, 30 + WORDS) % int(replica.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    return written(replica, inputs, {}, [forced])


def asked(
    subject: Subject, replica: nn.Module, inputs: dict[str, Tensor], text: Written, shown: Image.Image, place: Located
) -> Question:
    """Each token for itself, from the generation's cache."""
    return Question(
        replica, place.place, Score(text.tokens), [[t] for t in range(WORDS)], answer_rows(WORDS),
        length=text.prompt.shape[1] + WORDS - 1, whole=lambda: whole_inputs(replica, inputs, text),
        noisy=lambda: whole_inputs(replica, subject.prepare([disturbed(shown)]), text),
        blank=lambda: whole_inputs(replica, subject.prepare([blank(shown)]), text),
        cached=partial(cached_inputs, replica, inputs, text), known=text.logits,
    )  # fmt: skip


def times(subject: Subject, repeats: int) -> dict[str, float]:
    """Each kind of explanation, and the drawing, over one forward, as the median of paired repetitions."""
    ratios: dict[str, list[float]] = {"warm": [], "evidence": [], "new size": [], "cold": [], "drawing": []}
    first, second, *others = subject.sizes
    with borrowed(subject.model) as replica:
        for number in range(repeats):
            known = Known()
            for kind, size in (("cold", first), ("confirming", second), ("new size", others[0]), ("warm", first)):
                shown = subject.picture(size, number)
                inputs = subject.prepare([shown])
                with kept_at(replica, expected(known, [shown], inputs)) as entered:
                    text = text_of(replica, inputs)
                forward, _ = timed(run, replica, whole_inputs(replica, inputs, text))
                taken, (place, found, question) = timed(explain, subject, replica, known, inputs, text, shown, *entered)
                checking, _ = timed(readings_without, known, question)
                if kind in ratios:
                    ratios[kind].append((taken + (checking if kind == "cold" else 0)) / forward)
                if kind == "warm":
                    ratios["evidence"].append(checking / forward)
                    ratios["drawing"].append(timed(place.footprints.painted, found)[0] / forward)
    return {kind: statistics.median(found) for kind, found in ratios.items()}


def eager_times(subject: Subject, repeats: int) -> float:
    """A forward that returns all attention weights over one that does not; it leaves the model's attention eager."""
    inputs = whole(subject)
    plain = [timed(run, subject.model, inputs)[0] for _ in range(repeats + 1)][1:]
    make_eager(subject.model)
    eager = [timed(run, subject.model, inputs | {"output_attentions": True})[0] for _ in plain]
    return statistics.median(eager) / statistics.median(plain)


def make_eager(model: nn.Module) -> None:
    """Let the language model compute its attention weights; the tower's are not asked for."""
    model.set_attn_implementation({"text_config": "eager"})  # type: ignore[operator]


def whole(subject: Subject) -> dict[str, Any]:
    """The inputs of a forward over prompt and answer."""
    inputs = subject.prepare([subject.picture(subject.sizes[0], 0)])
    return whole_inputs(subject.model, inputs, text_of(subject.model, inputs))


def explain(
    subject: Subject,
    replica: nn.Module,
    known: Known,
    inputs: dict[str, Tensor],
    text: Written,
    shown: Image.Image,
    entered: Tensor | None = None,
) -> tuple[Located, Tensor, Question]:
    """The weights of all words, after the place and the footprints where these are not known yet."""
    [place] = located(known, replica, subject.prepare, [shown], inputs, entered)
    question = asked(subject, replica, inputs, text, shown, place)
    return place, weighed(DEFAULT, question).weights, question


def run(replica: nn.Module, inputs: Any) -> None:
    """One forward without gradients."""
    with torch.no_grad():
        replica(**inputs)


def timed(call: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds of this process's own time that a call takes, and what it returns."""
    start = time.process_time()
    found = call(*args)
    return time.process_time() - start, found


def eager_peak(subject: Subject) -> float:
    """The peak of the process in MB above the loaded weights, of a forward that returns all attention weights."""
    before = held()
    inputs = whole(subject)
    make_eager(subject.model)
    run(subject.model, inputs | {"output_attentions": True})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def peak(subject: Subject, *, explained: bool) -> float:
    """The peak of the process in MB above the loaded weights, of a generation alone or with its maps."""
    shown, known = subject.picture(subject.sizes[0], 0), Known()
    with borrowed(subject.model) as replica:
        inputs = subject.prepare([shown])
        if explained:
            located(known, replica, subject.prepare, [shown], inputs)
        before = held()
        text = text_of(replica, inputs)
        if explained:
            [place] = located(known, replica, subject.prepare, [shown], inputs)
            question = asked(subject, replica, inputs, text, shown, place)
            place.footprints.painted(weighed(DEFAULT, question).weights)
            readings_without(known, question)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def held() -> float:
    """Megabytes that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(name: str) -> dict[str, float]:
    """The peaks with maps and with all attention weights over that of the generation alone."""
    found = []
    for flag in PEAKS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.word_cost", "--peak", flag, "--models", name],
            check=True,
            capture_output=True,
            text=True,
        )
        found.append(float(done.stdout.split()[-1]))
    generated, explained, eager = found
    return {"memory": explained / generated, "eager memory": eager / generated}


PEAKS: dict[str, Callable[[Subject], float]] = {
    "generate": partial(peak, explained=False),
    "explain": partial(peak, explained=True),
    "eager": eager_peak,
}


def table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """As Markdown."""
    lines = [
        "| model | warm | evidence | new picture size | cold | drawing | peak memory | eager | its memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [f"| {name} | " + " | ".join(f"{found[kind]:.2f}" for kind in COLUMNS) + " |" for name, found in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print or write the table; exit with 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=[*SUBJECTS], choices=[*SUBJECTS])
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--peak", choices=[*PEAKS], help="print the memory that this takes on one model, in MB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(PEAKS[options.peak](SUBJECTS[options.models[0]]()))
        return
    rows = []
    for name in options.models:
        subject = SUBJECTS[name]()
        found = times(subject, options.repeats) | {"eager": eager_times(subject, options.repeats)}
        label, subject = subject.name, replace(subject, model=nn.Identity())
        rows.append((label, found | memory(name)))
    print(drawn := table(rows))
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(SECTION.sub(rf"\g<1>\n{drawn}\n\n\g<2>", page), encoding="utf-8")
    if any(found[kind] > limit for _, found in rows for kind, limit in LIMITS.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
