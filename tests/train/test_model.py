"""The network against the authors' test vectors, and its three forwards against each other."""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from lesionrt.runtime.errors import CheckpointError
from lesionrt.train.model import Network, NetworkConfig, lesion_probability, windows_of
from lesionrt.train.official import network_from_official, official_name

# The paper's Table 5 (attention, ConvLSTM): parameters.
PARAMETERS = {
    (False, False): 2_054_702,
    (False, True): 2_313_902,
    (True, False): 13_242_782,
    (True, True): 13_501_982,
}
GOLDEN = [
    ("centre", False, False),
    ("centre", False, True),
    ("last", False, True),
    ("centre", True, False),
    ("centre", True, True),
    ("last", True, True),
]


def no_slices(network: Network, height: int, width: int) -> list[torch.Tensor]:
    """The state before the first slice of a stack."""
    return [torch.zeros(0, c, height // d, width // d) for d, c in network.state_channels().items()]


def streamed(network: Network, slices: torch.Tensor, cut: tuple[int, ...]) -> torch.Tensor:
    """Probabilities of a stack that comes in pieces of so many slices."""
    found, state = [], no_slices(network, *slices.shape[2:])
    for piece in slices.split(cut):
        lesion, state = network.forward_stream(piece, state)
        found.append(lesion)
    return torch.cat(found)


@pytest.mark.parametrize(("attention", "convlstm"), PARAMETERS)
def test_variants_have_the_papers_parameter_counts(attention: bool, convlstm: bool) -> None:
    network = Network(NetworkConfig(attention=attention, convlstm=convlstm))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[attention, convlstm]


def test_the_defaults_are_the_full_network_read_out_after_the_last_slice() -> None:
    config = NetworkConfig()
    assert (config.attention, config.convlstm, config.readout) == (True, True, "last")


@pytest.mark.parametrize(("readout", "attention", "convlstm"), GOLDEN)
def test_all_forwards_give_the_authors_numbers(shared: Path, readout: str, attention: bool, convlstm: bool) -> None:
    golden = np.load(shared / "reference" / "official_golden.npz")
    filled = official_network(shared, attention, convlstm)
    network = Network(NetworkConfig(attention=attention, convlstm=convlstm, readout=readout)).eval()  # type: ignore[arg-type]
    network.load_state_dict(filled.state_dict())
    slices = torch.from_numpy(golden["slices"])[:, None]
    expected = golden[f"{readout},sa={int(attention)},lstm={int(convlstm)}"]
    with torch.inference_mode():
        np.testing.assert_allclose(network(windows_of(slices)).numpy(), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(network.forward_stack(slices).numpy(), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(streamed(network, slices, (4, 2)).numpy(), expected, rtol=0, atol=1e-4)


@cache
def official_network(shared: Path, attention: bool, convlstm: bool) -> Network:
    """Filled by the rule, through the import of the authors' checkpoints."""
    spec = importlib.util.spec_from_file_location("official_weights", shared / "reference" / "official_weights.py")
    assert spec is not None
    assert spec.loader is not None
    official_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official_weights)
    state = official_weights.official_state_dict(attention=attention, lstm=convlstm)

    filled = network_from_official({name: torch.from_numpy(np.asarray(v)) for name, v in state.items()}, "the rule")
    assert (filled.config.attention, filled.config.convlstm, filled.config.readout) == (attention, convlstm, "centre")
    return filled


@pytest.mark.parametrize("readout", ["last", "centre"])
@pytest.mark.parametrize(("attention", "convlstm"), PARAMETERS)
def test_one_pass_equals_window_by_window(readout: str, attention: bool, convlstm: bool) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(4, 2, 2, 8, 3, attention, convlstm, readout)  # type: ignore[arg-type]
    network = Network(config).eval()
    slices = torch.randn(5, 1, 8, 12)
    with torch.inference_mode():
        windows = torch.cat([network(slices[i : i + 3, 0][None]) for i in range(3)])
        stack = network.forward_stack(slices)
    assert stack.shape == (3, 8, 12)
    torch.testing.assert_close(stack, windows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("readout", ["last", "centre"])
@pytest.mark.parametrize(("attention", "convlstm"), PARAMETERS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_slabs_equal_window_by_window(readout: str, attention: bool, convlstm: bool, count: int) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(growth_rate=4, layers=2, levels=2, attention=attention, convlstm=convlstm, readout=readout)  # type: ignore[arg-type]
    network = Network(config).eval()
    slabs = torch.randn(3, count, 16, 24)
    repeated = torch.cat([slabs[:, :1], slabs, slabs[:, -1:]], 1)  # each end is its own neighbour
    windows = torch.cat([windows_of(slab[:, None]) for slab in repeated])
    with torch.inference_mode():
        torch.testing.assert_close(network.slab_logits(slabs), network.window_logits(windows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [(7,), (3, 4), (3, 1, 1, 1, 1), (5, 2)])
@pytest.mark.parametrize("readout", ["last", "centre"])
@pytest.mark.parametrize(("attention", "convlstm"), PARAMETERS)
def test_a_stack_in_pieces_equals_window_by_window(
    readout: str, attention: bool, convlstm: bool, cut: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(4, 2, 2, 8, 3, attention, convlstm, readout)  # type: ignore[arg-type]
    network = Network(config).eval()
    slices = torch.randn(7, 1, 8, 12)
    with torch.inference_mode():
        windows = network(windows_of(slices))
        pieces = streamed(network, slices, cut)
    torch.testing.assert_close(pieces, windows, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("convlstm", "bottleneck"), [(True, 240), (False, 60)])
def test_the_state_is_the_skip_connections_and_the_bottleneck_of_two_slices(convlstm: bool, bottleneck: int) -> None:
    network = Network(NetworkConfig(attention=False, convlstm=convlstm)).eval()
    channels = {1: 108, 2: 168, 4: 228, 8: 288, 16: 348, 32: bottleneck}
    assert network.state_channels() == channels
    with torch.inference_mode():
        _, state = network.stream_logits(torch.zeros(4, 1, 32, 64), no_slices(network, 32, 64))
    assert [tuple(part.shape) for part in state] == [(2, c, 32 // d, 64 // d) for d, c in channels.items()]


def test_only_the_last_readout_sees_the_following_slice() -> None:
    torch.manual_seed(0)
    windows = torch.randn(1, 3, 8, 8)
    other = windows.clone()
    other[:, 2] += 1
    seen = {}
    for readout in ("last", "centre"):
        torch.manual_seed(1)
        network = Network(NetworkConfig(4, 2, 2, 8, attention=False, readout=readout)).eval()  # type: ignore[arg-type]
        with torch.inference_mode():
            seen[readout] = bool((network(windows) != network(other)).any())
    assert seen == {"last": True, "centre": False}


def test_grey_counts_once_for_each_input_channel() -> None:
    torch.manual_seed(0)
    three = Network(NetworkConfig(4, 1, 1, 8, input_channels=3)).eval()
    one = Network(NetworkConfig(4, 1, 1, 8, input_channels=1)).eval()
    state = three.state_dict()
    one.load_state_dict({**state, "first.weight": state["first.weight"].sum(1, keepdim=True)})
    windows = torch.randn(2, 3, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(one(windows), three(windows))


def test_probability_is_the_softmax_of_the_lesion_class() -> None:
    # exp(0) / (exp(0) + exp(ln 3)) = 1/4 background, so 3/4 lesion.
    logits = torch.tensor([0.0, np.log(3.0)]).reshape(1, 2, 1, 1)
    assert lesion_probability(logits).item() == pytest.approx(0.75)


def test_windows_are_three_consecutive_slices() -> None:
    windows = windows_of(torch.arange(4.0).reshape(4, 1, 1, 1))
    assert windows[..., 0, 0].tolist() == [[0, 1, 2], [1, 2, 3]]


def test_official_names_cover_every_parameter(shared: Path) -> None:
    import json

    listed = json.loads((shared / "reference" / "official_parameters.json").read_text())
    for attention, convlstm in PARAMETERS:
        network = Network(NetworkConfig(attention=attention, convlstm=convlstm))
        names = {official_name(name) for name in network.state_dict()}
        assert names == set(listed[f"sa={int(attention)},lstm={int(convlstm)}"])


@pytest.mark.parametrize(
    "wrong",
    [{"layers": 0}, {"levels": 2.0}, {"attention": 1}, {"readout": "first"}, {"dropout": 1.0}, {"growth_rate": True}],
)
def test_a_wrong_configuration_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(wrong))):
        NetworkConfig(**wrong)  # type: ignore[arg-type]
