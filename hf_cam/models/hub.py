"""The HTTP library of the installed Hub client, whose errors say that the Hub is out of reach."""

from __future__ import annotations

from typing import Any


def http() -> Any:
    """The module, `httpx` or the one that took its place: `http().HTTPError` is the kind of all its errors.

    >>> issubclass(http().ConnectError, http().HTTPError)
    True
    """
    try:
        from huggingface_hub.utils import httpx
    except ImportError:  # older clients do not pass it on
        import httpx  # type: ignore[import-not-found, unused-ignore]
    return httpx
