"""Weights in half precision in a float32 graph's file, and shared by the other graphs."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lesionrt.export.card import SECTIONS, read_card
from lesionrt.export.weights import read_graph, share_weights, store_in_half
from lesionrt.runtime.errors import InputError


def graph_with(weights: np.ndarray) -> onnx.ModelProto:
    """y = x + w."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, weights.shape) for name in ("x", "y")]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "add", value[:1], value[1:], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_exact_half_precision_weights_take_half_the_room_and_give_the_same() -> None:
    weights = (np.arange(4096, dtype=np.float32).reshape(64, 64) % 1024) / 8 - 64  # all of them float16 numbers
    x = np.random.default_rng(0).normal(size=weights.shape).astype(np.float32)
    model = graph_with(weights)
    before, size = run(model, x), len(model.SerializeToString())
    store_in_half(model)
    assert len(model.SerializeToString()) < 0.6 * size
    np.testing.assert_array_equal(run(model, x), before)


@pytest.mark.parametrize(
    "weights",
    [
        np.full((64, 64), 0.1, np.float32),  # 0.1 is no float16 number
        np.full((64, 64), 1e6, np.float32),  # beyond float16
        np.ones((8, 8), np.float32),  # too few to be worth it
    ],
)
def test_other_weights_stay_as_they_are(weights: np.ndarray) -> None:
    model = graph_with(weights)
    before = model.SerializeToString()
    store_in_half(model)
    assert model.SerializeToString() == before


def test_graphs_of_other_precisions_take_the_same_numbers_from_one_file(tmp_path: Path) -> None:
    weights = (np.arange(4096, dtype=np.float32).reshape(64, 64) % 1024) / 8 - 64  # all of them float16 numbers
    full = graph_with(weights)
    store_in_half(full)
    onnx.save(full, tmp_path / "full.onnx")
    for kind in (np.float16, ml_dtypes.bfloat16):
        other = graph_with(weights)
        other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights.astype(kind), "w"))
        share_weights(other, tmp_path / "full.onnx")
        onnx.save(other, tmp_path / "other.onnx")
        assert (tmp_path / "other.onnx").stat().st_size < 1024
        found = read_graph(tmp_path / "other.onnx")
        assert [node.op_type for node in found.graph.node] == ["Add"]
        values = numpy_helper.to_array(found.graph.initializer[0])
        assert (found.graph.initializer[0].name, values.dtype) == ("w", kind)
        np.testing.assert_array_equal(values, weights.astype(kind))


def test_weights_that_are_others_are_not_shared(tmp_path: Path) -> None:
    full, other = graph_with(np.full((64, 64), 0.5, np.float32)), graph_with(np.full((64, 64), 0.25, np.float32))
    store_in_half(full)
    onnx.save(full, tmp_path / "full.onnx")
    before = other.SerializeToString()
    share_weights(other, tmp_path / "full.onnx")
    assert other.SerializeToString() == before


def test_a_card_is_complete_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    texts = "".join(f'{name} = "text"\n' for name in SECTIONS if name != "figures")
    path.write_text(f'{texts}\n[figures]\np07 = "Dice 0.5"\n\n[model]\nname = "m"\n')
    assert read_card(path)["figures"] == {"p07": "Dice 0.5"}
    path.write_text('data = "text"\nspeed = "fast"\n')
    with pytest.raises(InputError, match=r"lacks recipe, figures, intended_use, limits and has unknown speed"):
        read_card(path)
    for more, message in (
        ("[figures]\nmeasured = 2026-01-31", r"card\.toml: holds what JSON has no word for .*date"),
        ("[figures]\np07 = nan", r"card\.toml: holds what JSON has no word for"),
        ("[figures]\n[model]\nversion = 5", r"card\.toml: model\.version is 5; expected a text"),
    ):
        path.write_text(f"{texts}\n{more}\n")
        with pytest.raises(InputError, match=message):
            read_card(path)
    with pytest.raises(InputError, match="cannot be read as a model card"):
        read_card(tmp_path / "none.toml")
