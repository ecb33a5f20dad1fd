"""Post-training int8 for CPUs, tried: how fast it is and what it does to the masks.

    python -m lesionrt.benchmarks.int8 BUNDLE FLAIR [FLAIR ...] -o int8.json [--slices 24] [--search]

Needs `pip install nncf` beside the package with its extra `openvino`. NNCF quantises the graph that OpenVINO runs, calibrated on
slices of the volumes; `--search` lets it measure which layers cost the masks most and leave those as they were, in bfloat16 where
the processor is faster in it: half an hour on 2 cores for one ranking of the full network's layers, and it may rank them several
times. It is a trial: what does not hold :data:`LEAST_DICE` against float32 is not offered.
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lesionrt.benchmarks.entry import run
from lesionrt.benchmarks.interleaved import interleaved, spread
from lesionrt.benchmarks.machine import describe
from lesionrt.runtime.backends.openvino_cpu import BEFORE, OpenvinoBackend, load
from lesionrt.runtime.bundle import STREAM_GRAPHS, Bundle, load_bundle
from lesionrt.runtime.cli.options import check_new
from lesionrt.runtime.errors import BundleError, UnavailableError, UsageError
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.prepare import HALO, prepare_volume
from lesionrt.runtime.processor import fast_bfloat16
from lesionrt.runtime.volume import nonzero_brain, read_flair

LEAST_DICE = 0.99  # of int8 masks against float32 masks
PIECE = 4  # slices of a calibration sample
Array = NDArray[np.float32]
Feed = dict[str, Array]


def dice(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    """Of two masks; 1 where both are empty.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    total = int(found.sum()) + int(expected.sum())
    return 2 * int((found & expected).sum()) / total if total else 1.0


def slab(bundle: Bundle, flair: Path, count: int) -> Array:
    """Slices (n + 2, 1, H, W) from the middle of a volume's brain, or all of them."""
    volume = read_flair(flair)
    slices = prepare_volume(volume, nonzero_brain(volume), bundle.preparation, bundle.size_multiple).slices
    first = max(0, (len(slices) - count) // 2 - HALO)
    return slices[first : first + count + 2 * HALO]


def samples(model: Any, stacks: list[Array]) -> list[list[Feed]]:
    """What the graph is fed with of each stack, piece after piece, its state included."""
    openvino = load()
    request = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    names = [value.any_name for value in model.inputs[1:]]
    channels = [value.partial_shape[1].get_length() for value in model.inputs[1:]]
    found: list[list[Feed]] = []
    for stack in stacks:
        found.append([])
        scales = [int(name.rpartition("_")[2]) for name in names]
        height, width = stack.shape[2:]
        state = {
            name: np.zeros((BEFORE, count, height // scale, width // scale), np.float32)
            for name, count, scale in zip(names, channels, scales, strict=True)
        }
        for first in range(0, len(stack) - PIECE + 1, PIECE):
            feed = {"slices": stack[first : first + PIECE], **state}
            given = request.infer(feed)
            if first:  # the first state is empty, as in no other piece
                found[-1].append(feed)
            following = [value.any_name for value in model.outputs[1:]]
            state = {name: given[value].copy() for name, value in zip(names, following, strict=True)}
    return found


class Agreement:
    """Least Dice of a graph's masks with float32's over the volumes whose samples NNCF's search asks for: all, some or one."""

    def __init__(self, model: Any, volumes: list[list[Feed]], threshold: float) -> None:
        openvino = load()
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._threshold = threshold
        self._volumes = volumes  # kept, so that no other sample can be taken for one of them
        self._of = {id(feed): number for number, feeds in enumerate(volumes) for feed in feeds}
        self._expected = {id(feed): compiled(feed)["lesion"] > threshold for feeds in volumes for feed in feeds}

    def __call__(self, compiled: Any, feeds: Iterable[Feed]) -> tuple[float, None]:
        """Dice, and nothing for each sample."""
        counts = np.zeros((len(self._volumes), 2), int)  # voxels in both masks, in one and the other
        asked = set()
        for feed in feeds:
            found, expected = compiled(feed)["lesion"] > self._threshold, self._expected[id(feed)]
            asked.add(self._of[id(feed)])
            counts[self._of[id(feed)]] += (found & expected).sum(), found.sum() + expected.sum()
        return min(2 * both / total if total else 1.0 for both, total in counts[[*asked]].tolist()), None


def quantised(model: Any, volumes: list[list[Feed]], threshold: float, search: bool) -> Any:
    """The graph in int8; with `search` but for the layers that cost the masks most."""
    import nncf

    feeds = [feed for one in volumes for feed in one]
    data = nncf.Dataset(feeds)
    if not search:
        return nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(feeds))
    return nncf.quantize_with_accuracy_control(
        model,
        data,
        nncf.Dataset(feeds),
        Agreement(model, volumes, threshold),
        max_drop=1 - LEAST_DICE,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(feeds),
    )


def seconds_per_slice(backend: OpenvinoBackend, stack: Array) -> float:
    """Of the output slices of a stack, once."""
    began = time.perf_counter()
    backend.infer_stack(stack, None, None)
    return (time.perf_counter() - began) / (len(stack) - 2 * HALO)


def command(
    model: Annotated[Path, typer.Argument(help="A bundle with a float32 graph.")],
    flair: Annotated[list[Path], typer.Argument(help="Real volumes.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.")],
    slices: Annotated[int, typer.Option(help="Output slices of each volume, from its middle.", min=2 * PIECE)] = 24,
    repeats: Annotated[int, typer.Option(help="Timed rounds.", min=1)] = 3,
    search: Annotated[bool, typer.Option("--search", help="Leave sensitive layers as they were; takes long.")] = False,
) -> None:
    """Quantise, compare the masks with float32's, and time both."""
    check_new(out, force=True)  # before minutes of calibration
    if find_spec("nncf") is None or find_spec("openvino") is None:
        raise UnavailableError("NNCF or OpenVINO is not installed. Run: pip install nncf openvino")
    openvino = load()
    if len({path.parts[-3:] for path in flair}) < len(flair):
        raise UsageError(
            "two volumes have the same name in folders of the same names; their figures could not be told apart"
        )
    bundle = load_bundle(model)
    graph = bundle.stream_graph("fp32", STREAM_GRAPHS)
    if graph is None:
        raise BundleError(f"{model}: has no fp32 graph that keeps its state; export it again with --precision fp32")
    stacks = [slab(bundle, path, slices) for path in flair]
    network = openvino.Core().read_model(graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.xml"
        began = time.perf_counter()
        openvino.save_model(quantised(network, samples(network, stacks), bundle.threshold, search), path)
        took = time.perf_counter() - began
        rest = "bf16" if fast_bfloat16() else "fp32"  # in which what is not quantised computes
        ways = {"fp32": (graph, "fp32"), rest: (graph, rest), "int8": (path, rest)}
        with contextlib.ExitStack() as opened:
            backends = {
                name: opened.enter_context(OpenvinoBackend("openvino", file, precision, None))
                for name, (file, precision) in ways.items()
            }
            # Each is then compiled for the size of the last stack.
            results = {name: [one.infer_stack(stack, None, None) for stack in stacks] for name, one in backends.items()}
            turns = {name: partial(seconds_per_slice, one, stacks[-1]) for name, one in backends.items()}
            seconds = {name: spread(values) for name, values in interleaved(turns, repeats).items()}
    scores = {
        "/".join(name.parts[-3:]): round(dice(one > bundle.threshold, other > bundle.threshold), 4)
        for name, one, other in zip(flair, results["int8"], results["fp32"], strict=True)
    }
    report = {
        "model": bundle.name,
        "nncf": version("nncf"),
        "search": search,
        "slices_of_each_volume": slices,
        "dice_against_fp32": scores,
        "least_dice_to_be_offered": LEAST_DICE,
        "holds": min(scores.values()) >= LEAST_DICE,
        "s_per_slice": {name: asdict(value) for name, value in seconds.items()},
        "not_quantised_in": rest,
        "quantising_s": round(took),
        "machine": describe(),
    }
    write_atomically({out: (json.dumps(report, indent=2) + "\n").encode()})
    print(json.dumps({key: value for key, value in report.items() if key != "machine"}, indent=2))


if __name__ == "__main__":
    run(command)
