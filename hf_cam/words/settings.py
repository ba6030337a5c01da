"""What a caller sets of a model's `generate`, checked before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_cam.errors import HFCamError, ModelError, OptionError, brief

LONGEST = 64
"""Tokens of an answer where the caller does not say."""
GREEDY: Mapping[str, Any] = {"max_new_tokens": LONGEST, "do_sample": False, "num_beams": 1}
"""Settings where the caller does not say."""
COUNTS: Mapping[str, int] = {
    "max_new_tokens": 1,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
}
"""Settings that are whole numbers, each with its least."""


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's settings after those that are not given, in another way or in a config; None counts as not given.

    Raises:
        OptionError: a count is none, or two settings contradict each other.

    >>> settings_of({"max_new_tokens": 5})
    {'max_new_tokens': 5, 'do_sample': False, 'num_beams': 1}
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name, least in COUNTS.items():
        _check_count(name, given.get(name, least), least)
    if not isinstance(given.get("do_sample", False), bool | np.bool_):
        raise OptionError(f"generate={{'do_sample': ...}} must be True or False, got {brief(given['do_sample'])}")
    if "generation_config" in given:
        return given
    own = {name: value for name, value in GREEDY.items() if name != "max_new_tokens" or "max_length" not in given}
    settings = own | given
    fewest, most = settings.get("min_new_tokens", 0), settings.get("max_new_tokens")
    if most is not None and fewest > most:
        raise OptionError(f"generate= asks for at least {fewest} new tokens and at most {most}; raise max_new_tokens")
    copies = settings.get("num_return_sequences", 1)
    if copies > settings["num_beams"] and not settings["do_sample"]:
        raise OptionError(
            f"generate= asks for {copies} answers of one greedy search, which has one; omit num_return_sequences"
        )
    return settings


def blame_of(settings: Mapping[str, Any]) -> tuple[str, type[HFCamError]]:
    """Whose fault a failure of `generate` is: that of settings which nobody has checked, if there are any."""
    unchecked = {name: value for name, value in settings.items() if name not in COUNTS and name not in GREEDY}
    if not unchecked:
        return "the model's generate()", ModelError
    return f"the model's generate() with generate={brief(unchecked)}", OptionError


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise OptionError(
            f"generate={{'{name}': ...}} must be a whole number from {least}, got {brief(value)}; omit it for the "
            "default"
        )
