"""The command that looks for what is missing."""

from __future__ import annotations

import shlex

import pytest
from packaging.requirements import Requirement

import hf_cam
from hf_cam.interfaces import doctor
from hf_cam.interfaces.cli import EXAMPLES, _parser, main
from hf_cam.interfaces.doctor import Need

OF_PACKAGE = ["torch>=2.6", "no-such-package>=1", "gradio>=6 ; extra == 'space'", "no-page>=1 ; extra == 'space'"]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """A Hub that does not answer, without waiting for it."""

    class Session:
        def head(self, *_, **__):
            raise TimeoutError("no answer")

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)


def test_the_report_names_the_version_the_devices_and_an_unreachable_hub(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_requirements", lambda: OF_PACKAGE[:1])
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"hf-cam {hf_cam.__version__}, Python 3.")
    for expected in ("torch  ", "cpu  ", "cannot be reached (TimeoutError)", "Ready. Try: hf-cam "):
        assert expected in printed
    assert printed.endswith("audit demo:cheater demo:cheater\n")  # which needs neither the Hub nor an extra


class Installed:
    """An installed package with the record of where it came from."""

    version = "0"

    def __init__(self, record):
        self.record = record

    def read_text(self, name):
        return self.record if name == "direct_url.json" else None


@pytest.mark.parametrize(
    ("record", "command"),
    [
        (None, 'pip install "hf-cam[space]"'),
        ('{"url": "file:///my%20code/hf-cam", "dir_info": {}}', 'pip install "hf-cam[space]"'),
        (
            '{"url": "file:///my%20code/hf-cam", "dir_info": {"editable": true}}',
            'pip install -e "/my code/hf-cam[space]"',
        ),
    ],
    ids=["release", "copy", "checkout"],
)
def test_the_command_for_an_extra_fits_the_way_of_installation(monkeypatch, record, command):
    monkeypatch.setattr(doctor, "_requirements", lambda: OF_PACKAGE[2:])
    monkeypatch.setattr(doctor, "extras", lambda: ["space"])
    monkeypatch.setattr(doctor.metadata, "distribution", lambda _: Installed(record))
    [line] = [line for line in doctor.lines() if line.startswith("  space")]
    assert line.endswith(command)


def test_a_missing_package_is_named_with_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_requirements", lambda: OF_PACKAGE)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "missing: pip install 'no-such-package>=1'" in printed
    assert printed.endswith("Install or update no-such-package.\n")


def test_a_missing_package_of_an_extra_is_named_but_does_not_fail(monkeypatch):
    monkeypatch.setattr(doctor, "_requirements", lambda: [OF_PACKAGE[0], *OF_PACKAGE[2:]])
    monkeypatch.setattr(doctor, "extras", lambda: ["space"])
    [line] = [line for line in doctor.lines() if line.startswith("  space")]
    assert "no-page" in line
    assert "[space]" in line
    assert doctor.ready()


@pytest.mark.parametrize(("installed", "met"), [("2.6.0", True), ("2.9.0.dev1", True), ("2.5.1", False), (None, False)])
def test_an_old_version_does_not_suffice(installed, met):
    need = Need(Requirement("torch>=2.6"), installed)
    assert need.met is met
    assert ("pip install 'torch>=2.6'" in str(need)) is not met


@pytest.mark.parametrize("line", [line.split(" ", 3)[3] for line in EXAMPLES.splitlines() if line.startswith("  ")])
def test_every_example_of_the_help_is_a_valid_command(line):
    assert callable(_parser().parse_args(shlex.split(line)).run)


def test_the_help_ends_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert EXAMPLES in capsys.readouterr().out
