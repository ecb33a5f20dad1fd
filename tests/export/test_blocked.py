"""The network with its channels in whole blocks computes what the network does."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from lesionrt.export import blocked
from lesionrt.export.blocked import BLOCK, BlockedStream, filling
from lesionrt.export.graph import with_one_input_channel
from lesionrt.export.weights import read_graph
from lesionrt.train.model import Network, NetworkConfig, windows_of
from lesionrt.train.weights import norms


def varied(config: NetworkConfig) -> Network:
    """A network whose norms have learned something."""
    torch.manual_seed(0)
    network = Network(config).eval()
    for norm in norms(network):
        for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            values.copy_(torch.rand_like(values) + 0.5)
    return network


@pytest.mark.parametrize(
    ("attention", "convlstm", "readout"),
    [(True, True, "last"), (True, True, "centre"), (False, True, "last"), (True, False, "centre")],
)
@pytest.mark.parametrize("cut", [(7,), (3, 1, 3)])
@pytest.mark.parametrize("wide", [blocked.WIDE, 1])
def test_it_equals_the_network_window_by_window(
    attention: bool, convlstm: bool, readout: str, cut: tuple[int, ...], wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        blocked, "WIDE", wide
    )  # with 1 every convolution takes half the multiplications where the height allows it
    config = NetworkConfig(3, 2, 2, 5, attention=attention, convlstm=convlstm, readout=readout)  # type: ignore[arg-type]
    network = varied(config)
    stream = BlockedStream(with_one_input_channel(network))
    slices = torch.randn(sum(cut), 1, 8, 12)
    found = []
    with torch.inference_mode():
        expected = network(windows_of(slices))
        state = [torch.zeros(0, c, 8 // d, 12 // d) for d, c in stream.state_channels().items()]
        for piece in slices.split(cut):
            lesion, *state = stream(piece, state)
            found.append(lesion)
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-6)


def test_channels_come_in_whole_blocks() -> None:
    # Each dense layer's 3 channels fill a block of their own; the attention gives 5 + 2 * 3 of them in one.
    assert BlockedStream(Network(NetworkConfig(3, 2, 1, 5, input_channels=1))).state_channels() == {1: BLOCK, 2: 4 * 6}
    without = NetworkConfig(3, 2, 1, 5, input_channels=1, attention=False, convlstm=False)
    assert BlockedStream(Network(without)).state_channels() == {1: 3 * BLOCK, 2: 2 * BLOCK}


def test_places_between_the_sources_are_filled_with_zeros() -> None:
    assert filling(range(2, 5), (0, 1, 4), 6, 9).tolist() == [2, 3, 9, 9, 4, 9]


def test_the_file_holds_the_networks_weights_as_they_are(full_bundle: Path) -> None:
    whole = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in read_graph(full_bundle / "model_fp32.onnx").graph.initializer
    }
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in read_graph(full_bundle / "blocked_fp32.onnx").graph.initializer
    }
    kernels = [name for name, values in stored.items() if values.ndim == 4 and values.shape[1] > 1]
    assert len(kernels) > 10
    for name in kernels:
        if name in whole:
            np.testing.assert_array_equal(stored[name], whole[name])
    assert sum(name in whole for name in kernels) > len(kernels) / 2


def test_wide_convolutions_take_half_the_multiplications(full_bundle: Path) -> None:
    graph = read_graph(full_bundle / "blocked_fp32.onnx").graph
    pads = [attribute.ints for node in graph.node for attribute in node.attribute if attribute.name == "pads"]
    # Six with columns alone to pad for each of two convolutions, at full resolution on four levels of five, of the average on three.
    assert pads.count([0, 1, 0, 1]) == 6 * 2 * (4 + 3)


def test_onnx_runtime_never_leaves_its_blocks_for_a_norm(full_bundle: Path, tmp_path: Path) -> None:
    operators = {}
    for name in ("stream_fp32", "blocked_fp32"):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        options.log_severity_level = 4  # the optimised file is for this processor alone, it says
        ort.InferenceSession(full_bundle / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        graph = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph
        operators[name] = Counter(node.op_type for node in graph.node)
    if not operators["stream_fp32"]["ReorderInput"]:
        pytest.skip("ONNX Runtime has no layout in blocks on this processor")
    assert operators["blocked_fp32"]["ReorderInput"] < operators["stream_fp32"]["ReorderInput"]
    assert operators["stream_fp32"]["BatchNormalization"] > 0
    assert operators["blocked_fp32"]["BatchNormalization"] == 0
    assert operators["blocked_fp32"]["Gather"] == operators["blocked_fp32"]["Pad"] == 0  # done at load
