"""CAM methods: pure functions of what was captured, and the registry that every door reads."""

# The order of these imports is the order of `list_methods()`.
from hf_cam.methods import gradient  # isort: skip
from hf_cam.methods import perturbation  # isort: skip
from hf_cam.methods import decomposition  # isort: skip
from hf_cam.methods import composite  # isort: skip
from hf_cam.methods import attention  # isort: skip
from hf_cam.methods.registry import Method, get_method, list_methods, register

__all__ = [
    "Method",
    "attention",
    "composite",
    "decomposition",
    "get_method",
    "gradient",
    "list_methods",
    "perturbation",
    "register",
]
