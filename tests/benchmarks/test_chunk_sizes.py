"""The benchmark of chunk sizes compares both ways on the same slices."""

import json
import subprocess
import sys
from pathlib import Path


def test_both_ways_are_timed_and_measured_at_every_chunk_size(tiny_bundle: Path, small_flair: Path) -> None:
    command = [sys.executable, "-m", "lesionrt.benchmarks.chunk_sizes", tiny_bundle, small_flair]
    options = ["--chunk", "1", "--chunk", "3", "--slices", "4", "--repeats", "1"]
    answer = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    report = json.loads(answer.stdout)
    assert report["output_slices"] == 4
    assert [(row["way"], row["chunk"]) for row in report["rows"]] == [
        ("halo", 1),
        ("stream", 1),
        ("halo", 3),
        ("stream", 3),
    ]
    assert all(row["s_per_slice"] > 0 and row["peak_megabytes"] > 10 for row in report["rows"])
    assert all(row["max_difference"] <= 1e-5 for row in report["rows"])
