"""A bundle's ONNX graph as TensorRT reads it, and in which precision its layers compute."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lesionrt.runtime.engines.library import Log, start
from lesionrt.runtime.errors import BundleError, UnavailableError

DATA_TYPES = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
_FLOATING = ("FLOAT", "HALF", "BF16")
# They move numbers and compute none.
_MOVING = frozenset(
    ("CAST", "CONCATENATION", "CONSTANT", "GATHER", "IDENTITY", "RESIZE", "SHAPE", "SHUFFLE", "SLICE", "SQUEEZE")
) | {"UNSQUEEZE"}
# Both ends are float32, and so are parts that would overflow; all else is in the graph's precision.
LEAST_SHARE = 0.8


@dataclass(frozen=True)
class Layers:
    """How many layers compute, and in what.

    Attributes
    ----------
    total
        All layers, also those that only move data or work out shapes.
    computing
        Those that compute with real numbers.
    in_precision
        Those of them that do so in the precision that was asked for; for tf32 those in float32, which the GPU may
        multiply as TF32. Which of them it does is the library's choice, and is not known from the graph.
    types
        Their number by TensorRT's name of the data type.
    """

    total: int
    computing: int
    in_precision: int
    types: dict[str, int]

    @property
    def share(self) -> float:
        """Of the computing layers, those in the precision that was asked for."""
        return self.in_precision / self.computing if self.computing else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return {**asdict(self), "share": round(self.share, 4)}


class ParsedNetwork:
    """An ONNX graph in TensorRT's terms, with the objects that must outlive it.

    Parameters
    ----------
    trt
        The library's module.
    log
        Where it says what it does.
    graph
        The ONNX file.

    Raises
    ------
    UnavailableError
        If the library is the lean one, without a builder, or does not start here.
    BundleError
        If TensorRT cannot read the graph, or it is not one of ours; with the node's name.
    """

    def __init__(self, trt: Any, log: Log, graph: Path) -> None:
        if not hasattr(trt, "Builder"):
            raise UnavailableError(f"{trt.__name__} {trt.__version__} has no builder: install the full library")
        self.builder = start(trt, "Builder", log)
        # TensorRT 11 knows nothing else; 10 must be told that the graph's own types hold.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        self.network = self.builder.create_network(0 if flag is None else 1 << int(flag))
        if self.network is None:
            raise UnavailableError(f"{trt.__name__} {trt.__version__} makes no network: {log.text_of_errors()}")
        self._parser = trt.OnnxParser(self.network, log.logger)  # holds the weights
        if not self._parser.parse(graph.read_bytes(), str(graph)):
            errors = [_parser_error(self._parser.get_error(index)) for index in range(self._parser.num_errors)]
            raise BundleError(
                f"{graph}: {trt.__name__} {trt.__version__} cannot read it; export the bundle again\n  "
                + "\n  ".join(errors)
            )
        self._check_ends(graph)

    def _check_ends(self, graph: Path) -> None:
        ends = [
            [(tensor(index).name, tensor(index).dtype.name, tuple(tensor(index).shape)) for index in range(count)]
            for tensor, count in (
                (self.network.get_input, self.network.num_inputs),
                (self.network.get_output, self.network.num_outputs),
            )
        ]
        expected = [[("slices", "FLOAT", (-1, 1, -1, -1))], [("lesion", "FLOAT", (-1, -1, -1))]]
        if ends != expected:
            raise BundleError(
                f"{graph}: its inputs and outputs are {ends}; expected {expected}: it is not one of `lesionrt export`"
            )

    def layers(self, precision: str) -> Layers:
        """Count the layers by the type in which they compute."""
        types: Counter[str] = Counter()
        for index in range(self.network.num_layers):
            layer = self.network.get_layer(index)
            if layer.type.name not in _MOVING and layer.num_outputs:
                types[layer.get_output(0).dtype.name] += 1
        computing = {name: types[name] for name in _FLOATING if types[name]}
        wanted = computing.get(DATA_TYPES[precision], 0)
        return Layers(self.network.num_layers, sum(computing.values()), wanted, computing)


def in_words(precision: str, share: float) -> str:
    """The share of computing layers in a precision, for people."""
    what = "float32, which TF32 may multiply" if precision == "tf32" else precision
    return f"{share:.1%} of its computing layers in {what}"


def check_precision(layers: Layers, precision: str, graph: Path) -> None:
    """Refuse a graph that computes in another precision than it says.

    Raises
    ------
    BundleError
        With the counts.
    """
    if layers.share < LEAST_SHARE:
        raise BundleError(
            f"{graph}: only {layers.in_precision} of {layers.computing} computing layers are {precision} "
            f"({', '.join(f'{name} {count}' for name, count in layers.types.items())}), expected {LEAST_SHARE:.0%} or more: "
            "an engine of it would not be what it says; export the bundle again"
        )


def _parser_error(error: Any) -> str:
    where = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_name() else "the file"
    return f"{where}: {error.desc()} [{error.code().name}]"
