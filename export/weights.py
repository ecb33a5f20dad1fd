"""Weights in half precision where they are half-precision numbers anyway, in one file for all graphs of a bundle."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 1024  # values; fewer are not worth a cast
SHARED_BYTES = 1024  # smaller weights stand in the graph itself
_HALF = ".half"


def store_in_half(model: onnx.ModelProto) -> None:
    """Replace float32 weights that float16 holds exactly by float16 ones and a cast, which a runtime folds at load.

    The graph computes what it computed; its file is half as large. Others stay as they are.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        casts.append(_cast_from_half(tensor, half))
    prepend(model, casts)


def share_weights(model: onnx.ModelProto, stored: Path) -> None:
    """Let a graph take its weights from a float32 graph's file, wherever the same numbers stand in it.

    Weights in bfloat16 become a cast of the float16 ones of which they are the rounding.
    """
    content = stored.read_bytes()
    halves = {
        tensor.name.removesuffix(_HALF): numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(content).graph.initializer
        if tensor.name.endswith(_HALF)
    }
    casts = []
    for tensor in model.graph.initializer:
        half = halves.get(tensor.name)
        if tensor.data_type == TensorProto.BFLOAT16 and half is not None and _rounds_to(half, tensor):
            model.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            casts.append(_cast_from_half(tensor, half))
        if len(tensor.raw_data) < SHARED_BYTES:
            continue
        offset = content.find(tensor.raw_data)
        if offset >= 0:
            onnx.external_data_helper.set_external_data(tensor, stored.name, offset, len(tensor.raw_data))
            tensor.ClearField("raw_data")
    prepend(model, casts)


def read_graph(path: Path) -> onnx.ModelProto:
    """A graph with all weights in it, in the types in which it computes."""
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in stored]:
        tensor, kind = stored[node.input[0]], helper.tensor_dtype_to_np_dtype(helper.get_node_attr_value(node, "to"))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), node.output[0]))
        model.graph.node.remove(node)
    return model


def _cast_from_half(tensor: TensorProto, half: NDArray[np.float16]) -> onnx.NodeProto:
    """Make a weight float16, in place; the cast that gives it back under its name."""
    name, kind = tensor.name, tensor.data_type
    tensor.CopyFrom(numpy_helper.from_array(half, f"{name}{_HALF}"))
    return helper.make_node("Cast", [f"{name}{_HALF}"], [name], f"{name}.cast", to=kind)


def _rounds_to(half: NDArray[np.float16], tensor: TensorProto) -> bool:
    return np.array_equal(half.astype(ml_dtypes.bfloat16), numpy_helper.to_array(tensor))


def prepend(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Put nodes before those of a graph: a node comes after what it reads."""
    nodes = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
