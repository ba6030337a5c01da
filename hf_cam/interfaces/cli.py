"""The command `hf-cam`. Heavy imports are deferred until a subcommand runs, so that `--help` is fast."""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_cam import __version__
from hf_cam.errors import HFCamError, OptionError, brief, one_line, reason
from hf_cam.interfaces.audit import add as add_audit
from hf_cam.interfaces.concepts import add as add_concepts
from hf_cam.interfaces.dataset import add_dataset
from hf_cam.interfaces.drawing import (
    add_pictures,
    add_targets,
    check_pictures,
    check_words,
    drawing_of,
    save,
    target_of,
    verdict,
)
from hf_cam.interfaces.export import add as add_export
from hf_cam.interfaces.files import (
    PAGES,
    check_writable,
    entry,
    listed_images,
    output_paths,
    spare,
    write_table,
)

CHUNK = 8
OWN = ("target", "input_points", "input_labels", "input_boxes")
EXAMPLES = """examples:
  hf-cam explain cat.jpg --model google/vit-base-patch16-224
  hf-cam explain photos/ --model ./my-checkpoint --target tabby --out maps/
  hf-cam explain cat.jpg --model openai/clip-vit-base-patch32 --text "a cat" --text "a dog"
  hf-cam explain cat.jpg --model demo:imagenet --method gradcam,layercam,eigencam --out grid.png
  hf-cam audit demo:cheater demo:cheater --out report/
  hf-cam concepts demo:cheater demo:cheater --target coat --out concepts.html
  hf-cam doctor

`hf-cam COMMAND --help` describes the options of a command."""

if TYPE_CHECKING:
    from hf_cam.comparison import Comparison
    from hf_cam.explainer import Explainer
    from hf_cam.explanation import Explanation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its status, 0 if it has none, and 2 on an error (one line on stderr, no traceback)."""
    options = _parser().parse_args(arguments)
    try:
        status: int | None = options.run(options)
    except HFCamError as error:
        print(f"hf-cam: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001  (a command shows no traceback; calls from Python do)
        print(f"hf-cam: {reason(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hf-cam: stopped", file=sys.stderr)
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-cam",
        description="Show what a vision model looked at.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hf-cam {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    models = (_add_explain, _add_dataset, add_audit, add_concepts, _add_evaluate, _add_adapter)
    for add in (*models, _add_export, _add_demo, _add_methods, _add_space, _add_doctor):
        add(commands)
    return parser


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser("explain", help="explain images with a model")
    explain.add_argument(
        "images", nargs="+", metavar="IMAGE", help="path or URL of an image (or of a video), or a folder"
    )
    explain.add_argument("--model", required=True, help="Hub id, folder or demo:NAME, e.g. demo:imagenet")
    explain.add_argument(
        "--target",
        action="append",
        help='class index, label such as "tabby", pixel X,Y or box X0,Y0,X1,Y1; repeatable (default: what the model '
        "finds)",
    )
    add_targets(explain)
    explain.add_argument("--text", action="append", help="prompt or question, for models that take text; repeatable")
    _add_marks(explain)
    explain.add_argument("--answer", help="text that a vision-language model is forced to write (default: its own)")
    explain.add_argument(
        "--generate",
        action="append",
        metavar="NAME=VALUE",
        help="setting of its generation, e.g. max_new_tokens=200; repeatable",
    )
    explain.add_argument(
        "--top-k", type=int, help="number of classes, objects or segments (default: a classifier's best, else all)"
    )
    explain.add_argument(
        "--threshold", type=float, help="lowest score of objects or segments, in [0, 1] (default: set by the model)"
    )
    explain.add_argument(
        "--method", help="auto or one of `hf-cam methods`; a,b,c makes a grid (default: auto, set by the model)"
    )
    _add_budget(explain, "make a grid of all methods that take up to N forwards (default: one method)")
    _add_option(explain)
    explain.add_argument("--layer", action="append", dest="layers", help="dotted name; repeatable (default: inferred)")
    explain.add_argument("--aug-smooth", action="store_true", help="average over six views")
    explain.add_argument("--eigen-smooth", action="store_true", help="first principal component of the contributions")
    explain.add_argument("--signed", action="store_true", help="also show what speaks against the target, in blue")
    explain.add_argument(
        "--effort",
        choices=("fast", "checked"),
        default="fast",
        help="checked: try several methods, and test whether the model reads what the map marks (default: fast)",
    )
    explain.add_argument("--labels", metavar="FILE", help="class names: JSON (a list, or an object) or one per line")
    explain.add_argument(
        "--output",
        choices=("auto", "logits", "probabilities", "multi-label", "regression", "embedding"),
        default="auto",
        help="what the model returns (default: auto, established by a run)",
    )
    _add_device(explain)
    explain.add_argument(
        "--out", default="hf-cam-out", help="picture file, .html page of an answer, or folder (default: hf-cam-out)"
    )
    add_pictures(explain)
    explain.add_argument("--table", type=Path, metavar="FILE.csv", help="write what was found to a table too")
    explain.set_defaults(run=_explain)


def _add_marks(explain: argparse.ArgumentParser) -> None:
    explain.add_argument(
        "--point",
        action="append",
        metavar="X,Y",
        help='pixel that a promptable model of masks segments; "X,Y X,Y" for several of one mask; repeatable',
    )
    explain.add_argument(
        "--label", action="append", metavar="1,0", help="1 or 0 per point of a --point: in the mask or not (default: 1)"
    )
    explain.add_argument(
        "--box",
        action="append",
        metavar="X0,Y0,X1,Y1",
        help="box that it segments, or of a person for a model of poses; repeatable",
    )


def _add_dataset(commands: Any) -> None:
    add_dataset(commands, _method_options, _silence_loading)


def _add_export(commands: Any) -> None:
    add_export(commands, _method_options)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="explain sample photographs from scikit-learn and scikit-image")
    demo.add_argument("--out", type=Path, default=Path("hf-cam-demo"), help="folder (default: hf-cam-demo)")
    demo.set_defaults(run=_demo)


def _add_methods(commands: Any) -> None:
    methods = commands.add_parser("methods", help="list the methods")
    methods.set_defaults(run=_methods)


def _add_evaluate(commands: Any) -> None:
    judge = commands.add_parser("evaluate", help="measure methods and layers with metrics, beside baseline maps")
    judge.add_argument("model", metavar="MODEL", help="Hub id, folder or demo:NAME")
    judge.add_argument("images", nargs="*", metavar="IMAGE", help="pictures or a folder (default: those of the demo)")
    judge.add_argument("--method", help="a,b,c (default: all within the budget)")
    _add_budget(judge, "take all methods that need up to N forwards per map (default: 100)")
    _add_option(judge)
    judge.add_argument("--metric", help="a,b,c; see docs/metrics.md (default: those that query the model)")
    judge.add_argument("--layer", action="append", dest="layers", help="dotted name; repeatable, evaluated separately")
    judge.add_argument("--target", help="class index or label (default: what the model finds)")
    judge.add_argument("--text", action="append", help="prompt; repeatable")
    judge.add_argument("--seed", type=int, default=0, help="seed for noise and ties (default: 0)")
    judge.add_argument(
        "--steps", type=_steps, help="steps of insertion and deletion; rise: one per row of pixels (default: see docs)"
    )
    _add_device(judge)
    judge.add_argument(
        "--out", type=Path, default=Path("hf-cam-evaluation"), help="folder (default: hf-cam-evaluation)"
    )
    judge.add_argument("--resume", action="store_true", help="continue the records that are in the folder already")
    judge.set_defaults(run=_evaluate)


def _steps(given: str) -> int | str:
    return int(given) if given.lstrip("-").isdigit() else given


def _add_space(commands: Any) -> None:
    space = commands.add_parser("space", help="start the web page locally, or push it to a Space")
    space.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    space.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    space.add_argument("--online", action="store_true", help="allow any model on the Hub (default: demo models only)")
    space.add_argument("--deploy", metavar="USER/NAME", help="push the page to this Space instead of starting it")
    space.add_argument("--private", action="store_true", help="with --deploy: make the Space private")
    space.set_defaults(run=_space)


def _add_adapter(commands: Any) -> None:
    adapter = commands.add_parser("adapter", help="show where hf-cam looks in a model, as cam_config.json")
    adapter.add_argument("model", metavar="MODEL", help="Hub id, folder or demo:NAME")
    adapter.add_argument("--save", action="store_true", help="write cam_config.json to the model's folder")
    adapter.set_defaults(run=_adapter)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="report versions, devices, the Hub, and what is missing")
    doctor.set_defaults(run=_doctor)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help='"cpu", "cuda", ... (default: the GPU if there is one)')


def _add_budget(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--budget", type=float, metavar="N", help=f"{text}; not with --method")


def _add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--option", action="append", metavar="NAME=VALUE", help="option of the method, e.g. seed=3; repeatable"
    )


def _method_options(given: Sequence[str] | None, option: str = "--option seed=3") -> dict[str, Any]:
    """`["seed=3", "base=layercam"]` as `{"seed": 3, "base": "layercam"}`; values are Python literals or else words.

    Raises:
        OptionError: one has no name or no value.
    """
    found: dict[str, Any] = {}
    for one in given or ():
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise OptionError(f"{option.split()[0]} takes NAME=VALUE, as in {option}, got {brief(one)}")
        try:
            found[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name.strip()] = value
    return found


def _explain(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from hf_cam.explainer import Explainer
    from hf_cam.images.reading import load_image
    from hf_cam.images.videos import may_be_video
    from hf_cam.models.loading import load

    _silence_loading()
    outputs = _places(options)
    methods = _wanted_methods(options)
    if len(methods) > 1 and (options.top_k or 1) > 1:
        raise OptionError("several methods are compared on one target: omit --top-k, or name a single method")
    check_pictures(options, methods)
    moving = [image for image in options.images if may_be_video(image)]
    for image in options.images:
        if image not in moving:
            load_image(image)  # report a damaged image before anything is written, but keep none in memory
    labels = None if options.labels is None else _labels(options.labels)
    loaded = load(options.model, labels=labels, output=options.output, device=options.device)
    for video in moving:
        loaded.opened(video)
    explainer = Explainer(loaded, methods[0], options.layers)
    if explainer.words is not None:
        check_words(options)
    elif any(output.suffix.lower() in PAGES for output in outputs):
        raise OptionError(f"{options.out!r} is a page, which shows the words of a vision-language model's answer alone")
    settings = {
        "target": target_of(options),
        "text": options.text,
        "threshold": options.threshold,
        "renormalize": options.renormalize,
        "method_options": _method_options(options.option),
        "aug_smooth": options.aug_smooth,
        "eigen_smooth": options.eigen_smooth,
        "signed": options.signed,
        "effort": options.effort,
        "answer": options.answer,
        "generate": _method_options(options.generate, "--generate max_new_tokens=200"),
        **_marks(options),
    }
    if len(methods) == 1:
        settings["top_k"] = options.top_k if options.expected is None else 1
    found = _explained(explainer, options.images, methods, settings, named=options.budget is None)
    progress = tqdm(found, total=len(options.images), unit="image", disable=len(options.images) < 2)
    table: list[dict[str, Any]] = []
    taken = {output.with_suffix("") for output in outputs}
    for name, output, explanations in zip(options.images, outputs, progress, strict=True):
        named = output == Path(options.out).expanduser()
        written = _write(output, explanations, options, taken, chosen_here=not named)
        told = [] if len(methods) > 1 else verdict(output, explanations, options, taken)
        for line in (*_lines(name, explanations, written), *told):
            progress.write(line)
        table += [entry(name, explanation, path) for explanation, path in written]
    if options.table is not None:
        write_table(options.table.expanduser(), table)


def _places(options: argparse.Namespace) -> list[Path]:
    """Where the picture of each image goes; folders among the images become theirs.

    Raises:
        ImageError, OptionError: a place that is written to does not serve.
    """
    options.images, roots = listed_images(options.images)
    outputs = output_paths(options.images, options.out, roots)
    spare(options.images, outputs, "--out")
    if options.table is not None:
        spare(options.images, [options.table], "--table")
        check_writable(options.table, "--table")
    return outputs


def _marks(options: argparse.Namespace) -> dict[str, Any]:
    """What `--point`, `--label` and `--box` mark, as `hf_cam.explain` takes it.

    Raises:
        OptionError: one of them is not made of numbers.
    """
    points = options.point and [[_numbers("--point", one) for one in given.split()] for given in options.point]
    labels = options.label and [_numbers("--label", given) for given in options.label]
    boxes = options.box and [_numbers("--box", given) for given in options.box]
    return {"input_points": points or None, "input_labels": labels or None, "input_boxes": boxes or None}


def _numbers(option: str, given: str) -> list[float]:
    try:
        return [float(number) for number in given.split(",")]
    except ValueError as error:
        raise OptionError(f"{option} takes numbers such as 120,80, got {brief(given)}") from error


def _wanted_methods(options: argparse.Namespace) -> list[str]:
    """The ids in `--method`, or all within `--budget`.

    Raises:
        OptionError: both are given, or the budget is no number of forwards from 1.
        MethodError: a method does not exist.
    """
    from hf_cam.comparison import method_ids

    if options.budget is None:
        return method_ids(options.method or "auto")
    _check_either(options)
    return method_ids(None, options.budget)


def _check_either(options: argparse.Namespace) -> None:
    """Refuse a budget beside named methods, which are taken whatever they cost.

    Raises:
        OptionError: both are given.
    """
    if options.budget is not None and options.method is not None:
        raise OptionError("--budget chooses the methods, and --method names them; pass one of the two")


def _labels(path: str) -> Any:
    """The class names in a file: JSON, or one per line.

    Raises:
        OptionError: the file cannot be read, is broken JSON, or has an empty line between two names.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--labels must be a file of class names; {path[:80]!r} cannot be read") from error
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise OptionError(f"--labels: {path[:80]!r} is no valid JSON ({reason(error)})") from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    if "" in names:
        number = names.index("") + 1
        raise OptionError(
            f"--labels: line {number} of {path[:80]!r} is empty, so which class the next line names is open; delete "
            "the line or name its class"
        )
    return names


def _explained(
    explainer: Explainer, sources: Sequence[str], methods: Sequence[str], settings: dict[str, Any], *, named: bool
) -> Iterator[Any]:
    """The explanations of each image; images are decoded in chunks."""
    for start in range(0, len(sources), CHUNK):
        images = [explainer.loaded.opened(source) for source in sources[start : start + CHUNK]]
        if len(methods) > 1:
            yield from (_compared(explainer, image, methods, settings, named=named) for image in images)
        else:
            # A list means the same several targets or prompts in each image.
            each = {name: [settings[name]] * len(images) for name in OWN if isinstance(settings[name], list)}
            own = {**settings, **each}
            yield from explainer(images, **own)


def _compared(
    explainer: Explainer, image: Any, methods: Sequence[str], settings: Mapping[str, Any], *, named: bool
) -> Comparison:
    """Several methods on one image; those that are not defined, unless named, are named on stderr with the reason."""
    from hf_cam.comparison import compared
    from hf_cam.request import Request

    found = compared(explainer, image, methods, Request.of(**settings), named=named)
    _report_skipped(found.skipped)
    return found


def _report_skipped(skipped: Mapping[str, str]) -> None:
    for name, why in skipped.items():
        print(f"hf-cam: {name} was left out: {why}", file=sys.stderr)


def _write(
    output: Path, found: Any, options: argparse.Namespace, taken: set[Path], *, chosen_here: bool
) -> list[tuple[Explanation, Path]]:
    """Save the explanations of one image, each with its file. A video becomes a GIF if no file is named."""
    from hf_cam.comparison import Comparison
    from hf_cam.words.answer import Answer

    if isinstance(found, Answer):
        path = found.save(output)
        return [(explanation, path) for explanation in found]
    if isinstance(found, Comparison):
        found.save(output, alpha=options.alpha, colormap=options.colormap, **drawing_of(options))
        return [(explanation, output) for explanation in found.explanations]
    return save(output, found, options, taken, animated=chosen_here)


def _lines(name: str, found: Any, written: Sequence[tuple[Explanation, Path]]) -> list[str]:
    """A line per explanation; one for the words of an answer."""
    from hf_cam.words.answer import Answer

    if isinstance(found, Answer):
        return [f"{one_line(name)}: {one_line(found.answer)} -> {path}" for _, path in written[:1]]
    return [_line(name, explanation, path) for explanation, path in written]


def _line(name: str, explanation: Explanation, path: Path) -> str:
    flags = f"  [{', '.join(explanation.flags)}]" if explanation.flags else ""
    effort = f"\n  {explanation.effort}" if explanation.effort else ""
    score = f"{explanation.score:.3f} {explanation.score_kind}"
    return f"{one_line(name)}: {explanation.label} {score} ({explanation.method}) -> {path}{flags}{effort}"


def _demo(options: argparse.Namespace) -> None:
    from hf_cam.interfaces.demo import run_demo

    _silence_loading()
    run_demo(options.out, report=print)


def _evaluate(options: argparse.Namespace) -> None:
    from hf_cam.evaluation.bench import evaluate
    from hf_cam.evaluation.plots import draw_bars, draw_curves
    from hf_cam.evaluation.samples import Sample, samples_of
    from hf_cam.interfaces.demo import PHOTOGRAPHS

    _silence_loading()
    _check_either(options)
    out = options.out.expanduser()
    records = _records_file(out, options.resume)
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
        **{name: given for name in ("steps", "budget") if (given := getattr(options, name)) is not None},
        method_options=_method_options(options.option),
        device=options.device,
        resume=records,
    )
    if options.resume:
        print(f"resumed {table.resumed} of {len(table.records)} records from {records}", file=sys.stderr)
    print(table.to_markdown())
    (out / "table.md").write_text(table.to_markdown() + "\n", encoding="utf-8")
    table.to_csv(out / "table.csv")
    drawn = [draw_bars(table, out / "bars.png"), draw_curves(table, out / "curves.png")]
    _report_skipped(table.skipped)
    written = ", ".join(str(path) for path in drawn if path)
    print(f"written to {out}: table.md, table.csv, records.jsonl; {written}", file=sys.stderr)


def _records_file(folder: Path, resume: bool) -> Path:
    """The records file in the folder of an evaluation.

    Raises:
        OptionError: it holds records, and the caller did not ask to continue them.
    """
    path = folder / "records.jsonl"
    if not resume and path.exists() and (path.is_dir() or path.stat().st_size):
        raise OptionError(
            f"{brief(str(path))} holds the records of an earlier evaluation; pass --resume to continue it, "
            "or another folder as --out"
        )
    return path


def _space(options: argparse.Namespace) -> None:
    from hf_cam.interfaces.space import deploy, serve

    if options.deploy:
        print(deploy(options.deploy, options.private))
    else:
        serve(options.host, options.port, options.online)


def _methods(options: argparse.Namespace) -> None:
    from hf_cam.methods import list_methods
    from hf_cam.words.methods import list_word_methods

    methods = list_methods()
    width = max(map(len, methods))
    for method in methods.values():
        cost = method.cost()
        forwards = "1 forward" if cost == 1 else f"about {cost:,.{0 if cost >= 10 else 1}f} forwards"
        print(f"{method.id:<{width}}  {method.description}")
        print(f"{'':<{width}}  needs {', '.join(method.needs)}; {forwards}; {method.paper}")
        if method.departure:
            print(f"{'':<{width}}  departs from it: {method.departure}")
    print("\nFor the words of vision-language models:")
    for one in list_word_methods().values():
        print(f"{one.id:<{width}}  {one.summary}")
        print(f"{'':<{width}}  {one.paper}")
        if one.departure:
            print(f"{'':<{width}}  departs from it: {one.departure}")


def _adapter(options: argparse.Namespace) -> None:
    from hf_cam.models.checkpoints import load_config, resolve_name
    from hf_cam.models.traits import writes_words
    from hf_cam.target_layers.infer import infer_adapter

    _silence_loading()
    name = resolve_name(options.model)
    config = load_config(name)
    if writes_words(config):
        _print_places(name)
        return
    adapter = infer_adapter(config)
    print(json.dumps(adapter.to_dict(), indent=2))
    print(f"from: {adapter.origin}", file=sys.stderr)
    if options.save:
        if options.model.startswith("demo:"):
            raise OptionError("a demo model belongs to the package; --save needs a folder of your own")
        if not Path(name).is_dir():
            raise HFCamError(f"{name!r} is not a folder; --save writes beside a local config.json")
        print(f"written to {adapter.save_pretrained(name)}", file=sys.stderr)


def _print_places(name: str) -> None:
    """Where the picture enters a vision-language model, measured on a photograph."""
    from hf_cam.interfaces.demo import PHOTOGRAPHS
    from hf_cam.models.loading import load
    from hf_cam.words.explaining import WordExplainer

    places = WordExplainer(load(name)).located(PHOTOGRAPHS[0].image())
    print(json.dumps([place.to_dict() for place in places], indent=2))
    print("from: measured on one photograph", file=sys.stderr)


def _doctor(options: argparse.Namespace) -> int:
    from hf_cam.interfaces.doctor import lines, ready

    for line in lines():
        print(line, flush=True)
    return 0 if ready() else 1


def _silence_loading() -> None:
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # hf-cam itself reports a damaged video, in one line


if __name__ == "__main__":
    raise SystemExit(main())
