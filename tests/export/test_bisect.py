"""Where half precision leaves float32, on graphs whose fault is known."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lesionrt.export.bisect import TOLERANCES, beyond, bisect, report
from lesionrt.export.emulation import emulated
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.engines.identity import engines_of
from lesionrt.runtime.errors import BundleError
from lesionrt.train.checkpoint import save_checkpoint
from lesionrt.train.model import NetworkConfig
from lesionrt.train.untrained import untrained_checkpoint
from lesionrt.train.weights import round_weights

Run = Callable[..., Any]
SLICES = np.random.default_rng(0).normal(size=(4, 1, 8, 12)).astype(np.float32)


def replaced(bundle: Path, to: Path, graphs: dict[str, onnx.ModelProto]) -> Path:
    """A copy of a bundle with other graphs in it."""
    copy = Path(shutil.copytree(bundle, to / "bundle"))
    manifest = json.loads((copy / "manifest.json").read_text())
    for precision, model in graphs.items():
        name, data = f"model_{precision}.onnx", model.SerializeToString()
        (copy / name).write_bytes(data)
        manifest["files"][name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def scaled(model: onnx.ModelProto, weight: str, factor: float) -> None:
    """One constant of a graph times a factor."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), weight))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_good_graph_has_no_node_that_leaves(tiny_bundle: Path, precision: str) -> None:
    found = bisect(load_bundle(tiny_bundle), precision, SLICES)
    assert beyond(found, TOLERANCES[precision]) == []
    # They do round: something differs, and everything but the two ends and what is kept in float32 is half precision.
    assert max(node.relative for node in found) > 1e-4
    computing = [node for node in found if node.operator != "Constant"]
    assert sum(node.in_half for node in computing) > 0.9 * len(computing)
    assert [node.index for node in found] == sorted(node.index for node in found)


def test_a_node_with_a_wrong_weight_is_named_and_the_ones_after_it_are_not(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / "model_fp16.onnx")
    node = [node for node in model.graph.node if node.op_type == "Conv"][7]
    scaled(model, node.input[1], 1.5)
    bundle = replaced(tiny_bundle, tmp_path, {"fp16": model})
    leaving = beyond(bisect(load_bundle(bundle), "fp16", SLICES), TOLERANCES["fp16"])
    assert [found.name for found in leaving] == [node.name]
    assert leaving[0].relative > 0.1


def test_a_node_that_overflows_is_named_with_its_float32_range(tiny_bundle: Path, tmp_path: Path) -> None:
    graphs = {precision: onnx.load(tiny_bundle / f"model_{precision}.onnx") for precision in ("fp32", "fp16", "bf16")}
    for model in graphs.values():
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        scaled(model, conv.input[1], 3e4)
    bundle = load_bundle(replaced(tiny_bundle, tmp_path, graphs))
    first = beyond(bisect(bundle, "fp16", SLICES), TOLERANCES["fp16"])[0]
    assert (first.operator, first.difference) == ("Conv", np.inf)
    assert first.highest > 65504
    assert "is not finite; float32 range" in report([first], "fp16", 1e-2)[1]
    # bfloat16 has float32's range: there the same node is no trouble.
    assert first.index not in {node.index for node in bisect(bundle, "bf16", SLICES) if node.beyond(TOLERANCES["bf16"])}


def test_graphs_of_two_networks_are_not_compared(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / "model_fp16.onnx")
    next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Sigmoid"
    with pytest.raises(BundleError, match="not of one network"):
        bisect(load_bundle(replaced(tiny_bundle, tmp_path, {"fp16": model})), "fp16", SLICES)


def test_verify_bisect_prints_people_a_list_and_machines_json(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    # No backend is needed for it, so none is looked for: the bundle has no engine.
    assert "0 of" in run("verify", tiny_bundle, "--bisect", "--precision", "fp16").stdout
    for option in (("--backend", "rtx"), ("--max-difference", 0)):  # which it would not heed
        assert "--bisect-tolerance" in run("verify", tiny_bundle, "--bisect", *option, code=2).stderr
    model = onnx.load(tiny_bundle / "model_fp16.onnx")
    node = [node for node in model.graph.node if node.op_type == "Conv"][2]
    scaled(model, node.input[1], 2)
    bundle = replaced(tiny_bundle, tmp_path, {"fp16": model})
    shown = run("verify", bundle, "--bisect", "--precision", "fp16", code=5).stdout
    assert "first: node" in shown
    assert f"{node.name} (Conv) differs by" in shown
    found = json.loads(run("verify", bundle, "--bisect", "--json", code=5).stdout)["bisect"]
    assert [entry["name"] for entry in found["fp16"]["beyond"]] == [node.name]
    assert found["bf16"]["beyond"] == []
    assert "--bisect compares" in run("verify", bundle, "--bisect", "--precision", "fp32", code=2).stderr


def test_weights_rounded_to_half_build_an_rtx_engine_and_leave_float32_at_no_node(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: pip install 'lesionrt[rtx]'")
    checkpoint = untrained_checkpoint(NetworkConfig(growth_rate=2, layers=1, levels=1, first_channels=4))
    round_weights(checkpoint.network)
    save_checkpoint(checkpoint, tmp_path / "rounded.pt")
    bundle = tmp_path / "bundle"
    run("export", tmp_path / "rounded.pt", "-o", bundle, "--precision", "fp32", "--precision", "fp16")
    largest = ("--max-slices", 5, "--max-size", 16, "--workspace", 1)
    run("engine", "build", bundle, "--flavor", "rtx", "--precision", "fp16", *largest)
    (engine,) = engines_of(load_bundle(bundle).manifest)
    assert engine.entry["layers"]["share"] > 0.8
    found = json.loads(run("verify", bundle, "--bisect", "--json").stdout)["bisect"]["fp16"]
    assert found["results"] > 20
    assert found["beyond"] == []


def test_emulated_bfloat16_rounds_every_result_to_eight_bits(tiny_bundle: Path) -> None:
    original = onnx.load(tiny_bundle / "model_bf16.onnx")
    model = emulated(original)
    onnx.checker.check_model(model)
    half = {
        value.name for value in original.graph.value_info if value.type.tensor_type.elem_type == TensorProto.BFLOAT16
    }
    names = [name for node in original.graph.node for name in node.output if name in half]
    assert len(names) > 100
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for name, result in zip(names, session.run(names, {"slices": SLICES}), strict=True):
        assert not (result.view(np.uint32) & 0xFFFF).any(), name
    assert any((result.view(np.uint32) >> 16 & 1).any() for result in session.run(names[:3], {"slices": SLICES}))
