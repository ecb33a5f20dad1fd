"""Weights in the graph's file in half precision, where they are half-precision numbers anyway."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 1024  # values; fewer are not worth a cast


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
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]  # a node comes after what it reads
    del model.graph.node[:]
    model.graph.node.extend(nodes)
