"""nnU-Net v2's planned 2-D network and MONAI's sliding window on the same volume, in an environment of their own.

    python -m lesionrt.benchmarks.peers BUNDLE FLAIR -o peers.json [--environment FOLDER] [--repeats 3]

The environment is made once, with packages from PyPI; where they cannot be installed, the result says why. Of nnU-Net
it is the bare network of the planned size, called slice by slice without its predictor, with untrained weights: only its speed is
looked at. MONAI runs this package's own window network, which it must be able to import: the environment sees this Python's packages
after its own. MONAI's augmentation of training slabs is timed too, on one thread, beside this package's.
"""

import json
import os
import site
import subprocess
import tempfile
import venv
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lesionrt.benchmarks.checkpoints import restored_checkpoint
from lesionrt.benchmarks.entry import run
from lesionrt.benchmarks.interleaved import Spread
from lesionrt.benchmarks.machine import describe
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.cli.options import check_new
from lesionrt.runtime.errors import UnavailableError, last_line
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.prepare import HALO, prepare_volume
from lesionrt.runtime.processor import cores
from lesionrt.runtime.volume import nonzero_brain, read_flair

PACKAGES = {"nnunet": "nnunetv2", "monai": "monai"}
ENVIRONMENT = Path.home() / ".cache" / "lesionrt" / "peers"
MEASURE = "lesionrt.benchmarks.peers_measure"
INSTALL_S, MEASURE_S = 1800, 7200


def environment(folder: Path) -> Path:
    """The Python of an environment that has this one's packages too, so that PyTorch is the same."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    # Always: an environment whose making was interrupted lacks it.
    packages = next((folder / "lib").glob("python3*")) / "site-packages"
    (packages / "outer.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


def install(python: Path, package: str) -> str | None:
    """Why a package cannot be installed; None if it is there."""
    # This Python's PyTorch is kept: another build would be another measurement, and gigabytes.
    torch = version("torch").partition("+")[0]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(f"torch=={torch}\n")
        constraints.flush()
        command = [str(python), "-m", "pip", "install", "--quiet", "--constraint", constraints.name, package]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            return f"{package} was not installed within {INSTALL_S} s"
    if answer.returncode == 0:
        return None
    return f"{package} cannot be installed: {last_line(answer.stderr)}"


def measure_in(python: Path, order: dict[str, Any]) -> dict[str, Any]:
    """What :mod:`lesionrt.benchmarks.peers_measure` says to an order.

    Raises
    ------
    UnavailableError
        If it fails or takes too long.
    """
    try:
        answer = subprocess.run(
            [str(python), "-m", MEASURE, json.dumps(order)],
            capture_output=True,
            text=True,
            timeout=MEASURE_S,
            env={**os.environ, "OMP_NUM_THREADS": str(order["threads"])},
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"measuring took more than {MEASURE_S} s; give fewer --slices or --repeats") from error
    if answer.returncode:
        raise UnavailableError(f"measuring failed: {last_line(answer.stderr)}")
    measured: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return measured


def command(
    bundle: Annotated[Path, typer.Argument(help="The model.")],
    flair: Annotated[Path, typer.Argument(help="A real volume.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.")],
    folder: Annotated[Path, typer.Option("--environment", help="Where the packages go.")] = ENVIRONMENT,
    slices: Annotated[int, typer.Option(help="Output slices from the middle of the brain.", min=1)] = 12,
    repeats: Annotated[int, typer.Option(help="Timed rounds.", min=1)] = 3,
    threads: Annotated[int | None, typer.Option(help="On the CPU.", min=1, show_default="one a core")] = None,
) -> None:
    """Install the peers and measure them, interleaved, beside the authors' schedule, the one pass in PyTorch and the runtime."""
    check_new(out, force=True)  # before minutes of installing
    if find_spec("torch") is None:
        raise UnavailableError("PyTorch is not installed. Run: pip install 'lesionrt[export]'")
    model, volume = load_bundle(bundle), read_flair(flair)
    prepared = prepare_volume(volume, nonzero_brain(volume), model.preparation, model.size_multiple)
    total = len(prepared.brain)
    count = min(slices, total)
    first = (total - count) // 2
    python = environment(folder)
    lacking = {name: install(python, package) for name, package in PACKAGES.items()}
    used = threads or cores()
    with tempfile.TemporaryDirectory() as name:
        checkpoint, problem = restored_checkpoint(model, Path(name))
        if checkpoint is None:
            raise UnavailableError(f"{bundle}: {problem}")
        stack = Path(name) / "slices.npy"
        np.save(stack, prepared.slices[first : first + count + 2 * HALO])
        order = {
            "bundle": str(bundle.resolve()),
            "checkpoint": str(checkpoint),
            "slices": str(stack),
            "spacing_mm": model.preparation.spacing_mm,
            "brain_shape": [int(prepared.brain.any(axis=axes).sum()) for axes in ((0, 2), (0, 1))],
            "peers": [peer for peer, problem in lacking.items() if problem is None],
            "repeats": repeats,
            "threads": used,
        }
        measured = measure_in(python, order)
    for peer, problem in lacking.items():
        if problem is not None:
            measured["cases"][peer] = {"skipped": problem}
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model.name,
        "volume": {"name": flair.name, "sha256": volume.sha256, "slices": total},
        "slab_slices": count,
        "height_width": list(prepared.slices.shape[2:]),
        "threads": used,
        "machine": describe(),
        **measured,
    }
    write_atomically({out: (json.dumps(report, indent=2) + "\n").encode()})
    for part, rows in measured.items():
        first = next(iter(rows))
        for case, row in rows.items():
            name = case if part == "cases" else f"{part}, {case}"
            if "skipped" in row:
                print(f"{name}: not measured: {row['skipped']}")
                continue
            time = Spread(**row["s_per_slice"])
            ratio = f", {row['times_faster']:.2f} times {first}" if "times_faster" in row else ""
            print(f"{name}: {time.median:.4g} s per slice ({time.least:.4g} … {time.most:.4g}){ratio}, {row['what']}")


if __name__ == "__main__":
    run(command)
