"""CAM methods: pure functions of what was captured, and the registry that every door reads."""

from hf_cam.methods import decomposition, gradient, random
from hf_cam.methods.registry import Method, get_method, list_methods, register

__all__ = ["Method", "decomposition", "get_method", "gradient", "list_methods", "random", "register"]
