"""The one-pass network as an ONNX graph."""

import copy
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from lesionrt.export.weights import share_weights, store_in_half
from lesionrt.runtime.errors import ParityError
from lesionrt.train.model import WINDOW, Network, SqueezeAttention
from lesionrt.train.weights import norms

OPSETS = {"fp32": 18, "fp16": 18, "bf16": 22}  # bfloat16 convolutions came with opset 22
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# It warns of torchvision, which nobody asked for.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
EXAMPLE = (5, 2, 3)  # stack, and height and width in multiples; with one output slice the stack would be fixed

Shape = tuple[int | None, ...]  # None where it is dynamic


class _OnePass(nn.Module):
    """Float32 at both ends, whatever the network computes in."""

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, slices: Tensor) -> Tensor:
        return self.network.forward_stack(slices.to(self.dtype))


class _InFloat32(nn.Module):
    """A part of a half-precision network that computes in float32."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part, self.dtype = part, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x.float()).to(self.dtype)  # type: ignore[no-any-return]


def _product_in_float32(y: Tensor, r: Tensor) -> Tensor:
    """A product beyond the format's largest number becomes that number, not infinite."""
    product = y.float() * r.float() + y.float()  # never negative: y and r come out of a ReLU
    return product.clamp(max=torch.finfo(y.dtype).max).to(y.dtype)


def parts_in_float32(network: Network, precision: str, large_products: Sequence[str] = ()) -> list[str]:
    """Names of what a graph of this precision computes in float32 all the same.

    Parameters
    ----------
    network
        The network.
    precision
        Of the graph.
    large_products
        Squeeze-and-attention blocks whose product comes near float16's largest number.
    """
    if precision == "fp16":
        return list(large_products)
    if precision == "bf16":
        # TensorRT for RTX 1.7 knows no transposed convolution in bfloat16.
        return [f"transition_up.{index}.conv" for index in range(len(network.transition_up))]
    return []


def export_graph(
    network: Network,
    precision: str,
    path: Path,
    metadata: dict[str, str],
    in_float32: Sequence[str] = (),
    weights: Path | None = None,
) -> None:
    """Write the graph ``slices`` (n, 1, H, W) to ``lesion`` (n - 2, H, W), all three dynamic.

    Parameters
    ----------
    network
        In evaluation mode.
    precision
        ``fp32``, ``fp16`` or ``bf16``: in what it computes.
    path
        The file to write.
    metadata
        Texts to store in the graph.
    in_float32
        Parts that compute in float32 whatever the precision, as :func:`parts_in_float32` names them.
    weights
        A float32 graph of this function in the same folder, from which the new one takes its weights.

    Raises
    ------
    ParityError
        If an input or output of the graph is not what it should be.
    """
    multiple = network.config.size_multiple
    whole = with_one_input_channel(network)
    graph = _OnePass(_cast(whole, DTYPES[precision], in_float32), DTYPES[precision]).eval()
    stack, height, width = EXAMPLE
    example = torch.zeros(stack, 1, height * multiple, width * multiple)
    shapes = {0: Dim("n", min=WINDOW), 2: multiple * Dim("h", min=1), 3: multiple * Dim("w", min=1)}
    model = trace(graph, (example,), (shapes,), ["slices"], ["lesion"], OPSETS[precision])
    store_in_half(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    check_signature(model, {"slices": (None, 1, None, None)}, {"lesion": (None, None, None)})
    if weights is not None:
        share_weights(model, weights)
    onnx.save(model, path)


def trace(
    module: nn.Module,
    example: tuple[Any, ...],
    dynamic: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    opset: int,
) -> onnx.ModelProto:
    """A module in evaluation mode as an ONNX graph.

    Parameters
    ----------
    module, example
        What to call with which tensors, or lists of tensors.
    dynamic
        The dynamic dimensions of each, nested as the example is.
    inputs, outputs
        Their names, in order.
    opset
        Of the graph.
    """
    # The exporter loads these too: seconds that an error before it need not take.
    from onnxscript.optimizer import fold_constants_ir, remove_unused_nodes
    from torch._dynamo import config

    # The exporter keeps what it knows of each operator's shapes; for dynamic ones keeping costs more than it saves.
    uncached = config.patch(fake_tensor_cache_enabled=False)
    with warnings.catch_warnings(), uncached:
        warnings.simplefilter("ignore")  # of the exporter's own making
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
            verbose=False,
            optimize=False,
        )
        assert program is not None
        # Constants alone are folded. A norm stays beside its convolution, whose weights so remain the half-precision
        # numbers that training rounded them to; runtimes join the two at load.
        fold_constants_ir(program.model)
        remove_unused_nodes(program.model)
    model = program.model_proto
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ):
        del part.metadata_props[:]  # the exporter's traces, with paths of this machine
    return model


def with_one_input_channel(network: Network) -> Network:
    """The same network with the sum over the repeated grey channels already in its first kernel."""
    folded = copy.deepcopy(network)
    first = folded.first  # the copy's: its bias will be cast with the rest
    folded.first = nn.Conv2d(1, first.out_channels, 3, padding=1)
    folded.first.weight.data = first.weight.data.sum(1, keepdim=True)
    folded.first.bias = first.bias
    return folded


def _cast(network: Network, dtype: torch.dtype, in_float32: Sequence[str]) -> Network:
    """The network in another precision, but for some of its parts; changed in place."""
    for norm in norms(network):
        _fit_variance(norm, torch.finfo(dtype).max)
    kept = {name: copy.deepcopy(network.get_submodule(name)) for name in in_float32}
    network.to(dtype)
    for name, part in kept.items():
        if isinstance(part, SqueezeAttention):
            network.get_submodule(name).product = _product_in_float32  # type: ignore[assignment]
        else:
            network.set_submodule(name, _InFloat32(part, dtype))
    return network


def _fit_variance(norm: nn.modules.batchnorm._BatchNorm, largest: float) -> None:
    """The same norm with no variance beyond the format's largest number, in which it would become infinite.

    Maps of some hundred have variances beyond float16's. g / sqrt(v + e) is (g / 2^k) / sqrt((v + e) / 4^k).
    """
    variance = norm.running_var
    assert variance is not None
    power = ((variance + norm.eps) / largest).log2().div(2).ceil().clamp(min=0)
    norm.running_var = torch.where(power > 0, (variance + norm.eps) / 4**power - norm.eps, variance)
    norm.weight.data = norm.weight.data / 2**power


def check_signature(model: onnx.ModelProto, inputs: dict[str, Shape], outputs: dict[str, Shape]) -> None:
    """Names, types and shapes of inputs and outputs; all findings in one error.

    Raises
    ------
    ParityError
        If one of them is not float32 or not of the expected name and shape.
    """
    findings = []
    for values, expected in ((model.graph.input, inputs), (model.graph.output, outputs)):
        names = [value.name for value in values]
        if names != [*expected]:
            findings.append(f"names are {names}, expected {[*expected]}")
            continue
        for value in values:
            findings += _tensor_findings(value, expected[value.name])
    if findings:
        raise ParityError("the exported graph is not what it should be:\n  " + "\n  ".join(findings))


def _tensor_findings(value: onnx.ValueInfoProto, expected: Shape) -> list[str]:
    name, tensor = value.name, value.type.tensor_type
    dims = tensor.shape.dim
    findings = []
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        findings.append(f"{name} is {onnx.TensorProto.DataType.Name(tensor.elem_type)}, expected FLOAT")
    if len(dims) != len(expected):
        return [*findings, f"{name} has {len(dims)} dimensions, expected {len(expected)}"]
    for axis, (dim, size) in enumerate(zip(dims, expected, strict=True)):
        if size is None and not dim.dim_param:
            findings.append(f"{name}: dimension {axis} is fixed to {dim.dim_value}")
        elif size is not None and dim.dim_value != size:
            findings.append(f"{name}: dimension {axis} is not {size}")
    return findings


def graph_metadata(network: Network, checkpoint_sha256: str, precision: str) -> dict[str, str]:
    """What stands in the graph itself."""
    return {
        "lesionrt.network": json.dumps(network.config.as_dict(), sort_keys=True),
        "lesionrt.checkpoint_sha256": checkpoint_sha256,
        "lesionrt.precision": precision,
    }
