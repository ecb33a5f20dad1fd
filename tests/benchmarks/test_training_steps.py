"""The result of the training benchmark can be kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from lesionrt.benchmarks import training_steps
from lesionrt.runtime.errors import OutputError


def test_what_is_printed_is_also_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def seconds(recipe: Any, *_: object) -> list[float]:
        return [float(recipe.batch)]

    monkeypatch.setattr(training_steps, "step_seconds", seconds)
    out = tmp_path / "results" / "steps.json"
    training_steps.command(steps=1, repeats=2, out=out)
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert found["paper"]["s_per_output_slice"] == 1
    assert [path.name for path in out.parent.iterdir()] == ["steps.json"]
    with pytest.raises(OutputError, match="is a folder"):
        training_steps.command(steps=1, repeats=1, out=tmp_path)
