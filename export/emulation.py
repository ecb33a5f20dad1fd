"""bfloat16 on a CPU whose library has none: float32 arithmetic, rounded to bfloat16 after every node."""

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lesionrt.export.weights import read_graph
from lesionrt.runtime.backends import Backend
from lesionrt.runtime.backends.onnx_cpu import device
from lesionrt.runtime.backends.onnx_session import OnnxSession, load
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.processor import cores

EMULATED_PRECISION = "bf16"
# What they give is among what they took: rounding it again changes nothing.
_EXACT = frozenset(("Cast", "Concat", "Identity", "MaxPool", "Relu", "Resize", "Slice", "Split", "Squeeze"))


def open_emulated(bundle: Bundle) -> Backend:
    """A bundle's bfloat16 graph on the CPU.

    Raises
    ------
    BundleError
        If the graph is damaged or missing.
    UnavailableError
        If ONNX Runtime is missing.
    """
    return EmulatedSession(read_graph(bundle.graph(EMULATED_PRECISION)))


def emulated(model: ModelProto) -> ModelProto:
    """The same graph in float32, with every result that was bfloat16 rounded to it.

    Parameters
    ----------
    model
        A graph with bfloat16 in it, types inferred; it is not changed.
    """
    result = ModelProto()
    result.CopyFrom(model)
    half = bfloat16_names(model)
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(widened(tensor), tensor.name))
    for value in (*result.graph.value_info, *result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes: list[NodeProto] = []
    for node in result.graph.node:
        rounded = [name for name in node.output if name in half and (node.op_type not in _EXACT or _narrows(node))]
        if node.op_type == "Cast" and _narrows(node):
            node.attribute[0].i = TensorProto.FLOAT
        for index, name in enumerate(node.output):
            if name in rounded:
                node.output[index] = f"{name}.float32"
        nodes.append(node)
        for name in rounded:
            nodes.append(helper.make_node("Cast", [f"{name}.float32"], [f"{name}.bfloat16"], to=TensorProto.BFLOAT16))
            nodes.append(helper.make_node("Cast", [f"{name}.bfloat16"], [name], to=TensorProto.FLOAT))
    copied = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copied)
    return result


def bfloat16_names(model: ModelProto) -> set[str]:
    """Names of the values in a graph that are bfloat16."""
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.BFLOAT16}


def widened(tensor: TensorProto) -> NDArray[np.float32]:
    """A floating-point constant as float32."""
    return numpy_helper.to_array(tensor).astype(np.float32)


def _narrows(node: NodeProto) -> bool:
    return node.op_type == "Cast" and any(attribute.i == TensorProto.BFLOAT16 for attribute in node.attribute)


class EmulatedSession(OnnxSession):
    """An emulated bfloat16 graph in ONNX Runtime; a backend like the others."""

    def __init__(self, model: ModelProto) -> None:
        ort = load()
        self.name, self.device, self.precision = "cpu", device(), EMULATED_PRECISION
        self.library = f"onnxruntime {ort.__version__}"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.enable_mem_pattern = False
        options.intra_op_num_threads = cores()
        # Optimisation would take a cast and its opposite for nothing, and there would be no rounding.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        graph = emulated(model).SerializeToString()
        self._session = ort  # until there is one: what fails is told as while it computes
        with self.failures():
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
