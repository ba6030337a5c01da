"""The registry class of methods, metrics, signals, measurements and heads: records by id, in order of registration."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from hf_cam.errors import HFCamError, nearest
from hf_cam.plugins import load_plugins


class Registrable(Protocol):
    """A record that a registry can hold."""

    @property
    def id(self) -> str:
        """Its name in the registry."""
        ...

    @property
    def source(self) -> Callable[..., Any]:
        """The function or class that was registered."""
        ...


Record = TypeVar("Record", bound=Registrable)


class Registry(Generic[Record]):
    """Records of one kind by id, in the order in which the ids were first registered.

    Plug-ins are loaded before the records are listed, and before an id is refused as unknown.

    Args:
        kind: The name of a record in messages, such as "method".
        error: The type of error to raise.
        pattern: A regular expression that every id must match in full.
        check: Raises an error for a record that is invalid in any other respect.

    >>> from hf_cam.errors import OptionError
    >>> Registry("colour", OptionError).get("teal")
    Traceback (most recent call last):
    hf_cam.errors.OptionError: no colour 'teal': none is registered
    """

    def __init__(
        self,
        kind: str,
        error: type[HFCamError],
        pattern: str = r"[a-z][a-z0-9-]*",
        check: Callable[[Record], None] = lambda _: None,
    ) -> None:
        self.kind = kind
        self._error, self._pattern, self._check = error, pattern, check
        self._records: dict[str, Record] = {}

    def add(self, record: Record, replace: bool = False) -> Record:
        """Register a record and return it.

        A record whose id is taken replaces the former one if both come from the same place, such as a notebook cell
        that is run again. It keeps the former one's position.

        Args:
            record: The record.
            replace: Also replace a record that comes from elsewhere.

        Raises:
            HFCamError: of the registry's type: the id is malformed, or taken by a record from another place.
        """
        if not re.fullmatch(self._pattern, record.id):
            raise self._error(f"{record.id!r} is not a valid {self.kind} id, which must match {self._pattern}")
        known = self._records.get(record.id)
        if known is not None and not replace and place_of(known.source) != place_of(record.source):
            raise self._error(
                f"the {self.kind} {record.id!r} is already registered, from {place_of(known.source)}; "
                f"pass replace=True to replace it with {place_of(record.source)}"
            )
        self._check(record)
        self._records[record.id] = record
        return record

    def get(self, record_id: Any) -> Record:
        """The record of this id.

        Raises:
            HFCamError: of the registry's type: there is none; the message names the nearest ids.
        """
        if not isinstance(record_id, str) or record_id not in self._records:
            load_plugins()
        if not isinstance(record_id, str) or record_id not in self._records:
            known = f"; nearest: {nearest(str(record_id), self._records)}" if self._records else ": none is registered"
            raise self._error(f"no {self.kind} {record_id!r}{known}")
        return self._records[record_id]

    def records(self) -> dict[str, Record]:
        """All records by id."""
        load_plugins()
        return dict(self._records)


def place_of(source: Callable[..., Any]) -> str:
    """The module and qualified name of a function or class; for any other callable, those of its class.

    >>> place_of(functools.partial(nearest, count=1))
    'hf_cam.errors.nearest'
    """
    while isinstance(source, functools.partial):
        source = source.func
    named = source if hasattr(source, "__qualname__") else type(source)
    return f"{named.__module__}.{named.__qualname__}"
