"""The registry class of methods, metrics, signals, measurements and heads: records by id, in order of registration."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from hf_cam.errors import HFCamError, nearest
from hf_cam.plugins import load_plugins


class Registrable(Protocol):
    """What a registry holds."""

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
    """Records of one kind by their ids, in the order in which the ids were first registered.

    Plug-ins are loaded before the records are listed, and before an unknown id is refused.

    Args:
        kind: What a record is called in messages, such as "method".
        error: What is raised.
        pattern: A regular expression that every id matches from end to end.
        check: Raises for a record that is wrong in other respects than its id.

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

        A record whose id is taken replaces the former record, and keeps its position, if both come from the same place,
        for example from a notebook cell that is run again.

        Args:
            record: The record.
            replace: Replace a record from another place too.

        Raises:
            HFCamError: of the registry's type: the id is malformed, or taken by a record from another place.
        """
        if not re.fullmatch(self._pattern, record.id):
            raise self._error(f"{record.id!r} is no {self.kind} id; an id matches {self._pattern}")
        known = self._records.get(record.id)
        if known is not None and not replace and place_of(known.source) != place_of(record.source):
            raise self._error(
                f"the {self.kind} {record.id!r} is registered already, from {place_of(known.source)}; "
                f"pass replace=True to replace it by {place_of(record.source)}"
            )
        self._check(record)
        self._records[record.id] = record
        return record

    def get(self, record_id: Any) -> Record:
        """The record of this id.

        Raises:
            HFCamError: of the registry's type: there is none; the nearest ids are named.
        """
        if not isinstance(record_id, str) or record_id not in self._records:
            load_plugins()
        if not isinstance(record_id, str) or record_id not in self._records:
            known = f"; nearest: {nearest(str(record_id), self._records)}" if self._records else ": none is registered"
            raise self._error(f"no {self.kind} {record_id!r}{known}")
        return self._records[record_id]

    def records(self) -> dict[str, Record]:
        """All records by their ids."""
        load_plugins()
        return dict(self._records)


def place_of(source: Callable[..., Any]) -> str:
    """The module and qualified name of a function or class; of any other callable, those of its class.

    >>> place_of(functools.partial(nearest, count=1))
    'hf_cam.errors.nearest'
    """
    while isinstance(source, functools.partial):
        source = source.func
    named = source if hasattr(source, "__qualname__") else type(source)
    return f"{named.__module__}.{named.__qualname__}"
