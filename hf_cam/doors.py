"""What the doors of the package share: exceptions of other code become errors of hf-cam's own that name the culprit."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from hf_cam.errors import HFCamError, OptionError, UnexpectedError, nearest, reason
from hf_cam.threads import KeptThread

Function = TypeVar("Function", bound=Callable[..., Any])

PACKAGE = Path(__file__).parent
OWN_MISTAKES = (AssertionError, NameError)
"""What is a mistake of hf-cam where its own code raises it; it passes every door unchanged."""
PASSING = (HFCamError, Warning)
"""What a handler of foreign exceptions lets pass: hf-cam's own errors, and warnings that the caller made errors."""
BLAMED = "hf_cam_blamed"

RENAMED: Mapping[str, tuple[str, ...]] = {
    "target_layers": ("layers",),
    "target_layer": ("layers",),
    "layer": ("layers",),
    "reshape_transform": ("reshape",),
    "input_tensor": ("pixel_values", "image"),
    "inputs": ("pixel_values", "image"),
    "input": ("pixel_values", "image"),
    "targets": ("target",),
    "target": ("targets",),
    "target_category": ("targets", "target"),
    "class_idx": ("targets", "target"),
    "class_index": ("targets", "target"),
    "batch_size": ("rerun_batch_size",),
    "internal_batch_size": ("rerun_batch_size",),
    "nt_samples_batch_size": ("rerun_batch_size",),
    "perturbations_per_eval": ("rerun_batch_size",),
    "forward_func": ("model",),
    "base_method": ("base",),
    "comparison_categories": ("references",),
    "n_components": ("components",),
    "n_steps": ("steps",),
    "num_samples": ("samples",),
    "nt_samples": ("samples",),
    "std": ("noise",),
    "stdevs": ("noise",),
    "baselines": ("fill",),
    "sliding_window_shapes": ("patch",),
    "strides": ("stride",),
}
"""Names that grad-cam, torchcam and captum give to arguments, and what those are called here."""
DROPPED: Mapping[str, str] = {
    "use_cuda": "move the model with .to('cuda') instead",
    "device_ids": "move the model with .to('cuda:0') instead",
    "input_shape": "it is not needed",
    "nt_type": "the method 'smoothgrad' averages over noise",
    "scores": "targets= chooses what is explained",
    "compute_input_gradient": "the methods 'gradient' and 'input-x-gradient' read the picture's gradient",
    "uses_gradients": "the method decides that",
    "tta_transforms": "aug_smooth=True averages over six views",
    "detach": "differentiable=True keeps the map in the graph",
    "retain_graph": "differentiable=True keeps the map in the graph",
    "ablation_layer": "it is not needed",
    "ratio_channels_to_ablate": "every channel counts",
    "relu_attributions": "maps show what speaks for the target, and signed=True also what speaks against it",
    "attribute_to_layer_input": "layers= names the layer before",
    "interpolate_mode": "maps are enlarged linearly",
    "fc_layer": "the method 'cam' finds it",
    "normalized": "maps lie in [0, 1]",
    "enable_hooks": "hooks never outlive a call",
    "additional_forward_args": "pass them by the names that the forward gives them",
    "return_convergence_delta": "the metric 'completeness-error' measures it",
}
"""Names of theirs for which there is no argument here."""


def door(kind: type[HFCamError] = UnexpectedError) -> Callable[[Function], Function]:
    """Make a function raise hf-cam's own errors alone, whatever the code that it calls raises.

    An exception of foreign code is chained to an error that names its type and whose code raised it, if `blaming` saw
    that; it is of the same type too, so that `except torch.OutOfMemoryError` keeps working. Warnings that are errors,
    interrupts and assertions of hf-cam's own pass.

    Args:
        kind: The error to raise if nobody is blamed.

    >>> @door()
    ... def halved(number):
    ...     return number / 2
    >>> halved("x")
    Traceback (most recent call last):
    hf_cam.errors.UnexpectedError: halved() failed: TypeError: unsupported operand type(s) for /: 'str' and 'int'
    """

    def fitted(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            name = _name(function, args)
            check_arguments(signature, name, args, kwargs)
            with KeptThread(), _guarding(name, kind):
                return function(*args, **kwargs)

        @functools.wraps(function)
        def guarded_generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            name = _name(function, args)
            check_arguments(signature, name, args, kwargs)
            with _guarding(name, kind):
                yield from function(*args, **kwargs)

        return cast("Function", guarded_generator if inspect.isgeneratorfunction(function) else guarded)

    return fitted


@contextmanager
def _guarding(name: str, kind: type[HFCamError]) -> Iterator[None]:
    handled = sys.exception()
    try:
        yield
    except Exception as error:
        if (interrupt := _interrupt_behind(error, handled)) is not None:
            raise interrupt from None
        if (own := _own_error(error, name, kind)) is None:
            raise
        raise own from error


@contextmanager
def blaming(whose: str, kind: type[HFCamError]) -> Iterator[None]:
    """Note on an exception that leaves the block whose code ran there; a door raises `kind` for it.

    Inside the package the exception keeps its type, for code that handles it.
    """
    try:
        yield
    except Exception as error:
        vars(error).setdefault(BLAMED, (whose, kind))
        raise


@contextmanager
def callers_own() -> Iterator[None]:
    """Let exceptions of a function of the caller's that leave the block pass every door unchanged."""
    try:
        yield
    except Exception as error:
        vars(error)[BLAMED] = None
        raise


def renamed(name: str, known: Any) -> str:
    """The end of a message about an argument that does not exist: what it is called here, if that is known.

    >>> renamed("target_layers", ["layers", "reshape"])
    '; target_layers= is layers= here'
    """
    if name in DROPPED:
        return f"; for {name}=, {DROPPED[name]}"
    here = next((one for one in RENAMED.get(name, ()) if one in known), None)
    return f"; {name}= is {here}= here" if here else ""


def meant_by(name: str, here: Any, elsewhere: Mapping[str, Any]) -> str:
    """Like `renamed`, but also for arguments that belong elsewhere.

    Args:
        name: The argument that does not exist here.
        here: The names of those that do.
        elsewhere: The names of others, by where they belong.

    >>> meant_by("target_layers", ["targets"], {"the class": ["layers"]})
    '; target_layers= is layers= here, an argument of the class'
    >>> meant_by("signed", ["layers"], {"the call": ["signed"]})
    '; it is an argument of the call'
    """
    if hint := renamed(name, here):
        return hint
    for where, known in elsewhere.items():
        if name in known:
            return f"; it is an argument of {where}"
        if hint := renamed(name, known):
            return f"{hint}, an argument of {where}"
    return ""


def unreadable(tensor: Any) -> str:
    """Why the values of a tensor cannot be read as they are, with the way out; empty if they can.

    >>> import torch
    >>> unreadable(torch.eye(2).to_sparse())
    'is not dense (torch.sparse_coo); pass its .to_dense()'
    """
    if tensor.is_meta:
        return "is on the meta device, where tensors hold no values"
    if tensor.is_quantized:
        return "is quantized; pass its .dequantize()"
    if tensor.is_nested:
        return "is nested; pass its .to_padded_tensor(0)"
    if str(tensor.layout) != "torch.strided":
        return f"is not dense ({tensor.layout}); pass its .to_dense()"
    return ""


def check_arguments(signature: inspect.Signature, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that the function does not take, naming those that it does.

    Raises:
        OptionError: one is unknown or missing.
    """
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        parameters = [one for one in signature.parameters.values() if one.name != "self"]
        known = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
        strange = next((one for one in kwargs if one not in known), "")
        hint = strange and (renamed(strange, known) or f"; nearest to {strange}=: {nearest(strange, known)}")
        raise OptionError(f"{name}() {error}{hint}") from None


def _interrupt_behind(error: BaseException, handled: BaseException | None) -> BaseException | None:
    """The interrupt that an error hides which was raised on its way out; not one that the caller handles already."""
    behind: BaseException | None = error
    while behind is not None and behind is not handled:
        if not isinstance(behind, Exception):
            return behind
        behind = behind.__context__
    return None


def _own_error(error: Exception, name: str, kind: type[HFCamError]) -> HFCamError | None:
    """The error to raise in place of one that reached a door; None if it passes."""
    blamed = vars(error).get(BLAMED, (f"{name}()", kind))
    if blamed is None or isinstance(error, PASSING):
        return None
    if isinstance(error, OWN_MISTAKES) and _raised_here(error):
        return None
    whose, kind = blamed
    vars(error).pop(BLAMED, None)  # the same object may be raised again elsewhere
    hint = "; a smaller batch_size= or rerun_batch_size= takes less memory" if _lacks_memory(error) else ""
    return _of_both(kind, type(error))(f"{whose} failed: {reason(error)}{hint}")


def _of_both(kind: type[HFCamError], raised: type[Exception]) -> type[HFCamError]:
    """The class of errors of this kind that are also of the type that was raised, for callers who wait for that."""
    if issubclass(kind, raised):
        return kind

    def reduced(self: HFCamError, protocol: int) -> tuple[type[HFCamError], tuple[str]]:
        del protocol
        return kind, (str(self),)

    try:
        both = type(kind.__name__, (kind, raised), {"__module__": kind.__module__, "__reduce_ex__": reduced})
        both("a message")
    except TypeError:  # two classes whose instances lie differently in memory
        return kind
    return cast("type[HFCamError]", both)


def _raised_here(error: BaseException) -> bool:
    """Whether the line that raised it is hf-cam's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def _lacks_memory(error: Exception) -> bool:
    words = f"{type(error).__name__} {error}".lower()
    return any(sign in words for sign in ("memoryerror", "out of memory", "can't allocate memory"))


def _name(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """What a message calls a function; of a method that is called through its class or object, the class's name."""
    if function.__name__ in ("__init__", "__call__") and args:
        return type(args[0]).__name__
    return function.__qualname__.rpartition("<locals>.")[2]
