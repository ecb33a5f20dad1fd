"""The full network: what a small one does not show."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

from lesionrt.export.reference import window_probabilities
from lesionrt.runtime.backends import open_backend
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.prepare import prepare_volume
from lesionrt.runtime.volume import read_flair
from lesionrt.train.checkpoint import load_checkpoint

MEMORY = """
import sys
import numpy as np
from pathlib import Path
from lesionrt.runtime.backends import open_backend
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.chunks import default_chunk, infer_in_chunks
with open_backend("cpu", load_bundle(Path(sys.argv[1]))) as backend:
    infer_in_chunks(backend, np.zeros((2 * default_chunk(256, 256) + 2, 1, 256, 256), np.float32))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # of this program alone
print(peak.split()[1])
"""


def test_the_graph_that_streams_takes_its_weights_from_the_other_one(full_bundle: Path) -> None:
    whole, stream = (full_bundle / f"{kind}_fp32.onnx" for kind in ("model", "stream"))
    assert stream.stat().st_size < 1e6 < 50e6 < whole.stat().st_size
    weights = {tensor.name: tensor for tensor in onnx.load(whole).graph.initializer}
    large = [tensor for tensor in onnx.load(stream).graph.initializer if len(tensor.raw_data) >= 1024]
    assert sum(len(tensor.raw_data) for tensor in large) > 50e6
    assert all(tensor.raw_data == weights[tensor.name].raw_data for tensor in large)
    stored = onnx.load(stream, load_external_data=False).graph.initializer
    assert {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"} == {
        whole.name
    }


def test_12_slices_of_a_real_scan_through_the_full_network(
    shared: Path, full_checkpoint: Path, full_bundle: Path
) -> None:
    bundle = load_bundle(full_bundle)
    flair = read_flair(shared / "data" / "lit" / "p07" / "flair.nii.gz")
    slices = prepare_volume(flair, flair.data != 0, bundle.preparation, bundle.size_multiple).slices[50:64]
    reference = window_probabilities(load_checkpoint(full_checkpoint).network, slices)
    assert reference.shape == (12, 160, 160)
    with open_backend("cpu", bundle, "fp32") as backend:
        for chunk in (5, None):
            difference = np.abs(infer_in_chunks(backend, slices, chunk) - reference)
            assert difference.max() <= 1e-3
            assert np.percentile(difference, 99.9) <= 1e-4


def test_default_chunks_of_256x256_leave_room_for_the_volume_in_2_gb(full_bundle: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", MEMORY, full_bundle], capture_output=True, text=True, check=True)
    assert int(answer.stdout) * 1024 < 1.7e9  # the arrays of the volume that are held meanwhile take 0.2
