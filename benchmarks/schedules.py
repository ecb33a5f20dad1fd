"""One pass in ONNX Runtime against the authors' schedule in PyTorch, both timed in one run.

    python -m lesionrt.benchmarks.schedules CHECKPOINT BUNDLE [--flair FLAIR]

The authors' schedule encodes and decodes all three slices of every window and keeps one. Repetitions are
interleaved (A B A B ...) after a warm-up of both; the medians are compared.
"""

import json
import platform
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from lesionrt.benchmarks.interleaved import Array, median_seconds
from lesionrt.runtime.backends import open_backend
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.errors import LesionrtError
from lesionrt.runtime.parity import compare
from lesionrt.runtime.prepare import prepare_volume
from lesionrt.runtime.volume import nonzero_brain, read_flair
from lesionrt.train.checkpoint import load_checkpoint
from lesionrt.train.model import WINDOW, Network, lesion_probability, windows_of
from lesionrt.train.untrained import phantom_slices


def authors_schedule(network: Network, slices: Array) -> Array:
    """Probabilities (n, H, W) of a stack (n + 2, 1, H, W): three encodes and three decodes a window."""
    result = []
    with torch.inference_mode():
        for window in windows_of(torch.from_numpy(slices)):
            features, skips = network.encode(window[:, None])
            states = features
            if network.convlstm is not None:
                hidden = network.convlstm(features[None])  # after each slice
                last = network.config.readout == "last"  # then every slice is decoded from the state after all three
                states = torch.cat([hidden[-1]] * WINDOW if last else hidden)
            result.append(lesion_probability(network.decode(states, skips))[WINDOW // 2].numpy())
    return np.stack(result)


def command(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint of the bundle.")],
    bundle: Annotated[Path, typer.Argument(help="The bundle, with an fp32 graph.")],
    flair: Annotated[Path | None, typer.Option(help="A real volume; a phantom by default.")] = None,
    slices: Annotated[int, typer.Option(help="Output slices from the middle of the brain.", min=1)] = 10,
    repeats: Annotated[int, typer.Option(help="Timed repetitions of each case.", min=1)] = 3,
) -> None:
    """Time both schedules on the same slices and compare their probabilities."""
    network = load_checkpoint(checkpoint).network
    model = load_bundle(bundle)
    if flair is None:
        stack = phantom_slices(model.preparation, model.size_multiple, slices + 2)
    else:
        volume = read_flair(flair)
        stack = prepare_volume(volume, nonzero_brain(volume), model.preparation, model.size_multiple).slices
        first = max(0, (len(stack) - slices - 2) // 2)
        stack = np.ascontiguousarray(stack[first : first + slices + 2])
    with open_backend("cpu", model, "fp32") as backend:
        seconds, results = median_seconds(
            {
                "authors": lambda: authors_schedule(network, stack),
                "one_pass": lambda: infer_in_chunks(backend, stack),
            },
            repeats,
        )
        library = backend.library
    count = len(stack) - 2
    difference = compare(results["authors"], results["one_pass"], model.threshold)
    report = {
        "slices": flair.name if flair else "phantom",
        "output_slices": count,
        "height_width": list(stack.shape[2:]),
        "authors_schedule_s_per_slice": round(seconds["authors"] / count, 4),
        "authors_schedule_by": f"PyTorch {torch.__version__} float32",
        "one_pass_s_per_slice": round(seconds["one_pass"] / count, 4),
        "one_pass_by": f"{library} float32",
        "times_faster": round(seconds["authors"] / seconds["one_pass"], 2),
        "max_difference": difference.max_difference,
        "repeats": repeats,
        "machine": {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    try:
        typer.run(command)
    except LesionrtError as error:
        raise SystemExit(f"error: {error}") from error
