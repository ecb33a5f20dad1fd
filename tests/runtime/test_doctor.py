"""What `lesionrt doctor` says that `auto` would do. The engine backend is a stand-in: there is no GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lesionrt.runtime import backends, doctor
from lesionrt.runtime.backends import Probe
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.cli import build

REAL_PROBE = backends.probe


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which RTX engines run, if a bundle has some."""

    def probe(name: str, bundle: Bundle | None = None) -> Probe:
        if name != "rtx":
            return REAL_PROBE(name, bundle)
        found = replace(REAL_PROBE(name), problem=None)
        return found if bundle is None else replace(found, problem="it has no rtx engine", remedy="Build one")

    monkeypatch.setattr(backends, "probe", probe)
    monkeypatch.setattr(doctor, "probe", probe)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("default", [False, True])
def test_what_auto_chooses_is_said_with_and_without_a_default_bundle(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path, default: bool
) -> None:
    monkeypatch.setattr(doctor, "DEFAULT_MODEL", tiny_bundle if default else tmp_path / "none")
    shown = CliRunner().invoke(build(), ["doctor"]).stdout
    which = "the default bundle" if default else "a bundle without engines (no default bundle is installed)"
    reason = "it has no rtx engine" if default else "it runs engines only"
    (line,) = [line for line in shown.splitlines() if f"for {which} (auto: " in line]
    assert line.startswith(("auto chooses cpu", "auto chooses openvino", "auto chooses cuda"))
    assert f"not rtx: {reason}" in line
    assert "auto chooses rtx for a bundle with an engine that runs here\n" in shown
