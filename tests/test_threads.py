"""Other threads and processes that use a model see nothing of a map, and an interrupt leaves nothing behind."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import hf_cam
from benchmarks.interrupts import Interrupter
from hf_cam.cam import CAM
from hf_cam.capture import guard
from hf_cam.capture.guard import borrowed
from hf_cam.capture.inputs import call
from hf_cam.errors import HFCamError, MethodError
from hf_cam.images.reading import opened
from hf_cam.methods import list_methods
from hf_cam.models.checkpoints import load_pretrained
from hf_cam.testing import check_model_untouched
from hf_cam.threads import HERE, ForkSafeLock, unwarned
from hf_cam.zoo import demo_model
from nets import spread, tiny
from pictures import SIZE, pictures
from unchanged import half_frozen


def vit(**settings: Any) -> nn.Module:
    return spread(tiny(hf.ViTForImageClassification, image_size=SIZE, num_hidden_layers=2, num_labels=5, **settings))


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Run `work` again and again in another thread inside the block, and collect what it raises."""
    stop, failed = threading.Event(), list[BaseException]()

    def loop() -> None:
        while not stop.is_set() and len(failed) < 3:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - reported by the test
                failed.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield failed
    finally:
        stop.set()
        thread.join()


# Threads -------------------------------------------------------------------------------------------------------------


def test_a_thread_that_runs_the_model_sees_nothing() -> None:
    model, x = vit(), pictures(1)
    expected = model(x).logits.detach()

    def serve() -> None:
        with torch.no_grad():
            found = model(x).logits
            assert not found.requires_grad
            assert not torch.is_grad_enabled()
        torch.testing.assert_close(found, expected)

    with beside(serve) as failed:
        for method in ("gradcam", "libracam", "legrad", "ablationcam", "shapleycam"):
            CAM(model, method)(pictures(), 1)
    assert not failed


def test_a_thread_that_trains_sees_its_own_mode_and_gets_every_gradient() -> None:
    model = half_frozen(vit(hidden_dropout_prob=0.5))
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]

    def train() -> None:
        model.zero_grad()
        model(pictures(1)).logits.sum().backward()
        assert [module.training for module in model.modules()] == modes
        assert [parameter.grad is not None for parameter in model.parameters()] == wanted
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-6)  # an optimizer's step, in the middle of a map

    with beside(train) as failed:
        for _ in range(10):
            assert CAM(model, "gradcam")(pictures(), 1).any()
    assert not failed


def test_two_models_and_one_model_twice_are_explained_at_once() -> None:
    one, other, meeting = vit(), vit(), threading.Barrier(3, timeout=20)
    models, maps = [one, one, other], dict[int, Tensor]()
    expected = CAM(one)(pictures(), 1)

    def work(number: int) -> None:
        met: list[int] = []

        def target(output: Any) -> Tensor:
            if not met:
                met.append(meeting.wait())  # in the middle of a call: no thread waits for the end of another's
            return output.logits[1]

        maps[number] = CAM(models[number])(pictures(1), [target])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        torch.testing.assert_close(maps[number], expected[:1])


class Drawing(nn.Module):
    """Draws numbers in evaluation mode, as masked autoencoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.dropout(self.stem(x), 0.3, training=True)
        kept = maps * (torch.rand(maps.shape[2:]) + torch.randn_like(maps).sigmoid())
        return self.head(kept[:, torch.randperm(8)].relu().mean((2, 3)))


def test_numbers_that_another_thread_draws_never_repeat_and_maps_do() -> None:
    torch.manual_seed(0)
    model, drawn = spread(Drawing()), list[float]()
    cam, other = CAM(model, layers="stem"), CAM(vit())
    expected = cam(pictures(), 1)
    torch.manual_seed(1)
    with beside(lambda: drawn.append(torch.rand(()).item())):
        for _ in range(20):
            torch.testing.assert_close(cam(pictures(), 1), expected)
            other(pictures(1), 1)
    assert len(drawn) > 100
    expected_pairs = len(drawn) ** 2 / 2**25  # numbers of 24 bits that are equal by chance
    assert len(drawn) - len(set(drawn)) < 20 + 2 * expected_pairs


def test_a_map_draws_nothing_from_the_generators_of_the_process() -> None:
    for model in (spread(Drawing()), vit(hidden_dropout_prob=0.5).train()):
        check_model_untouched(model, lambda model=model: CAM(model, layers=None)(pictures(), 1))


DRAWING: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda x: x + torch.rand(x.shape),
    "randint": lambda x: x + torch.randint(2, 5, x.shape),
    "randint_like": lambda x: x + torch.randint_like(x, 9),
    "multinomial": lambda x: x.mean() + torch.multinomial(x.flatten(1).abs(), 2),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "normal": lambda x: torch.normal(x, 1.0),
    "exponential_": lambda x: x + torch.empty_like(x).exponential_(),
    "gumbel_softmax": F.gumbel_softmax,
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "dropout2d": lambda x: F.dropout2d(x, 0.5, training=True),
    "trunc_normal_": lambda x: x + nn.init.trunc_normal_(torch.empty(x.shape)),
}


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", DRAWING)
def test_every_random_function_draws_from_the_calls_own_generator(name: str) -> None:
    model, before = Function(DRAWING[name]), torch.get_rng_state()
    found = []
    for _ in range(2):
        with borrowed(model) as replica, torch.no_grad():
            found.append(call(replica, {"x": pictures()}))
        torch.rand(1)
        before = torch.get_rng_state() if len(found) == 1 else before
    assert torch.equal(*found)
    again = model(pictures())
    assert again.shape != found[0].shape or not torch.equal(again, model(pictures()))


def test_torch_compile_works_during_and_after_maps_of_several_threads() -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    def work() -> None:
        torch._dynamo.reset()
        before = len(compiled)
        torch.compile(nn.Linear(3, 3), backend=backend)(torch.ones(2, 3))
        assert len(compiled) > before

    work()
    threads = [threading.Thread(target=lambda: [CAM(vit())(pictures(1), 1) for _ in range(3)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    work()


# Processes -----------------------------------------------------------------------------------------------------------


def _explained(model: nn.Module) -> Tensor:
    return CAM(model)(pictures(1), 1)


def _answer(model: nn.Module, answers: Any) -> None:
    answers.put(_explained(model).numpy())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.slow
@pytest.mark.parametrize("work", ["forks_while_a_thread_explains", "explains_in_workers"])
def test_forked_processes_explain(work: str) -> None:
    # In a fresh process: torch refuses gradients in a child if autograd has ever started threads, as compiling does.
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_threads; test_threads.{work}()"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=200)


def forks_while_a_thread_explains() -> None:
    model = vit()
    expected = _explained(model)
    with beside(lambda: _explained(model)) as failed:
        for _ in range(4):
            _in_fork(lambda: torch.testing.assert_close(_explained(model), expected))
    assert not failed


def _in_fork(work: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            torch.set_num_threads(1)
            work()
        except BaseException:  # noqa: BLE001 - the status reports it
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_lock_that_another_thread_holds_is_free_in_a_forked_child() -> None:
    for _ in range(3):
        ForkSafeLock()  # those that are gone by then are no matter
    lock, held, done = ForkSafeLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    def take() -> None:
        with lock:
            pass

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    _in_fork(take)
    done.set()
    thread.join()


@pytest.mark.slow
def test_a_spawned_process_explains() -> None:
    context = get_context("spawn")
    model, answers = vit(), context.Queue()
    process = context.Process(target=_answer, args=(model, answers))
    process.start()
    found = torch.from_numpy(answers.get(timeout=120))
    process.join()
    torch.testing.assert_close(found, _explained(model))


class Maps(Dataset[Tensor]):
    """A data set whose items are maps, made in the loader's workers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return _explained(self.model)[0]


def explains_in_workers() -> None:
    model = vit()
    expected = _explained(model)
    loader = DataLoader(Maps(model), num_workers=2, multiprocessing_context="fork")
    for maps in loader:
        torch.testing.assert_close(maps, expected)


# Interruption --------------------------------------------------------------------------------------------------------


class InterrupterOfBlocks(Interrupter):
    """The same at a line of `contextlib`, or of the block that lends models: where blocks are entered and left."""

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        where = frame.f_code.co_filename
        return super().trace(frame, event, argument) if where in (contextlib.__file__, guard.__file__) else None


def thread_state() -> tuple[Any, ...]:
    c = torch._C
    stacks = c._len_torch_function_stack(), c._len_torch_dispatch_stack()
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *stacks,
        HERE.call.eager,
        HERE.call.plain_checkpoints,
    )


INSTANTS = int(os.environ.get("HF_CAM_INTERRUPTS", "4"))
"""How many random instants of each method are tried with each kind of parameters: 300 of all methods by default."""

FEW: dict[str, dict[str, int]] = {
    "sscam": {"draws": 1},
    "iscam": {"steps": 1},
    "integrated-gradients": {"steps": 2},
    "smoothgrad": {"samples": 2},
    "smoothgradcam++": {"samples": 2},
    "occlusion": {"patch": 32},
    "rise": {"samples": 4},
    "d-rise": {"samples": 4},
}
"""Options with which methods of many forwards take few."""


def interrupted_at(model: nn.Module, method: str, instants: Callable[[int], list[int]]) -> int:
    """How many interrupts of one method were tried; after each, nothing of it acts on the model or the thread."""
    cam, x = CAM(model, method, **FEW.get(method, {})), pictures(1)
    try:
        expected = cam(x, 1)
    except MethodError:
        return 0
    output, counter, state = model(x).logits, Interrupter(), thread_state()
    counter.run(lambda: cam(x, 1))
    tried = instants(counter.lines)
    for instant in tried:
        check_model_untouched(model, lambda instant=instant: Interrupter(instant).run(lambda: cam(x, 1)))
        assert thread_state() == state, (method, instant)
        assert torch.equal(model(x).logits, output), (method, instant)
        assert torch.equal(cam(x, 1), expected), (method, instant)
    return len(tried)


UNDOING = {
    "a function mode": ("libracam", torch.overrides.TorchFunctionMode, "__exit__"),
    "the grad mode": ("scorecam", torch.no_grad, "__exit__"),
    "gradients switched on": ("libracam", torch.enable_grad, "__exit__"),
    "the dispatch mode": ("gradcam", torch._C, "_pop_torch_dispatch_stack"),
    "plain checkpoints": ("gradcam", guard, "uncheckpointed"),
    "compiled code": ("gradcam", guard, "eager"),
}


@pytest.mark.parametrize("what", UNDOING)
def test_an_interrupt_while_something_is_undone_leaves_the_thread_as_it_was(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, home, name = UNDOING[what]
    model = spread(Drawing()) if home is torch._C else vit()
    before, raised, own = thread_state(), list[int](), getattr(home, name)
    cam = CAM(model, method, layers="stem" if home is torch._C else None)

    def interrupted(*args: Any) -> Any:
        if raised:
            return own(*args)
        raised.append(1)
        raise KeyboardInterrupt

    class Interrupted:
        def __enter__(self) -> None:
            self.own = own()
            self.own.__enter__()  # and never left

        def __exit__(self, *error: object) -> None:
            raised.append(1)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(home, name, Interrupted if home is guard else interrupted)
        with pytest.raises(KeyboardInterrupt):
            cam(pictures(1), 1)
    assert raised
    assert thread_state() == before
    assert cam(pictures(1), 1).any()


@pytest.mark.parametrize("method", ["libragrad", "libracam", "attnlrp"])
def test_an_interrupt_while_a_mode_is_off_its_stack_loses_neither_it_nor_itself(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cam, calls, push = CAM(vit(), method), [0], torch.overrides._push_mode

    def interrupted(mode: Any) -> None:
        calls[0] += 1
        if calls[0] == 20:  # a mode that acts is off the stack; what leaves it next takes off the one below
            raise KeyboardInterrupt
        push(mode)

    with Theirs() as theirs:
        with monkeypatch.context() as patch:
            patch.setattr(torch.overrides, "_push_mode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                cam(pictures(1), 1)
        assert torch._C._len_torch_function_stack() == 1
        assert torch._C._get_function_stack_at(0) is theirs
    assert calls[0] >= 20
    assert torch._C._len_torch_function_stack() == 0


class Theirs(torch.overrides.TorchFunctionMode):
    """A mode of the caller's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_an_interrupt_that_is_handled_already_does_not_replace_an_error() -> None:
    cam = CAM(vit(), "eigencam")
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(HFCamError):
            cam(torch.zeros(1, 3, 5, 5), 10**6)


def test_an_interrupt_while_a_block_is_entered_or_left_changes_nothing_later() -> None:
    cam, x, state, counter = CAM(vit(), "eigencam"), pictures(1), thread_state(), InterrupterOfBlocks()
    cam(x, 1)
    counter.run(lambda: cam(x, 1))
    assert counter.lines > 50
    for instant in range(1, counter.lines + 1, 3):
        with torch.no_grad():
            kept = InterrupterOfBlocks(instant).run(lambda: cam(x, 1))
        assert kept is not None
        kept = None  # frees what the call held, now that gradients are on again
        assert thread_state() == state, instant


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_an_interrupt_at_any_instant_leaves_nothing_that_acts(train: bool) -> None:
    model, chosen = vit(), random.Random(0)
    for parameter in model.parameters():
        parameter.requires_grad_(train)
    tried = sum(
        interrupted_at(model, method, lambda lines: [chosen.randrange(1, lines + 1) for _ in range(INSTANTS)])
        for method in list_methods()
    )
    assert tried >= 35 * INSTANTS


AFTER, BEFORE = "register_forward_hook", "register_forward_pre_hook"
UNDEFINED_HERE = ("cam", "d-rise")
"""One needs pooling and a linear layer behind the last cells, the other a detector."""


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in list_methods() if name not in UNDEFINED_HERE])
def test_an_interrupt_at_any_registration_of_a_hook_leaves_no_hook(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, seen, stop = vit(), pictures(1), [0], [0]
    cam = CAM(model, method, **FEW.get(method, {}))

    def interrupting(own: Any) -> Any:
        def register(*args: Any, **kwargs: Any) -> Any:
            handle = own(*args, **kwargs)
            seen[0] += 1
            if seen[0] == stop[0]:
                raise KeyboardInterrupt
            return handle

        return register

    for name in (AFTER, BEFORE):
        monkeypatch.setattr(nn.Module, name, interrupting(getattr(nn.Module, name)))
    cam(x, 1)  # the first call also looks for the layer
    seen[0] = 0
    cam(x, 1)

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            cam(x, 1)

    for instant in range(1, seen[0] + 1):
        seen[0], stop[0] = 0, instant
        check_model_untouched(model, interrupted)


@pytest.mark.parametrize(
    ("method", "register"),
    [(method, AFTER) for method in ("gradcam", "libracam", "fullgrad", "ablationcam")]
    + [("libracam", BEFORE), ("ablationcam", BEFORE)],
)
def test_an_interrupt_at_the_registration_of_a_hook_leaves_no_hook(
    method: str, register: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = vit(), pictures(1)
    cam = CAM(model, method)
    expected, own, left = cam(x, 1), getattr(nn.Module, register), [0]

    def registering(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        handle = own(module, *args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return handle

    monkeypatch.setattr(nn.Module, register, registering)
    cam(x, 1)
    registrations = -left[0]
    assert registrations > 0
    for instant in range(1, registrations + 1, max(1, registrations // 8)):
        left[0] = instant

        def interrupted() -> None:
            with pytest.raises(KeyboardInterrupt):
                cam(x, 1)

        check_model_untouched(model, interrupted)
    left[0] = 0
    assert torch.equal(cam(x, 1), expected)


# The model -----------------------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Assigns a buffer and an attribute, writes to a buffer and to a dict, and fills a list, in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Linear(8, 5)
        self.register_buffer("assigned", torch.zeros(8))
        self.register_buffer("written", torch.zeros(()))
        self.cache: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []
        self.last: Tensor | None = None
        self.act.register_forward_hook(self._keep)
        self.act.register_forward_hook(lambda module, args, output: self.seen.append(output))

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.last = output

    def forward(self, x: Tensor) -> Tensor:
        self.act(self.stem(x))
        self.assigned, self.cache["maps"] = self.last.mean((0, 2, 3)), self.last
        self.written += 1
        assert self.seen[-1] is self.last
        return self.head(self.last.mean((2, 3)))


@pytest.mark.parametrize("method", ["gradcam", "fullgrad", "ablationcam", "scorecam"])
def test_what_a_forward_assigns_and_writes_stays_out_of_the_model(method: str) -> None:
    model = Stateful()
    before = copy.deepcopy(model)
    maps = check_model_untouched(model, lambda: CAM(model, method, layers="stem")(pictures(), 1))
    assert maps.any()
    assert copy.deepcopy(model).cache == model.cache == {}
    assert model.seen == []
    assert model.last is None
    assert torch.equal(model.assigned, before.assigned)
    assert not model.written.any()


def test_a_replica_follows_every_way_in_which_modules_refer_to_each_other() -> None:
    class Holder:
        def __init__(self, part: nn.Module) -> None:
            self.part = part

    class Tangled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)
            self.middle = nn.Conv2d(8, 8, 1)
            self.listed, self.named = [self.stem], {"head": self.head}
            self.holder, self.closed = Holder(self.middle), lambda x: self.middle(x)

        def forward(self, x: Tensor) -> Tensor:
            x = self.closed(self.holder.part(self.listed[0](x)))
            return self.named["head"](x.relu().mean((2, 3)))

    model = Tangled()
    model.head.weight = nn.Parameter(model.head.weight.data)
    with borrowed(model) as replica:
        mine, own = set(replica.modules()), set(model.modules())
        assert mine.isdisjoint(own)
        assert replica.listed[0] is replica.stem
        assert replica.holder.part is replica.middle
        assert replica.closed.__closure__[0].cell_contents is replica
        ran: list[nn.Module] = []
        for part in own:
            part.register_forward_hook(lambda module, *_: ran.append(module))
        torch.testing.assert_close(replica(pictures()), model(pictures()))
        assert set(ran) <= own  # the hooks came after the replica was made
        assert len(ran) == 5  # and the modules that ran with them are the model's own, in its own forward


def test_a_module_with_several_names_and_a_tied_weight_stay_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.append(model[0])
    model[1].weight = model[0].weight
    with borrowed(model) as replica:
        assert replica[2] is replica[0]
        assert replica[1].weight is replica[0].weight
        assert replica[0].weight.data_ptr() == model[0].weight.data_ptr()


def test_every_error_of_a_call_leaves_the_model_untouched() -> None:
    model = vit().train()

    def fail() -> None:
        with pytest.raises(HFCamError):
            hf_cam.GradCAM(model)(pictures(), 99)

    check_model_untouched(model, fail)


def test_models_that_are_loaded_at_once_have_all_their_weights() -> None:
    """transformers replaces functions for the whole process while it builds; a replacement must not outlive that."""
    from transformers import PreTrainedModel

    own = PreTrainedModel.tie_weights
    names = [str(demo_model(name)) for name in ("llava", "clip", "vit", "llava")]
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(load_pretrained, names * 6))
    assert len(loaded) == 24
    assert PreTrainedModel.tie_weights is own
    for model in loaded[::4]:
        assert model.lm_head.weight is model.get_input_embeddings().weight


def test_filters_of_warnings_that_another_thread_puts_back_meanwhile_stay_there(monkeypatch):
    """Pillow warns of large pictures; what hides that must not bring filters back that another thread has left."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    encoded = io.BytesIO()
    Image.new("RGB", (12, 10)).save(encoded, "PNG")
    with unwarned():
        filters = warnings.filters
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with warnings.catch_warnings(action="error"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    original = Image.open

    def slowly(file):
        leave.set()
        thread.join()
        return original(file)

    monkeypatch.setattr(Image, "open", slowly)
    assert opened(encoded, "a picture", lambda image: image.size) == (12, 10)
    assert warnings.filters is filters
    with pytest.raises(Image.DecompressionBombWarning):
        original(encoded)
