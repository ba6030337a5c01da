"""Registries, and the plug-ins that fill them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hf_cam.errors import LayoutError, OptionError, PluginWarning
from hf_cam.models.refused import refusals
from hf_cam.plugins import Plugins
from hf_cam.registry import Registry
from hf_cam.target_layers import catalogue as catalogue_module
from hf_cam.target_layers.catalogue import catalogue


@dataclass(frozen=True)
class Colour:
    id: str
    source: Callable[..., Any]


def red() -> None: ...


def green() -> None: ...


@pytest.fixture
def colours() -> Registry[Colour]:
    registry = Registry[Colour]("colour", OptionError)
    for name, source in (("red", red), ("green", green)):
        registry.add(Colour(name, source))
    return registry


def test_a_record_from_the_same_place_takes_its_predecessors_position(colours) -> None:
    scope: dict[str, Any] = {"__name__": __name__}
    exec("def red(): ...", scope)  # as a notebook's cell that is run again
    again = colours.add(Colour("red", scope["red"]))
    assert again.source is not red
    assert colours.get("red") is again
    assert [*colours.records()] == ["red", "green"]


def test_a_record_from_another_place_is_refused_by_both_names_unless_it_shall_replace(colours) -> None:
    expected = rf"'red' is already registered, from {__name__}\.red;.*replace=True.*{__name__}\.green"
    with pytest.raises(OptionError, match=expected):
        colours.add(Colour("red", green))
    assert colours.get("red").source is red
    colours.add(Colour("red", green), replace=True)
    assert colours.get("red").source is green
    assert [*colours.records()] == ["red", "green"]


@pytest.mark.parametrize("name", ["Red", "re d", "", "red\n"])
def test_a_malformed_id_is_refused(colours, name: str) -> None:
    with pytest.raises(OptionError, match="is not a valid colour id"):
        colours.add(Colour(name, red))


@pytest.mark.parametrize("name", ["gren", None, ["green"]])
def test_an_unknown_id_names_the_nearest(colours, name: Any) -> None:
    with pytest.raises(OptionError, match=r"no colour .*'green'"):
        colours.get(name)


def test_what_the_check_refuses_is_not_registered() -> None:
    def refuse(colour: Colour) -> None:
        raise OptionError("no colour at all")

    registry = Registry[Colour]("colour", OptionError, check=refuse)
    with pytest.raises(OptionError, match="no colour at all"):
        registry.add(Colour("grey", red))
    assert not registry.records()


def test_a_change_of_what_was_returned_leaves_the_registry_alone(colours) -> None:
    colours.records().clear()
    assert [*colours.records()] == ["red", "green"]


# Plug-ins ------------------------------------------------------------------------------------------------------------

ADAPTER = """
[[adapter]]
model_types = ["{model_type}"]
layers = ["layers[-1].layernorm_before"]
axes = "b (h w) c"
prefix = 1
reason = "a plug-in's"
"""
METHOD = """
import hf_cam

@hf_cam.method("{name}", name="Squared", paper="none", summary="Squared activations.")
def squared(activations):
    return activations.square()

@hf_cam.metric("{name}-peak", "peak", paper="none")
def peak(maps):
    return maps.amax((1, 2))
"""


class Site:
    """A folder of installed packages, each with one entry point of the group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, package: str, code: str, value: str | None = None, **files: str) -> Path:
        module = self.folder / package
        module.mkdir()
        (module / "__init__.py").write_text(code)
        for name, content in files.items():
            path = module / name.replace("__", "/").replace("_toml", ".toml")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        info = self.folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hf_cam]\n{package} = {value or package}\n")
        return module


@pytest.fixture
def site(tmp_path: Path, monkeypatch) -> Site:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("plug_"):
            del sys.modules[name]


def test_plugins_are_imported_once_and_a_broken_one_is_named(site: Site) -> None:
    site.install("plug_b", "ran = []\nran.append(1)")
    site.install("plug_a", "1 / 0")
    site.install("plug_c", "", value="plug_c:nothing")
    plugins = Plugins("hf_cam")
    with pytest.warns(PluginWarning) as caught:
        plugins.load()
    messages = [str(warning.message) for warning in caught]
    assert [message.split(" cannot")[0] for message in messages] == [
        "the plug-in 'plug_a' (plug_a) of plug_a",
        "the plug-in 'plug_c' (plug_c:nothing) of plug_c",
    ]
    assert "ZeroDivisionError: division by zero" in messages[0]
    assert "nothing" in messages[1]
    assert sys.modules["plug_b"].ran == [1]
    del sys.modules["plug_b"]
    plugins.load()  # without a warning, and without an import
    assert "plug_b" not in sys.modules


def test_a_plugin_may_ask_for_plugins_while_it_is_imported(site: Site, monkeypatch) -> None:
    plugins = Plugins("hf_cam")
    monkeypatch.setitem(sys.modules, "plug_shared", plugins)
    site.install("plug_d", "import sys\nfound = sys.modules['plug_shared'].data_files()", own_toml="")
    plugins.load()
    assert sys.modules["plug_d"].found == ()
    assert [path.name for path in plugins.data_files()] == ["own.toml"]


def test_threads_wait_until_all_plugins_are_there(site: Site) -> None:
    site.install("plug_e", "import time\ntime.sleep(0.3)\nready = True")
    plugins, found = Plugins("hf_cam"), []

    def ask() -> None:
        plugins.load()
        found.append(getattr(sys.modules["plug_e"], "ready", False))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6


def test_data_files_lie_beside_the_module_and_in_its_adapters(site: Site) -> None:
    module = site.install("plug_f", "", own_toml="", adapters__vit_toml="", notes="no data")
    assert Plugins("hf_cam").data_files() == (module / "own.toml", module / "adapters" / "vit.toml")
    site.install("plug_g", "1 / 0", own_toml="")
    with pytest.warns(PluginWarning):
        assert len(Plugins("hf_cam").data_files()) == 2


@pytest.fixture
def beside(monkeypatch) -> Callable[..., None]:
    """The catalogue with these data files of plug-ins."""

    def use(*paths: Path) -> None:
        for home in (catalogue_module, sys.modules["hf_cam.models.families"], sys.modules["hf_cam.models.refused"]):
            monkeypatch.setattr(home, "data_files", lambda: paths)

    return use


def test_the_catalogue_reads_the_data_files_of_plugins_behind_its_own(beside, tmp_path: Path) -> None:
    own, refused = catalogue(), refusals()
    file, other = tmp_path / "mine.toml", tmp_path / "pyproject.toml"
    file.write_text(ADAPTER.format(model_type="mine") + '[[refusal]]\nmodel_types = ["hers"]\nreason = "no grid"\n')
    other.write_text('[project]\nname = "x"\n[adapter]\nx = 1\n[[refusal]]\nof = "service"\n')
    beside(file, other)
    assert catalogue()[: len(own)] == own
    [entry] = catalogue()[len(own) :]
    assert (entry.family, entry.model_types, entry.prefix) == ("mine", ("mine",), 1)
    [refusal] = refusals()[len(refused) :]
    assert (refusal.model_types, refusal.reason) == (("hers",), "no grid")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param("[[adapter", "cannot be read", id="no TOML"),
        pytest.param(ADAPTER.format(model_type="x") + "colour = 1", "unexpected keyword argument 'colour'", id="key"),
        pytest.param(ADAPTER.format(model_type="vit"), r"both describe \['vit'\]", id="claims what is described"),
    ],
)
def test_a_wrong_data_file_of_a_plugin_is_left_out_with_a_warning(
    beside, tmp_path: Path, content: str, reason: str
) -> None:
    own, file = catalogue(), tmp_path / "wrong.toml"
    file.write_text(content)
    beside(file)
    with pytest.warns(PluginWarning, match=rf"wrong\.toml.*{reason}"):
        assert catalogue() == own


def test_a_wrong_data_file_of_the_package_itself_is_an_error(tmp_path: Path, monkeypatch, beside) -> None:
    (tmp_path / "wrong.toml").write_text(ADAPTER.format(model_type="x") + "colour = 1")
    monkeypatch.setattr("hf_cam.models.families.data_folder", lambda: tmp_path)
    beside(tmp_path / "none.toml")  # another key than the catalogue that is remembered
    with pytest.warns(PluginWarning, match=r"none\.toml"), pytest.raises(LayoutError, match=r"wrong\.toml.*colour"):
        catalogue()
    catalogue_module._entries.cache_clear()


def run(site: Site, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    script = f"import sys\nsys.path.insert(0, {str(site.folder)!r})\n{code}"
    return subprocess.run([sys.executable, *options, "-c", script], capture_output=True, text=True, check=True)


def test_an_installed_plugin_brings_methods_metrics_and_adapters_when_they_are_asked_for(site: Site) -> None:
    site.install("plug_h", METHOD.format(name="squared"), adapters__mine_toml=ADAPTER.format(model_type="mine"))
    site.install("plug_i", "raise ImportError('no such luck')")
    code = """
import hf_cam
assert not {"torch", "plug_h"} & set(sys.modules)
import hf_cam.methods, hf_cam.metrics
from hf_cam.methods import get_method
assert get_method("gradcam").id == "gradcam" and "plug_h" not in sys.modules
assert get_method("squared").name == "Squared"
assert [*hf_cam.list_methods()][-1] == "squared"
assert hf_cam.metrics.list_metrics()[-1] == "squared-peak"
from hf_cam.target_layers.catalogue import catalogue
assert catalogue()[-1].model_types == ("mine",)
"""
    done = run(site, code)
    assert "PluginWarning: the plug-in 'plug_i' (plug_i) of plug_i cannot be loaded: ImportError: no such luck" in (
        done.stderr
    )


def test_an_adapter_of_a_plugin_is_found_by_the_first_that_asks_for_one(site: Site) -> None:
    site.install("plug_j", "", mine_toml=ADAPTER.format(model_type="mine"))
    code = """
from transformers import ViTConfig, ViTForImageClassification
import hf_cam
class Mine(ViTConfig):
    model_type = "mine"
config = Mine(image_size=(64, 96), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
print(hf_cam.infer_adapter(ViTForImageClassification(config)).reason)
"""
    assert run(site, code).stdout == "a plug-in's\n"
