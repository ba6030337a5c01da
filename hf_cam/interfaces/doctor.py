"""What `hf-cam doctor` reports: versions, devices, whether the Hub can be reached, and what is missing."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement

from hf_cam import __version__

PACKAGE = "hf-cam"
NOT_FOR_USERS = ("dev", "docs", "peers")
"""Extras for work on hf-cam itself."""
PATIENCE = 5.0
"""Seconds to wait for the Hub."""
REACHED = "can be reached"
"""What the line about a Hub that answers ends in."""


@dataclass(frozen=True)
class Need:
    """A required package, and its installed version; None if it is missing."""

    requirement: Requirement
    installed: str | None

    @property
    def met(self) -> bool:
        """Whether it is installed in a version that is allowed."""
        return self.installed is not None and self.requirement.specifier.contains(self.installed, prereleases=True)

    def __str__(self) -> str:
        """The version, and what is wrong with it."""
        wanted = f"{self.requirement.name}{self.requirement.specifier}"
        if self.installed is None:
            return f"missing: pip install '{wanted}'"
        return self.installed if self.met else f"{self.installed}, unsuitable: pip install '{wanted}'"


def needs(extra: str = "") -> list[Need]:
    """The packages that hf-cam requires, or that one of its extras adds; nothing if hf-cam runs without installation.

    >>> "torch" in [need.requirement.name for need in needs()] or not needs()
    True
    """
    found = [Requirement(line) for line in _requirements()]
    return [Need(one, _version(one.name)) for one in found if one.name != PACKAGE and _belongs(one, extra)]


def lines() -> Iterator[str]:
    """The report, line by line; the last says what to do."""
    yield f"hf-cam {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield "\nPackages"
    required = needs()
    yield from (f"  {need.requirement.name:<24}{need}" for need in required)
    if not required:
        yield "  hf-cam runs without being installed, so its requirements are unknown: pip install -e ."
    yield "\nDevices"
    yield from (f"  {device}" for device in devices())
    yield "\nHub"
    yield f"  {(found := hub())}"
    yield "\nExtras"
    yield from (f"  {extra:<24}{_extra(extra)}" for extra in extras())
    yield "\n" + _advice(required, online=found.endswith(REACHED))


def extras() -> list[str]:
    """The extras that serve users, in the order of the package's metadata."""
    try:
        found = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []
    return [extra for extra in found if extra not in NOT_FOR_USERS]


def devices() -> list[str]:
    """The devices on which models can run, the default first."""
    try:
        import torch
    except ImportError:
        return ["unknown, for torch is missing"]
    graphics = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    named = [f"cuda:{i}  {one.name}, {one.total_memory / 2**30:.0f} GiB" for i, one in enumerate(graphics)]
    threads = torch.get_num_threads()
    return [*named, f"cpu  {threads} thread{'s' * (threads != 1)}"]


def hub() -> str:
    """Whether the Hub answers, and what works without it."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session
    except ImportError:
        return "unknown, for huggingface-hub is missing"
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # noqa: BLE001  (huggingface_hub's versions use different clients, each with its own)
        return (
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}); demo models, folders and models in "
            f"{constants.HF_HUB_CACHE} work without it"
        )
    return f"{constants.ENDPOINT} {REACHED}"


def _requirements() -> list[str]:
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _belongs(requirement: Requirement, extra: str) -> bool:
    """Whether the extra adds the requirement; without an extra, whether every installation has it."""
    always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if not extra or requirement.marker is None:
        return always and not extra
    return not always and requirement.marker.evaluate({"extra": extra})


def _extra(extra: str) -> str:
    missing = [need.requirement.name for need in needs(extra) if not need.met]
    return f"without {', '.join(missing)}: {_install(extra)}" if missing else "installed"


def _install(extra: str) -> str:
    """The command that adds an extra: to a checkout that is installed as it is, or to a release."""
    try:
        origin = json.loads(metadata.distribution(PACKAGE).read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {}
    if not origin.get("dir_info", {}).get("editable"):
        return f'pip install "{PACKAGE}[{extra}]"'
    return f'pip install -e "{url2pathname(urlsplit(origin["url"]).path)}[{extra}]"'


def _advice(required: list[Need], *, online: bool) -> str:
    wrong = [need.requirement.name for need in required if not need.met]
    if wrong:
        return f"Install or update {', '.join(wrong)}."
    if not required:
        return "Install hf-cam."
    asks = "explain cat.jpg --model google/vit-base-patch16-224" if online else "audit demo:cheater demo:cheater"
    return f"Ready. Try: hf-cam {asks}"


def ready() -> bool:
    """Whether all required packages are installed."""
    required = needs()
    return bool(required) and all(need.met for need in required)
