"""The peak of memory is each process's own."""

import json
import subprocess
import sys
from pathlib import Path


def test_every_backend_that_can_run_has_its_peak(tiny_bundle: Path, tmp_path: Path) -> None:
    module = [sys.executable, "-m", "lesionrt.benchmarks.memory"]
    subprocess.run([*module, tiny_bundle, "-o", tmp_path / "m.json", "--size", "32"], check=True, capture_output=True)
    report = json.loads((tmp_path / "m.json").read_text())
    assert report["volume"].startswith("phantom, 32x32x32")
    assert {"openvino", "cpu"} <= {row["backend"] for row in report["rows"]}
    assert all(50 < row["peak_mb"] < 2000 for row in report["rows"])
