"""A bundle's checkpoint, restored from its float32 graph."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lesionrt.export.reference import window_probabilities
from lesionrt.export.restore import restore_checkpoint
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.errors import BundleError
from lesionrt.train.checkpoint import load_checkpoint, save_checkpoint


def test_it_gives_the_probabilities_of_the_checkpoint(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    save_checkpoint(restore_checkpoint(load_bundle(tiny_bundle)), tmp_path / "restored.pt")
    found, known = load_checkpoint(tmp_path / "restored.pt"), load_checkpoint(tiny_checkpoint)
    assert (found.preparation, found.model) == (known.preparation, known.model)
    state = found.network.state_dict()
    for name, value in known.network.state_dict().items():
        if name != "first.weight" and not name.endswith("num_batches_tracked"):
            assert np.array_equal(state[name], value), name
    slices = np.random.default_rng(0).normal(size=(4, 1, 8, 12)).astype(np.float32)
    expected = window_probabilities(known.network, slices)
    np.testing.assert_allclose(window_probabilities(found.network, slices), expected, atol=1e-6)


def with_graph(bundle: Path, graph: Path) -> SimpleNamespace:
    """A bundle that vouches for another graph."""
    known = load_bundle(bundle)
    return SimpleNamespace(**vars(known), graph=lambda precision: graph, checked=known.checked)


def test_a_graph_of_another_exporter_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / "model_fp32.onnx")
    for number, tensor in enumerate(model.graph.initializer):
        tensor.name = f"onnx::Conv_{number}"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(BundleError, match=r"other\.onnx: lacks \d+ of the network's \d+ weights \(.*another exporter"):
        restore_checkpoint(with_graph(tiny_bundle, tmp_path / "other.onnx"))  # type: ignore[arg-type]


def test_weights_that_were_changed_after_the_export_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / "model_fp32.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "network.final.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0, 1]), bias.name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(BundleError, match=r"changed\.onnx: its weights give probabilities .* at most 0\.0001"):
        restore_checkpoint(with_graph(tiny_bundle, tmp_path / "changed.onnx"))  # type: ignore[arg-type]
