"""What the benchmark computes from its measurements, against numbers worked out by hand."""

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lesionrt.benchmarks import machine
from lesionrt.benchmarks.fit import power_law
from lesionrt.benchmarks.flops import model_work, slice_work
from lesionrt.benchmarks.interleaved import interleaved, spread
from lesionrt.benchmarks.rates import CPU_COMPUTED_IN
from lesionrt.benchmarks.roofline import Work, roofline
from lesionrt.benchmarks.rows import relate
from lesionrt.benchmarks.transfer import transfer_seconds
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.train.checkpoint import load_checkpoint
from lesionrt.train.model import Network


def test_the_median_is_between_the_ends() -> None:
    found = spread([0.4, 0.1, 0.3])
    assert (found.median, found.least, found.most, found.count) == (0.3, 0.1, 0.4, 3)
    assert spread([0.1, 0.4]).median == 0.25


def test_cases_take_turns_and_one_that_fails_is_not_asked_again() -> None:
    asked: list[str] = []

    def case(name: str, values: list[float | None]) -> float | None:
        asked.append(name)
        return values.pop(0)

    one, other, bad = [1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [5.0, None]
    found = interleaved(
        {"a": lambda: case("a", one), "b": lambda: case("b", other), "bad": lambda: case("bad", bad)},  # type: ignore[arg-type]
        3,
    )
    assert found == {"a": [1, 2, 3], "b": [10, 20, 30]}
    assert asked == ["a", "b", "bad", "a", "b", "bad", "a", "b"]


def test_no_round_begins_that_would_end_too_late() -> None:
    found = interleaved({"a": lambda: time.sleep(0.02) or 1.0}, 5, deadline=time.monotonic())
    assert found == {"a": [1.0]}


def test_the_exponent_of_exact_numbers_is_exact() -> None:
    law = power_law([16, 32, 64, 128], [0.5 * n**1.5 for n in (16, 32, 64, 128)])
    assert law is not None
    assert law.exponent == pytest.approx(1.5)
    assert law.factor == pytest.approx(0.5)
    assert law.r2 == pytest.approx(1)
    assert law.at(100) == pytest.approx(500)


def test_a_fit_needs_two_points() -> None:
    assert power_law([4, 4], [1, 2]) is None


def graph(op: str, weight: list[int], result: list[int], **attributes: object) -> onnx.ModelProto:
    made = onnx.helper
    node = made.make_node(op, ["x", "w"], ["y"], **attributes)
    x = made.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, "h", "v"])
    y = made.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4)
    values = made.make_tensor("w", onnx.TensorProto.FLOAT, weight, [0.0] * torch.Size(weight).numel())
    return made.make_model(made.make_graph([node], "one", [x], [y], [values]))


def test_one_convolution_is_counted_as_by_hand() -> None:
    # 2 slices of 4x6, 3 to 5 channels, 3x3 kernel: every one of 2*5*4*6 results takes 3*9 multiplications and additions.
    found = model_work(graph("Conv", [5, 3, 3, 3], [], pads=[1, 1, 1, 1]), {"x": (2, 3, 4, 6)})
    assert found == (Work(2 * (2 * 5 * 4 * 6) * 27, 2 * 3 * 24 + 2 * 5 * 24), 5 * 27)


def test_one_transposed_convolution_is_counted_as_by_hand() -> None:
    # Every one of 1*3*2*2 inputs goes to 4 channels of a 3x3 window.
    found = model_work(graph("ConvTranspose", [3, 4, 3, 3], [], strides=[2, 2]), {"x": (1, 3, 2, 2)})
    assert found == (Work(2 * (3 * 4) * 36, 3 * 4 + 4 * 25), 3 * 36)


def test_a_bundles_graph_costs_what_pytorch_counts(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    encode, decode, weights = slice_work(tiny_bundle / "model_fp32.onnx", 16, 24)
    network = load_checkpoint(tiny_checkpoint).network
    kernels = sum(value.numel() for value in network.parameters() if value.ndim == 4)
    kernels -= network.first.weight[:, 1:].numel()  # grey enters once
    assert (weights.flops, weights.elements) == (0, kernels)
    for slices in (3, 7):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.stack_logits(torch.zeros(slices, 1, 16, 24))
        assert encode.flops * slices + decode.flops * (slices - 2) == counter.get_total_flops()


def test_the_full_network_costs_32_gflop_to_encode_and_10_to_decode_a_slice() -> None:
    with torch.device("meta"):
        network, counts = Network().eval(), []
        for slices in (3, 4):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network.stack_logits(torch.zeros(slices, 1, 160, 160))
            counts.append(counter.get_total_flops() / 1e9)
    encode = (counts[0] - (counts[1] - counts[0])) / 2
    assert encode == pytest.approx(32.0, abs=0.1)
    assert counts[1] - counts[0] - encode == pytest.approx(9.8, abs=0.1)


def test_the_limit_is_the_slower_of_arithmetic_and_memory() -> None:
    rates = {"flops_per_s": {"fp32": 1e9, "bf16": 4e9}, "bytes_per_s": 1e9}
    work = Work(2e9, 0.1e9)  # 2 s in float32 against 0.4 s of bytes
    found = roofline(work, "fp32", 4.0, rates)
    assert found is not None
    assert (found["bound_by"], found["share"], found["achieved_gflops"], found["possible_gflops"]) == (
        *("arithmetic", 0.5),
        *(0.5, 1.0),
    )
    slow = roofline(Work(1e9, 1e9), "bf16", 4.0, rates)  # 0.25 s against 2 s
    assert slow is not None
    assert (slow["bound_by"], slow["share"]) == ("memory", 0.5)
    assert roofline(work, "int8", 1.0, rates) is None


def test_half_precision_on_a_cpu_is_held_to_the_rate_in_which_it_is_computed() -> None:
    rates = {"flops_per_s": {"fp32": 1e9}, "bytes_per_s": 1e9, "computed_in": CPU_COMPUTED_IN}
    work = Work(2e9, 0.1e9)
    half = roofline(work, "fp16", 4.0, rates)
    assert half is not None
    assert half == roofline(work, "fp32", 4.0, rates)


def test_it_starts_without_torch_and_onnx() -> None:
    program = "import sys; sys.modules['onnx'] = sys.modules['torch'] = None; import lesionrt.benchmarks.bench_page, lesionrt.benchmarks.bench"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_wrong_case_is_not_what_the_others_are_compared_with() -> None:
    common = {"skipped": None, "volume": None, "slab_beside_volumes": None}
    wrong = {"name": "window-onnx", "s_per_slice": 1.0, "wrong": True, **common}
    right = {"name": "cpu-fp32", "s_per_slice": 2.0, "wrong": False, **common}
    assert relate([wrong, right], slices=10) == "cpu-fp32"
    assert (wrong["times_faster"], right["times_faster"], right["volume_s"]) == (2.0, 1.0, 20.0)
    assert relate([wrong], slices=10) == "window-onnx"


def test_there_is_no_transfer_to_time_without_a_gpu() -> None:
    if gpus():
        pytest.skip("an NVIDIA GPU is seen")
    assert transfer_seconds(np.zeros((4, 1, 8, 8), np.float32)) is None


@pytest.mark.gpu
def test_a_transfer_takes_time() -> None:
    if not gpus():
        pytest.skip("no NVIDIA GPU is seen")
    pytest.importorskip("pycuda", reason="pycuda is not installed: pip install 'lesionrt[cuda]'")
    assert 0 < transfer_seconds(np.zeros((4, 1, 8, 8), np.float32)) < 1  # type: ignore[operator]


def test_the_peak_on_a_gpu_is_the_most_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.chain([100.0, 400.0], itertools.repeat(200.0))
    passed = threading.Event()

    def used() -> float:
        value = next(readings)
        if value == 200:
            passed.set()
        return value

    monkeypatch.setattr(machine, "LOOK_S", 0.001)
    monkeypatch.setattr(machine, "device_memory_mb", used)
    with machine.device_peak() as peak:
        assert passed.wait(10)
    assert peak() == 400


def test_without_a_gpu_there_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "device_memory_mb", lambda: None)
    with machine.device_peak() as peak:
        pass
    assert peak() is None
