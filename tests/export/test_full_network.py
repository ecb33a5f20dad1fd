"""The full network: what a small one does not show."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lesionrt.export.reference import window_probabilities
from lesionrt.export.restore import restore_checkpoint
from lesionrt.export.weights import read_graph
from lesionrt.runtime.backends import open_backend, precisions
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.prepare import prepare_volume
from lesionrt.runtime.volume import read_flair

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


@pytest.fixture(scope="module")
def weights(full_bundle: Path) -> dict[str, np.ndarray]:
    """The network's parameters as they stand in its float32 graph."""
    graph = read_graph(full_bundle / "model_fp32.onnx").graph
    return {tensor.name.removeprefix("network."): numpy_helper.to_array(tensor) for tensor in graph.initializer}


@pytest.mark.parametrize("name", ["stream_fp32", "blocked_fp32", "model_fp16", "model_bf16"])
def test_every_graph_takes_its_weights_from_the_first_one(
    full_bundle: Path, weights: dict[str, np.ndarray], name: str
) -> None:
    path = full_bundle / f"{name}.onnx"
    assert path.stat().st_size < 2e6
    large = [tensor for tensor in read_graph(path).graph.initializer if np.prod(tensor.dims) >= 10_000]
    assert sum(np.prod(tensor.dims) for tensor in large) > 13e6
    for tensor in large:
        values = numpy_helper.to_array(tensor)
        name = tensor.name.removeprefix("network.").replace(".part.", ".")  # what stays float32 stands in a part
        assert np.array_equal(values, weights[name].astype(values.dtype))
    stored = onnx.load(path, load_external_data=False).graph.initializer
    assert {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"} == {
        "model_fp32.onnx"
    }


def test_3_slices_of_a_real_scan_through_the_full_network(shared: Path, full_bundle: Path) -> None:
    bundle = load_bundle(full_bundle)
    network = restore_checkpoint(bundle).network
    flair = read_flair(shared / "data" / "lit" / "p07" / "flair.nii.gz")
    slices = prepare_volume(flair, flair.data != 0, bundle.preparation, bundle.size_multiple).slices[50:55]
    reference = window_probabilities(network, slices)
    assert reference.shape == (3, 160, 160)
    for name in ("cpu", "openvino"):
        with open_backend(name, bundle, "fp32") as backend:
            found = [infer_in_chunks(backend, slices, chunk) for chunk in (2, None)]
        difference = np.abs(found[0] - reference)
        assert difference.max() <= 1e-3
        assert np.percentile(difference, 99.9) <= 1e-4
        assert np.array_equal(*found)  # whatever the chunk
    if "bf16" in precisions("openvino", bundle):
        with open_backend("openvino", bundle, "bf16") as backend:
            found = [infer_in_chunks(backend, slices, chunk) for chunk in (2, None)]
        assert np.percentile(np.abs(found[0] - reference), 99.9) <= 5e-2
        assert np.array_equal(*found)


def test_default_chunks_of_256x256_leave_room_for_the_volume_in_2_gb(full_bundle: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", MEMORY, full_bundle], capture_output=True, text=True, check=True)
    assert int(answer.stdout) * 1024 < 1.7e9  # what is held of a volume meanwhile comes on top
