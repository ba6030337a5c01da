"""CAM methods: pure functions of signals, and the registries of both that every door reads.

`@method(...)` registers a function by the signals that its parameters name, `@signal(...)` a new signal.
"""

# The order of these imports is the order of the tables: a signal stands before the methods that need it.
from hf_cam.methods import signals  # isort: skip
from hf_cam.methods import reruns  # isort: skip
from hf_cam.methods import attending  # isort: skip
from hf_cam.methods import gradient  # isort: skip
from hf_cam.methods import perturbation  # isort: skip
from hf_cam.methods import decomposition  # isort: skip
from hf_cam.methods import composite  # isort: skip
from hf_cam.methods import attention  # isort: skip
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
    "decomposition",
    "get_method",
    "gradient",
    "list_methods",
    "method",
    "perturbation",
    "register",
    "reruns",
    "signal",
    "signals",
]
