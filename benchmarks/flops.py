"""The multiplications and additions of a bundle's graph, counted from its ONNX file."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from lesionrt.benchmarks.roofline import Work
from lesionrt.runtime.errors import BundleError

Shape = tuple[int, ...]


def _conv(data: Shape, weight: Shape, result: Shape) -> int:
    return 2 * math.prod(result) * math.prod(weight[1:])  # weight (out, in / groups, kernel)


def _conv_transpose(data: Shape, weight: Shape, result: Shape) -> int:
    return 2 * math.prod(data) * math.prod(weight[1:])  # weight (in, out / groups, kernel)


def _matmul(one: Shape, other: Shape, result: Shape) -> int:
    return 2 * math.prod(result) * math.isqrt(math.prod(one[-2:]) * math.prod(other[-2:]) // math.prod(result[-2:]))


# Of data, weight and result to FLOPs. In a product (a, k) x (k, b) = (a, b), k is the root of ak kb / ab, transposed or not.
_COUNTED: dict[str, Callable[[Shape, Shape, Shape], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _matmul,
}


def model_work(model: onnx.ModelProto, inputs: dict[str, Sequence[int]]) -> tuple[Work, int]:
    """Count a graph whose inputs have these shapes: its work without weights, and their values; the model is changed."""
    for value in model.graph.input:
        if value.name in inputs:
            for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
                dim.dim_value = size
    del model.graph.value_info[:]  # the exporter's, of dynamic shapes
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    total, weights = Work(0, 0), {}
    for node in inferred.node:
        if node.op_type in _COUNTED:
            data, weight, result = (_known(shapes, name, node) for name in (*node.input[:2], node.output[0]))
            total += Work(_COUNTED[node.op_type](data, weight, result), math.prod(data) + math.prod(result))
            weights[node.input[1]] = math.prod(weight)  # once, however many nodes take them
    return total, sum(weights.values())


def _known(shapes: dict[str, Shape], name: str, node: Any) -> Shape:
    shape = shapes.get(name, ())
    if not shape or 0 in shape:
        raise BundleError(f"{node.op_type} {node.name}: the shape of {name} is {shape}; it cannot be counted")
    return shape


def slice_work(graph: Path, height: int, width: int) -> tuple[Work, Work, Work]:
    """Work to encode one slice and to decode one, and the weights'.

    ``slices`` (n, 1, H, W) cost n times the first, n - 2 times the second and, at the least, the third once.
    """
    (three, weights), (four, _) = (
        model_work(onnx.load(graph, load_external_data=False), {"slices": (n, 1, height, width)}) for n in (3, 4)
    )
    both = four - three
    encode = (three - both) * 0.5
    return encode, both - encode, Work(0, weights)
