"""The command `hf-cam`. Heavy imports wait until a subcommand runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_cam import __version__
from hf_cam.errors import HFCamError, OptionError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy")
CHUNK = 8

if TYPE_CHECKING:
    from hf_cam.explainer import Explainer
    from hf_cam.explanation import Explanation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; 0 on success, 2 on a refusal (one line on stderr, no traceback)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except HFCamError as error:
        print(f"hf-cam: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001  (a command shows no traceback; in Python every error has its own)
        print(f"hf-cam: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hf-cam: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-cam", description="Show what a vision model looked at.")
    parser.add_argument("--version", action="version", version=f"hf-cam {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    explain = commands.add_parser("explain", help="explain images with a model")
    explain.add_argument("images", nargs="+", metavar="IMAGE", help="path or URL, for some models of a video")
    explain.add_argument("--model", required=True, help="Hub id, folder or demo:NAME, e.g. demo:imagenet")
    explain.add_argument(
        "--target",
        help='class index, label text such as "tabby", pixel X,Y or box X0,Y0,X1,Y1 (default: what the model finds)',
    )
    explain.add_argument(
        "--text", action="append", help="prompt for a model that compares images with text; repeatable"
    )
    explain.add_argument(
        "--top-k", type=int, help="how many classes, objects or segments (default: a classifier's best, else all)"
    )
    explain.add_argument(
        "--method", default="auto", help="see `hf-cam methods`; a,b,c makes a grid (default: the family's)"
    )
    explain.add_argument("--layer", action="append", dest="layers", help="dotted name; repeatable (default: inferred)")
    explain.add_argument("--device", help='"cpu", "cuda", ... (default: the GPU where there is one)')
    explain.add_argument("--aug-smooth", action="store_true", help="average over six views")
    explain.add_argument("--eigen-smooth", action="store_true", help="first principal component of the contributions")
    explain.add_argument("--out", default="hf-cam-out", help="picture file or folder (default: hf-cam-out)")
    explain.set_defaults(run=_explain)

    demo = commands.add_parser("demo", help="explain photographs that come with scikit-learn and scikit-image")
    demo.add_argument("--out", type=Path, default=Path("hf-cam-demo"), help="folder (default: hf-cam-demo)")
    demo.set_defaults(run=_demo)

    methods = commands.add_parser("methods", help="list the methods")
    methods.set_defaults(run=_methods)

    judge = commands.add_parser("evaluate", help="judge methods and layers by metrics, beside maps that see no model")
    judge.add_argument("model", metavar="MODEL", help="Hub id, folder or demo:NAME")
    judge.add_argument("images", nargs="*", metavar="IMAGE", help="pictures or a folder (default: the demo's)")
    judge.add_argument("--method", help="a,b,c (default: all that run no forward a channel)")
    judge.add_argument("--metric", help="a,b,c; see docs/metrics.md (default: what asks the model)")
    judge.add_argument("--layer", action="append", dest="layers", help="dotted name; repeatable, one evaluation each")
    judge.add_argument("--target", help="class index or label text; the model's own where not given")
    judge.add_argument("--text", action="append", help="prompt; repeatable")
    judge.add_argument("--seed", type=int, default=0, help="of noise and ties (default: 0)")
    judge.add_argument("--device", help='"cpu", "cuda", ... (default: the GPU where there is one)')
    judge.add_argument("--out", type=Path, default=Path("hf-cam-evaluation"), help="folder; a second run goes on there")
    judge.set_defaults(run=_evaluate)

    space = commands.add_parser("space", help="start the web page here, or push it to a Space")
    space.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    space.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    space.add_argument("--online", action="store_true", help="take any model of the Hub (default: demo models alone)")
    space.add_argument("--deploy", metavar="USER/NAME", help="push the page to this Space in place of starting it")
    space.add_argument("--private", action="store_true", help="with --deploy: make the Space private")
    space.set_defaults(run=_space)

    adapter = commands.add_parser("adapter", help="show where hf-cam looks in a model, as cam_config.json")
    adapter.add_argument("model", metavar="MODEL", help="Hub id, folder or demo:NAME")
    adapter.add_argument("--save", action="store_true", help="write cam_config.json into the model's folder")
    adapter.set_defaults(run=_adapter)
    return parser


def _explain(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from hf_cam.comparison import method_ids
    from hf_cam.explainer import Explainer
    from hf_cam.images.reading import load_image
    from hf_cam.images.videos import moves
    from hf_cam.models.loading import load

    _silence_loading()
    outputs = _output_paths(options.images, options.out)
    methods = method_ids(options.method)
    if len(methods) > 1 and (options.top_k or 1) > 1:
        raise OptionError("several methods are compared on one target: leave --top-k out, or name a single method")
    moving = [image for image in options.images if moves(image)]
    for image in options.images:
        if image not in moving:
            load_image(image)  # a damaged one among many is told before anything is written; none is kept in memory
    loaded = load(options.model, device=options.device)
    for video in moving:
        loaded.opened(video)
    explainer = Explainer(loaded, methods[0], options.layers)
    settings = {
        "target": options.target,
        "text": options.text,
        "aug_smooth": options.aug_smooth,
        "eigen_smooth": options.eigen_smooth,
    }
    if len(methods) == 1:
        settings["top_k"] = options.top_k
    found = _explained(explainer, options.images, methods, settings)
    progress = tqdm(found, total=len(options.images), unit="image", disable=len(options.images) < 2)
    for name, output, explanations in zip(options.images, outputs, progress, strict=True):
        named = output == Path(options.out).expanduser()
        for line in _write(name, output, explanations, grid=len(methods) > 1, chosen_here=not named):
            progress.write(line)


def _explained(
    explainer: Explainer, sources: Sequence[str], methods: Sequence[str], settings: dict[str, Any]
) -> Iterator[Any]:
    """What was found of each image; a chunk of them is decoded at a time."""
    for start in range(0, len(sources), CHUNK):
        images = [explainer.loaded.opened(source) for source in sources[start : start + CHUNK]]
        if len(methods) > 1:
            yield from (explainer.compare(image, methods, **settings) for image in images)
        else:
            yield from explainer(images, **settings)


def _write(name: str, output: Path, explanations: Any, grid: bool, chosen_here: bool) -> list[str]:
    """Save what was found of one image; the lines to print. A video becomes a GIF where the caller names no file."""
    if grid:
        from hf_cam.comparison import Comparison

        firsts = [by_method[0] for by_method in explanations]
        Comparison(firsts, firsts[0].picture).save(output)
        return [_line(name, explanation, output) for explanation in firsts]
    if chosen_here and explanations[0].frames:
        output = output.with_suffix(".gif")
    paths = _numbered(output, len(explanations))
    return [
        _line(name, explanation, explanation.save(path)) for explanation, path in zip(explanations, paths, strict=True)
    ]


def _output_paths(images: Sequence[str], out: str) -> list[Path]:
    """One picture an image: the file that was asked for, or one in the folder that is named like the image.

    Raises:
        OptionError: a single file is asked for several images, or the file is no picture.
    """
    path = Path(out).expanduser()
    if path.suffix.lower() in PICTURES and not path.is_dir() and not out.endswith("/"):
        if len(images) > 1:
            raise OptionError(f"{out!r} is one file and there are {len(images)} images; name a folder with --out")
        return [path]
    if len(images) == 1 and path.suffix and not path.is_dir() and not out.endswith("/"):
        raise OptionError(f"{out!r} does not end in a picture format ({', '.join(PICTURES)}); a folder ends in /")
    paths: list[Path] = []
    for image in images:
        stem = Path(image.split("?")[0].rstrip("/")).stem or "image"
        names = (stem if i == 1 else f"{stem}-{i}" for i in itertools.count(1))
        paths.append(next(free for name in names if (free := path / f"{name}.png") not in paths))
    return paths


def _numbered(path: Path, count: int) -> list[Path]:
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(count)]


def _line(name: str, explanation: Explanation, path: Path) -> str:
    flags = f"  [{', '.join(explanation.flags)}]" if explanation.flags else ""
    return f"{name}: {explanation.label} {explanation.score:.3f} ({explanation.method}) -> {path}{flags}"


def _demo(options: argparse.Namespace) -> None:
    from hf_cam.interfaces.demo import run_demo

    _silence_loading()
    run_demo(options.out, say=print)


def _evaluate(options: argparse.Namespace) -> None:
    from hf_cam.evaluation.bench import evaluate
    from hf_cam.evaluation.plots import draw_bars, draw_curves
    from hf_cam.evaluation.samples import Sample, samples_of
    from hf_cam.interfaces.demo import PHOTOGRAPHS

    _silence_loading()
    sources = options.images
    if not sources:
        samples = [Sample(photograph.image(), photograph.name) for photograph in PHOTOGRAPHS]
    else:
        samples = [sample for source in sources for sample in samples_of(source)]
    table = evaluate(
        options.model,
        samples,
        methods=options.method,
        metrics=options.metric,
        layers=options.layers,
        target=options.target,
        text=options.text,
        seed=options.seed,
        device=options.device,
        resume=options.out / "records.jsonl",
    )
    print(table.to_markdown())
    (options.out / "table.md").write_text(table.to_markdown() + "\n", encoding="utf-8")
    table.to_csv(options.out / "table.csv")
    drawn = [draw_bars(table, options.out / "bars.png"), draw_curves(table, options.out / "curves.png")]
    for name, reason in table.skipped.items():
        print(f"hf-cam: {name} was left out: {reason}", file=sys.stderr)
    written = ", ".join(str(path) for path in drawn if path)
    print(f"written to {options.out}: table.md, table.csv, records.jsonl; {written}", file=sys.stderr)


def _space(options: argparse.Namespace) -> None:
    from hf_cam.interfaces.space import deploy, serve

    if options.deploy:
        print(deploy(options.deploy, options.private))
    else:
        serve(options.host, options.port, options.online)


def _methods(options: argparse.Namespace) -> None:
    from hf_cam.methods import list_methods
    from hf_cam.methods.registry import WIDTH

    methods = list_methods()
    width = max(map(len, methods))
    for method in methods.values():
        forwards = f"about {method.cost(WIDTH):.2g} forwards"
        print(f"{method.id:<{width}}  {method.description}")
        print(f"{'':<{width}}  needs {', '.join(method.needs)}; {forwards}; {method.paper}")


def _adapter(options: argparse.Namespace) -> None:
    import json

    from hf_cam.models.checkpoints import load_config, resolve_name
    from hf_cam.target_layers.infer import infer_adapter

    _silence_loading()
    name = resolve_name(options.model)
    adapter = infer_adapter(load_config(name))
    print(json.dumps(adapter.to_dict(), indent=2))
    print(f"from: {adapter.origin}", file=sys.stderr)
    if options.save:
        if options.model.startswith("demo:"):
            raise OptionError("a demo model belongs to the package; --save writes into a folder of your own")
        if not Path(name).is_dir():
            raise HFCamError(f"{name!r} is no folder; --save writes beside a local config.json")
        print(f"written to {adapter.save_pretrained(name)}", file=sys.stderr)


def _silence_loading() -> None:
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a damaged video is told in one line, and by hf-cam


if __name__ == "__main__":
    raise SystemExit(main())
