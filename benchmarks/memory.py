"""Peak resident memory of `lesionrt segment` on a large volume, in every backend that can run here.

    python -m lesionrt.benchmarks.memory BUNDLE -o memory.json [--size 256]

The volume is a phantom, a cube of so many voxels of 1 mm a side.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from lesionrt.benchmarks.entry import run
from lesionrt.benchmarks.machine import describe
from lesionrt.benchmarks.scaling import SEGMENT
from lesionrt.runtime.backends import NAMES, probe
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.cli.options import check_new
from lesionrt.runtime.errors import last_line
from lesionrt.runtime.files import write_atomically

CUBE = """
import sys
import nibabel as nib, numpy as np
from lesionrt.runtime.phantom import phantom
size = int(sys.argv[1])
nib.save(nib.Nifti1Image(phantom((size, size, size))[0], np.eye(4)), sys.argv[2])
"""


def measure(bundle: Path, flair: Path, backend: str, folder: Path) -> dict[str, Any]:
    """Of one process, from its start to its end; why not, if it fails."""
    log = folder / f"{backend}.log"
    command = [sys.executable, "-c", SEGMENT, "segment", flair, "-o", folder / backend]
    with log.open("w") as text:
        process = subprocess.Popen([*command, "--model", bundle, "--backend", backend], stdout=text, stderr=text)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        return {"backend": backend, "failed": last_line(log.read_text())}
    report = json.loads(next((folder / backend).glob("*_report.json")).read_text())
    known = {name: report[name] for name in ("backend", "precision", "network_input", "seconds")}
    return {**known, "peak_mb": usage.ru_maxrss * 1024 / 1e6}


def command(
    bundle: Annotated[Path, typer.Argument(help="The model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.")],
    size: Annotated[int, typer.Option(help="Voxels along each side.", min=32)] = 256,
) -> None:
    """Segment a cube with each backend."""
    check_new(out, force=True)  # before minutes of computing
    model = load_bundle(bundle)
    with tempfile.TemporaryDirectory(prefix="lesionrt-memory-") as name:
        flair = Path(name) / "cube.nii.gz"
        # In a process of its own: what this one held would count in the peak of those that it starts.
        subprocess.run([sys.executable, "-c", CUBE, str(size), flair], check=True)
        able = [backend for backend in NAMES if probe(backend, model).problem is None]
        rows = [measure(bundle, flair, backend, Path(name)) for backend in able]
    report = {
        "what": "peak resident memory of one process of `lesionrt segment`, from its start to its end",
        "volume": f"phantom, {size}x{size}x{size} voxels of 1 mm, float32",
        "model": model.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "machine": describe(),
    }
    write_atomically({out: (json.dumps(report, indent=2) + "\n").encode()})
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    run(command)
