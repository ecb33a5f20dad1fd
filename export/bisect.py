"""Where a half-precision graph leaves the float32 one, node by node, on a CPU."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lesionrt.export.weights import read_graph
from lesionrt.runtime.backends.onnx_session import load
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.errors import BundleError

Array = NDArray[np.float32]
_TYPES = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}
# Of a node's largest magnitude: some 20 roundings of the format (2^-11 and 2^-8 of a number).
TOLERANCES = {"fp16": 1e-2, "bf16": 8e-2}
# They only fit a value to another type.
_FITTING = ("Cast", "Clip")


@dataclass(frozen=True)
class NodeDifference:
    """What half precision does to one node that is fed with the float32 graph's values, rounded.

    Attributes
    ----------
    index, name, operator
        The node in the half-precision graph, casts and clips not counted.
    lowest, highest
        Range of its result in float32.
    difference
        Largest absolute difference from that; infinite if its half-precision result is no finite number.
    in_half
        Whether its result is half precision; some parts stay float32.
    """

    index: int
    name: str
    operator: str
    lowest: float
    highest: float
    difference: float
    in_half: bool

    @property
    def relative(self) -> float:
        """The difference as a share of the largest magnitude."""
        largest = max(abs(self.lowest), abs(self.highest))
        return self.difference / largest if largest else self.difference

    def beyond(self, tolerance: float) -> bool:
        """Whether the node leaves the float32 graph, or the range of its format."""
        return not self.relative <= tolerance


def bisect(bundle: Bundle, precision: str, slices: Array) -> list[NodeDifference]:
    """Run every node in both precisions, each from the float32 graph's values.

    A node's own doing is seen that way, and not what it was handed. On the CPU its sums are float32: what shows is the
    rounding of inputs, weights and result, and what does not fit the format.

    Parameters
    ----------
    bundle
        With graphs of this precision and of float32.
    precision
        ``fp16`` or ``bf16``.
    slices
        (n, 1, H, W) to feed the float32 graph with.

    Raises
    ------
    BundleError
        If a graph is missing, damaged, or the two are not of one network.
    """
    full, half = read_graph(bundle.graph("fp32")), read_graph(bundle.graph(precision))
    pairs = _paired(full, half, bundle)
    alias, types = _half_values(half, pairs)
    constants = {tensor.name: tensor for tensor in half.graph.initializer}
    uses = Counter(name for node, _ in pairs for name in node.input)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in full.graph.initializer}
    values: dict[str, NDArray[Any]] = {**weights, "slices": slices}
    found = []
    for index, (node, other) in enumerate(pairs):
        results = _run(node, [values[name] for name in node.input if name], full)
        handed = [
            _constant(constants[name]) if name in constants else _saturated(values[alias[name]], types.get(name))
            for name in other.input
            if name
        ]
        rounded = _run(other, handed, half)
        for name, result, candidate in zip(other.output, results, rounded, strict=True):
            kind = types.get(name)
            found.append(_difference(index, other, result, _rounded(candidate, kind), kind is not None))
        values.update(zip(node.output, results, strict=True))
        for name in node.input:
            uses[name] -= 1
            if name and not uses[name]:
                del values[name]
    return found


def beyond(found: Sequence[NodeDifference], tolerance: float) -> list[NodeDifference]:
    """The nodes that leave the float32 graph, in the order of the graph."""
    return [node for node in found if node.beyond(tolerance)]


def _paired(full: ModelProto, half: ModelProto, bundle: Bundle) -> list[tuple[NodeProto, NodeProto]]:
    """Nodes of both graphs that do the same."""
    both = [[node for node in model.graph.node if node.op_type not in _FITTING] for model in (full, half)]
    if [node.op_type for node in both[0]] != [node.op_type for node in both[1]]:
        raise BundleError(f"{bundle.path}: its graphs are not of one network; export the bundle again")
    return list(zip(*both, strict=True))


def _half_values(
    half: ModelProto, pairs: Sequence[tuple[NodeProto, NodeProto]]
) -> tuple[dict[str, str], dict[str, Any]]:
    """For every value of the half-precision graph its name in the float32 graph, and its type if that is a half one."""
    alias = {"slices": "slices"}
    for node, other in pairs:
        alias.update(zip(other.output, node.output, strict=True))
    for node in half.graph.node:
        if node.op_type in _FITTING:
            alias[node.output[0]] = alias[node.input[0]]
    typed = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
    return alias, {name: _TYPES[kind] for name, kind in typed.items() if kind in _TYPES}


def _constant(tensor: TensorProto) -> NDArray[Any]:
    array = numpy_helper.to_array(tensor)
    return array.astype(np.float32) if tensor.data_type in _TYPES else array


def _rounded(array: NDArray[Any], kind: Any) -> NDArray[Any]:
    if kind is None or array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):  # too large is infinite, which is what we look for
        return array.astype(kind).astype(np.float32)


def _saturated(array: NDArray[Any], kind: Any) -> NDArray[Any]:
    """What a node is handed is finite: what is not was found at the node that gave it."""
    if kind is not None and array.dtype == np.float32:
        most = float(ml_dtypes.finfo(kind).max)
        array = array.clip(-most, most)
    return _rounded(array, kind)


def _run(node: NodeProto, inputs: Sequence[NDArray[Any]], model: ModelProto) -> list[NDArray[Any]]:
    """One node in float32, by itself."""
    ort = load()
    names = [name for name in node.input if name]
    feed = dict(zip(names, inputs, strict=True))
    graph = helper.make_graph(
        [node],
        "node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feed.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
    )
    single = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[NDArray[Any]] = session.run(None, feed)
    return results


def _difference(index: int, node: NodeProto, full: NDArray[Any], half: NDArray[Any], in_half: bool) -> NodeDifference:
    finite = bool(np.isfinite(half).all())
    largest = float(np.abs(full.astype(np.float64) - half).max()) if finite else np.inf
    return NodeDifference(index, node.name, node.op_type, float(full.min()), float(full.max()), largest, in_half)


def report(found: Sequence[NodeDifference], precision: str, tolerance: float, count: int = 5) -> list[str]:
    """What to print: the first nodes that leave, or the one that comes nearest to it."""
    leaving = beyond(found, tolerance)
    header = f"{precision}: {len(leaving)} of {len(found)} results leave the float32 graph by more than {tolerance:g} of their largest magnitude"
    shown = leaving[:count] or [max(found, key=lambda node: node.relative)]
    label = "first" if leaving else "nearest"
    return [header, *(f"  {label}: {_line(node)}" for node in shown)]


def _line(node: NodeDifference) -> str:
    what = "is not finite" if np.isinf(node.difference) else f"differs by {node.difference:.3g} ({node.relative:.2g})"
    return (
        f"node {node.index} {node.name} ({node.operator}) {what}; float32 range {node.lowest:.4g} to {node.highest:.4g}"
    )
