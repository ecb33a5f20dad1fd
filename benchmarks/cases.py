"""What is measured side by side: each case opens as a backend, or says why it cannot run here."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from lesionrt.runtime.backends import NAMES, Backend, left_out, open_backend, precisions, probe
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.backends.onnx_cuda import device
from lesionrt.runtime.backends.onnx_session import OnnxSession, load
from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.errors import UnavailableError, UsageError

BASELINE = "authors"
PROVIDER = "TensorrtExecutionProvider"
NO_BFLOAT16 = "ONNX Runtime has no bfloat16 convolution"
# What a user might look for in vain, by backend and precision.
NOT_OFFERED = {
    ("cuda", "bf16"): NO_BFLOAT16,
    ("openvino", "bf16"): "this CPU has no bfloat16",
    (
        "openvino",
        "int8",
    ): "the default model's masks do not hold Dice 0.99 against float32; `python -m lesionrt.benchmarks.int8` tries it",
}


@dataclass(frozen=True)
class Case:
    """One way to compute a volume.

    Attributes
    ----------
    name
        As it is chosen on the command line.
    title
        For people.
    precision
        In which it computes.
    kind
        What opens it: ``authors``, ``window``, ``torch``, ``backend`` or ``provider``.
    backend
        The runtime backend's name, where it is one.
    compiled
        Whether PyTorch compiles it.
    skip
        Why it cannot run here; None if it can.
    """

    name: str
    title: str
    precision: str
    kind: str
    backend: str = ""
    compiled: bool = False
    skip: str | None = None

    @property
    def window_by_window(self) -> bool:
        """Computes every slice several times; too slow for whole volumes."""
        return self.kind in ("authors", "window")

    @property
    def in_pytorch(self) -> bool:
        """Computed by PyTorch itself: in float32, what the others are compared with."""
        return self.kind in ("authors", "torch")


def find_cases(bundle: Bundle, checkpoint: Path | None, quick: bool, lacking: str | None = None) -> list[Case]:
    """All cases for a bundle and its checkpoint; where there is none, `lacking` says why."""
    return [*_of_checkpoint(checkpoint, quick, lacking), *_of_backends(bundle), *_of_provider(bundle)]


def select(cases: list[Case], names: list[str]) -> list[Case]:
    """The named cases, in their order; all without names.

    Raises
    ------
    UsageError
        If there is no such case.
    """
    unknown = [name for name in names if name not in {case.name for case in cases}]
    if unknown:
        raise UsageError(f"no case {', '.join(unknown)}; expected some of {', '.join(case.name for case in cases)}")
    return [case for case in cases if not names or case.name in names]


def _of_checkpoint(checkpoint: Path | None, quick: bool, lacking: str | None) -> Iterator[Case]:
    found = [
        Case(BASELINE, "authors' schedule, PyTorch", "fp32", "authors"),
        Case("window-onnx", "window network exported plainly, ONNX Runtime", "fp32", "window"),
        Case("torch-fp32", "one pass, PyTorch", "fp32", "torch"),
        Case("torch-bf16", "one pass, PyTorch autocast", "bf16", "torch"),
        Case("torch-compile-fp32", "one pass, torch.compile", "fp32", "torch", compiled=True),
        Case("torch-compile-bf16", "one pass, torch.compile, autocast", "bf16", "torch", compiled=True),
    ]
    if checkpoint is None:
        lacking = lacking or "needs the checkpoint: give --reference checkpoint.pt"
    elif find_spec("torch") is None:
        lacking = "PyTorch is not installed. Run: pip install 'lesionrt[export]'"
    for case in found:
        skip = lacking
        if skip is None and case.compiled and quick:
            skip = "not with --quick: compiling takes minutes"
        if skip is None and case.kind == "window" and find_spec("onnxscript") is None:
            skip = "exporting it needs onnx and onnxscript. Run: pip install 'lesionrt[export]'"
        if skip is None and case.kind == "window":
            skip = probe("cpu").problem
        yield replace(case, skip=skip)


def _of_backends(bundle: Bundle) -> Iterator[Case]:
    for name in NAMES:
        found = probe(name, bundle)
        if found.problem is not None:
            yield Case(name, f"one pass, backend {name}", "", "backend", name, skip=f"{found.problem}. {found.remedy}")
            continue
        for precision in precisions(name, bundle):
            skip = None
            if (name, precision) == ("cpu", "bf16"):
                skip = "ONNX Runtime's CPU has no bfloat16; `lesionrt verify` emulates it"
            title = f"one pass, backend {name} ({found.library})"
            yield Case(f"{name}-{precision}", title, precision, "backend", name, skip=skip)
        for precision, reason in left_out(name, bundle).items():
            yield Case(f"{name}-{precision}", f"one pass, backend {name}", precision, "backend", name, skip=reason)
        for (backend, precision), reason in NOT_OFFERED.items():
            if backend == name and precision not in precisions(name, bundle):
                yield Case(f"{name}-{precision}", f"one pass, backend {name}", precision, "backend", name, skip=reason)


def _of_provider(bundle: Bundle) -> Iterator[Case]:
    """ONNX Runtime's own way into TensorRT; no backend of this toolkit."""
    title = "one pass, ONNX Runtime's TensorRT provider"
    lacking = None
    if not gpus():
        lacking = "no NVIDIA GPU is seen"
    elif probe("cpu").problem is not None:
        lacking = probe("cpu").problem
    elif PROVIDER not in load().get_available_providers():
        lacking = "this ONNX Runtime is built without TensorRT"
    if lacking is not None:
        yield Case("onnx-tensorrt", title, "", "provider", skip=lacking)
        return
    for precision in bundle.precisions:
        skip = NO_BFLOAT16 if precision == "bf16" else None
        yield Case(f"onnx-tensorrt-{precision}", title, precision, "provider", skip=skip)


def open_case(case: Case, bundle: Bundle, checkpoint: Path | None, window_graph: Path, threads: int) -> Backend:
    """Load what a case computes with.

    Parameters
    ----------
    case
        One that can run here.
    bundle, checkpoint
        The model.
    window_graph
        The plainly exported window network, for its case.
    threads
        On the CPU.

    Raises
    ------
    LesionrtError
        If something of it is missing or damaged.
    """
    if case.kind == "backend":
        return open_backend(case.backend, bundle, case.precision, threads)
    if case.kind == "provider":
        load().preload_dlls()
        graph = bundle.graph(case.precision)
        return OnnxSession(case.name, device(), graph, case.precision, (PROVIDER, {}), threads)
    if case.kind == "window":
        from lesionrt.benchmarks.window_graph import WindowGraph

        return WindowGraph(window_graph, threads)
    if checkpoint is None:
        raise UnavailableError(f"{case.name} needs the checkpoint")
    import torch

    from lesionrt.benchmarks.schedules import AuthorsSchedule, OnePass
    from lesionrt.train.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    network = load_checkpoint(checkpoint).network.to("cuda" if torch.cuda.is_available() else "cpu")
    return AuthorsSchedule(network) if case.kind == "authors" else OnePass(network, case.precision, case.compiled)
