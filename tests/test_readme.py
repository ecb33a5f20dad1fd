"""The README's commands and examples, run as they stand there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from lesionrt.runtime.phantom import phantom
from lesionrt.train.model import Network, NetworkConfig
from lesionrt.train.official import official_name

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
# What makes a training one of seconds.
SETTINGS = (
    "steps=2",
    "size=32",
    "network.growth_rate=4",
    "network.layers=1",
    "network.levels=1",
    "network.first_channels=8",
    "network.attention=false",
    "network.convlstm=false",
)
LEAST = [part for setting in SETTINGS for part in ("--set", setting)]
QUICK = {
    "train": LEAST,
    "crossval": LEAST,
    "bench": ["--case", "authors", "--case", "cpu-fp32"],
}
PLAIN = NetworkConfig(attention=False, convlstm=False, readout="centre")


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bundle: Path,
    least_checkpoint: Path,
    flake: Path,
    small_dataset: Path,
) -> Path:
    """The files that the README speaks of, made of small phantoms and small networks."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(tiny_bundle, folder / "bundle")
    shutil.copy(least_checkpoint, folder / "checkpoint.pt")
    shutil.copytree(small_dataset.parent, folder / "dataset")
    (folder / "scans").mkdir()
    for name in ("flair.nii.gz", "scans/sub-01_FLAIR.nii.gz", "scans/other.nii.gz"):
        shutil.copy(flake, folder / name)
    lines = ["flair,mask,patient,time"]
    for seed, patient in enumerate(("p01", "p02")):
        (folder / patient).mkdir()
        for name, data in zip(("flair", "lesions"), phantom((48, 56, 40), seed), strict=True):
            nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), folder / patient / f"{name}.nii.gz")
        lines.append(f"{patient}/flair.nii.gz,{patient}/lesions.nii.gz,{patient},1")
    (folder / "scans.csv").write_text("\n".join(lines) + "\n")
    state = {official_name(name): value for name, value in Network(PLAIN).state_dict().items()}
    torch.save({"model_state": state}, folder / "weights.pth")
    return folder


def test_every_command_and_example_runs_in_its_order(folder: Path, run: Callable[..., Any]) -> None:
    ran = 0
    for kind, text in BLOCKS:
        if kind == "python":
            subprocess.run([sys.executable, "-c", text], cwd=folder, check=True, env=os.environ)
            continue
        for line in text.splitlines():
            command = shlex.split(line, comments=True)
            if command[:1] == ["lesionrt"]:
                if command[1:3] == ["export", "checkpoint.pt"]:
                    shutil.rmtree(folder / "bundle")
                quick = QUICK.get(command[1], [])
                run(*command[1:], *quick, cwd=folder)
                ran += 1
    assert ran == sum(
        line.startswith("lesionrt ") for kind, text in BLOCKS if kind == "console" for line in text.splitlines()
    )
    assert (folder / "mask.nii.gz").is_file()
    assert {path.name for path in (folder / "results").iterdir()} >= {
        "other_overlay.png",
        "sub-01_desc-lesions_mask.nii.gz",
    }


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^make (\w+)", "\n".join(text for _, text in BLOCKS), re.MULTILINE)
    assert targets[:2] == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_extras_that_it_names_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip install '\.\[([\w,]+)\]'", "\n".join(text for _, text in BLOCKS))
    assert named
    assert {extra for group in named for extra in group.split(",")} <= set(extras)
