"""Post-training int8 is tried with what the graph is really fed with."""

from pathlib import Path

import numpy as np
import pytest

from lesionrt.benchmarks import int8
from lesionrt.runtime.bundle import STREAM_GRAPHS, load_bundle
from lesionrt.runtime.errors import UnavailableError

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")


def test_samples_hold_the_state_that_the_slices_before_left(tiny_bundle: Path) -> None:
    model = openvino.Core().read_model(load_bundle(tiny_bundle).stream_graph("fp32", STREAM_GRAPHS))
    stack = np.random.default_rng(0).normal(size=(2 * int8.PIECE + 1, 1, 8, 12)).astype(np.float32)
    ((sample,),) = int8.samples(model, [stack])  # the first piece has no state, the last is not whole
    np.testing.assert_array_equal(sample["slices"], stack[int8.PIECE : 2 * int8.PIECE])
    assert {name: values.shape[2:] for name, values in sample.items()} == {
        "slices": (8, 12),
        "state_1": (8, 12),
        "state_2": (4, 6),
        "state_4": (2, 3),
    }
    assert all(values.any() for values in sample.values())


def test_the_search_is_told_the_least_dice_of_the_volumes_that_it_asks_for(tiny_bundle: Path) -> None:
    model = openvino.Core().read_model(load_bundle(tiny_bundle).stream_graph("fp32", STREAM_GRAPHS))
    rng = np.random.default_rng(0)
    stacks = [rng.normal(size=(3 * int8.PIECE, 1, *size)).astype(np.float32) for size in ((8, 12), (12, 8))]
    volumes = int8.samples(model, stacks)
    feeds = [feed for volume in volumes for feed in volume]
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    masks = {id(feed): compiled(feed)["lesion"] for feed in feeds}
    threshold = float(np.median(masks[id(feeds[0])]))
    agreement = int8.Agreement(model, volumes, threshold)
    for some in (feeds[:1], feeds, feeds[1:3]):
        assert agreement(compiled, some) == (1.0, None)
    # All is lesion: where a share p of the reference is, Dice is 2p / (1 + p).
    shares = [np.mean([masks[id(feed)] > threshold for feed in volume]) for volume in volumes]
    dice = [2 * share / (1 + share) for share in shares]
    assert dice[0] != dice[1]
    for some, expected in ((feeds, min(dice)), (volumes[0], dice[0]), (volumes[1], dice[1])):
        found, _ = agreement(lambda feed: {"lesion": np.ones_like(masks[id(feed)])}, some)
        assert found == pytest.approx(expected)


def test_it_says_what_to_install(
    tiny_bundle: Path, small_flair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="pip install nncf openvino"):
        int8.command(tiny_bundle, [small_flair], tmp_path / "out.json")
    assert not list(tmp_path.iterdir())
