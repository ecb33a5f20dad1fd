"""A step of the `default` recipe against one of the `paper` recipe: seconds per output slice, in one run.

    python -m lesionrt.benchmarks.training_steps [--steps 3] [--repeats 2] [-o benchmarks/results/training-steps.json]

Both train the full network on a phantom; their steps are taken in turns (A B A B ...) after a warm-up step each.
A slice of `default` is 96x96 pixels, one of `paper` the whole brain: nanoseconds per output pixel are given as well.
"""

import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import nibabel as nib
import numpy as np
import torch
import typer

from lesionrt.benchmarks.entry import run
from lesionrt.benchmarks.machine import describe
from lesionrt.runtime.cli.options import check_new
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.phantom import phantom
from lesionrt.train.dataset import Scan
from lesionrt.train.recipe import Recipe, load_recipe
from lesionrt.train.run import Progress
from lesionrt.train.training import train


class _Enough(Exception):
    """Ends a training after the steps that are timed."""


def step_seconds(recipe: Recipe, scans: list[Scan], folder: Path, steps: int) -> list[float]:
    """Seconds of some steps after the first one: samples, forward, backward and optimiser."""
    times = [time.perf_counter()]

    def stop(now: Progress) -> None:
        times.append(time.perf_counter())
        if now.step > steps:
            raise _Enough

    with tempfile.TemporaryDirectory(dir=folder) as run, contextlib.suppress(_Enough):
        train(recipe, scans, [], Path(run) / "run", progress=stop, cache=folder / "cache")
    return list(np.diff(times)[1:])


def command(
    steps: Annotated[int, typer.Option(help="Timed steps a repetition.", min=1)] = 3,
    repeats: Annotated[int, typer.Option(help="Repetitions of each recipe, in turns.", min=1)] = 2,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A JSON file to write as well.")] = None,
) -> None:
    """Time both recipes' steps."""
    if out is not None:
        check_new(out, force=True)  # before minutes of training
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flair, lesions = phantom()
        nib.save(nib.Nifti1Image(flair, np.eye(4)), folder / "flair.nii.gz")
        nib.save(nib.Nifti1Image(lesions.astype(np.uint8), np.eye(4)), folder / "mask.nii.gz")
        scans = [Scan(folder / "flair.nii.gz", folder / "mask.nii.gz", "phantom", "1")]
        default, paper = load_recipe("default", ["epoch_steps=100000"]), load_recipe("paper", ["keep=last"])
        seconds: dict[str, list[float]] = {"default": [], "paper": []}
        for _ in range(repeats):
            seconds["default"] += step_seconds(default, scans, folder, steps)
            seconds["paper"] += step_seconds(paper, scans, folder, steps)
    outputs = {"default": default.slabs * default.slab_slices, "paper": paper.batch}
    pixels = {"default": default.size**2, "paper": 192 * 160}  # the phantom's brain, padded
    report = {
        recipe: {
            "step_s": round(statistics.median(values), 3),
            "output_slices_a_step": outputs[recipe],
            "pixels_a_slice": pixels[recipe],
            "s_per_output_slice": round(statistics.median(values) / outputs[recipe], 4),
            "ns_per_output_pixel": round(1e9 * statistics.median(values) / outputs[recipe] / pixels[recipe]),
        }
        for recipe, values in seconds.items()
    }
    ratio = report["default"]["s_per_output_slice"] / report["paper"]["s_per_output_slice"]
    found = {
        **report,
        "default_over_paper": round(ratio, 3),
        "steps": steps,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "recipes": {"default": default.as_dict(), "paper": paper.as_dict()},
        "machine": describe(),
    }
    text = json.dumps(found, indent=2)
    print(text)
    if out is not None:
        write_atomically({out: f"{text}\n".encode()})


if __name__ == "__main__":
    run(command)
