"""CAM methods, which are pure functions of signals, and the registries of methods and signals.

`@method(...)` registers a function whose parameters name the signals that it needs, `@signal(...)` a new signal.
"""

# The order of these imports is the order of the tables: signals come before the methods that need them.
from hf_cam.methods import signals  # isort: skip
from hf_cam.methods import reruns  # isort: skip
from hf_cam.methods import attending  # isort: skip
from hf_cam.methods import gradient  # isort: skip
from hf_cam.methods import perturbation  # isort: skip
from hf_cam.methods import decomposition  # isort: skip
from hf_cam.methods import composite  # isort: skip
from hf_cam.methods import concepts  # isort: skip
from hf_cam.methods import attention  # isort: skip
from hf_cam.methods import pixels  # isort: skip
from hf_cam.methods import masking  # isort: skip
from hf_cam.methods import rise  # isort: skip
from hf_cam.methods.registry import Method, get_method, list_methods, method, register
from hf_cam.methods.run import Run
from hf_cam.methods.signals import Signal, signal

__all__ = [
    "Method",
    "Run",
    "Signal",
    "attending",
    "attention",
    "composite",
    "concepts",
    "decomposition",
    "get_method",
    "gradient",
    "list_methods",
    "masking",
    "method",
    "perturbation",
    "pixels",
    "register",
    "reruns",
    "rise",
    "signal",
    "signals",
]
