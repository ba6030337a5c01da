"""Checks of the laws that adapters, methods, metrics and heads must obey, to run on your own.

The package's tests run the same checks over its registries.
"""

from hf_cam.testing.adapters import AdapterCheck, check_adapter
from hf_cam.testing.heads import check_head
from hf_cam.testing.laws import LawError
from hf_cam.testing.methods import check_method
from hf_cam.testing.metrics import check_metric
from hf_cam.testing.models import check_model_untouched

__all__ = [
    "AdapterCheck",
    "LawError",
    "check_adapter",
    "check_head",
    "check_method",
    "check_metric",
    "check_model_untouched",
]
