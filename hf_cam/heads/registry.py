"""The registry of heads, which other packages can extend, and the choice of the head for a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import TypeVar

from torch import nn

from hf_cam.errors import ModelError
from hf_cam.heads.base import Head
from hf_cam.models.traits import ModelTraits, traits_of
from hf_cam.registry import Registry

Kind = TypeVar("Kind", bound=type[Head])


def always(traits: ModelTraits) -> bool:
    """True for every model of the class."""
    del traits
    return True


@dataclass(frozen=True)
class HeadRecord:
    """A head, and the models that it applies to.

    Args:
        id: Its name, for `Explainer(head=...)`.
        kind: The class.
        models: Patterns of class names, such as "MyModelFor*"; a pattern with a dot includes the module's name.
        tasks: transformers' auto mappings (`MODEL_FOR_..._MAPPING_NAMES`) to whose classes it applies.
        when: A further condition on models of these classes.
    """

    id: str
    kind: type[Head]
    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    when: Callable[[ModelTraits], bool] = field(default=always, repr=False)

    @property
    def source(self) -> type[Head]:
        """The class that was registered."""
        return self.kind

    def lists(self, parent: type) -> bool:
        """Whether a class matches one of the patterns or is listed under one of the tasks."""
        dotted = f"{parent.__module__}.{parent.__qualname__}"
        named = (fnmatchcase(dotted if "." in one else parent.__name__, one) for one in self.models)
        return any(named) or any(parent.__name__ in listed(task) for task in self.tasks)


HEADS: Registry[HeadRecord] = Registry("head", ModelError)


def register_head(
    head_id: str,
    *,
    models: Sequence[str] = (),
    tasks: Sequence[str] = (),
    when: Callable[[ModelTraits], bool] = always,
    replace: bool = False,
) -> Callable[[Kind], Kind]:
    """Register a subclass of `hf_cam.heads.Head`, which is returned unchanged.

    If several heads match a model, the one registered last is used.

    Args:
        head_id, models, tasks, when: See `HeadRecord`.
        replace: Replace a head with this id that another module registered.

    Raises:
        ModelError: the id is malformed or taken.
    """

    def add(kind: Kind) -> Kind:
        HEADS.add(HeadRecord(head_id, kind, tuple(models), tuple(tasks), when), replace)
        return kind

    return add


def registered_kind(traits: ModelTraits) -> type[Head] | None:
    """The kind of head that is registered for a model's class, or else for its nearest base class; None if none is."""
    records = list(reversed(HEADS.records().values()))
    for parent in type(traits.module).__mro__:
        for record in records:
            if record.lists(parent) and record.when(traits):
                return record.kind
    return None


def head_kind(model: nn.Module) -> type[Head]:
    """The kind of head of a model, by its class alone; see `registered_kind`.

    A transformers model without one embeds images; any other module counts as a classifier, unless
    `hf_cam.heads.head_of` establishes something else.
    """
    traits = traits_of(model)
    if (known := registered_kind(traits)) is not None:
        return known
    bare = traits.is_transformers and not traits.class_name.startswith("TimmWrapperFor")
    return HEADS.get("embedding" if bare and not traits.has_classifier else "classification").kind


def listed_kind(architecture: str) -> type[Head] | None:
    """The kind of head of a transformers class, without loading a model; None if the class is listed under no task.

    >>> import hf_cam.heads
    >>> listed_kind("ViTForImageClassification").task
    'image-classification'
    """
    for record in HEADS.records().values():
        if record.when is always and any(architecture in listed(task) for task in record.tasks):
            return record.kind
    return None


@cache
def listed(task: str) -> frozenset[str]:
    """The class names in one of transformers' auto mappings."""
    from transformers.models.auto import modeling_auto

    names = vars(modeling_auto).get(f"MODEL_FOR_{task}_MAPPING_NAMES", {}).values()  # an older version lacks some
    return frozenset(name for entry in names for name in ((entry,) if isinstance(entry, str) else entry))
