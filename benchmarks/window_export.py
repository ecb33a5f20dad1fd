"""Exports a checkpoint's window network the plain way, for one size of slices.

python -m lesionrt.benchmarks.window_export CHECKPOINT GRAPH HEIGHT WIDTH
"""

import sys
from pathlib import Path

import torch

from lesionrt.train.checkpoint import load_checkpoint
from lesionrt.train.model import WINDOW

OPSET = 18


def export_window_graph(checkpoint: Path, graph: Path, height: int, width: int) -> None:
    """Write ``windows`` (1, 3, H, W) to ``lesion`` (1, H, W), optimised as PyTorch's exporter does by itself."""
    network = load_checkpoint(checkpoint).network
    example = torch.zeros(1, WINDOW, height, width)
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["windows"],
        output_names=["lesion"],
        verbose=False,
    )
    assert program is not None
    program.save(graph)


if __name__ == "__main__":
    export_window_graph(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
