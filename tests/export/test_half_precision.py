"""What a half-precision graph computes in float32 all the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch.export import Dim

from lesionrt.export.graph import OPSETS, _fit_variance, _product_in_float32, export_graph, parts_in_float32, trace
from lesionrt.export.ranges import MARGIN, ProductRange, product_ranges
from lesionrt.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lesionrt.train.model import Network, NetworkConfig, windows_of
from lesionrt.train.untrained import phantom_slices

Run = Callable[..., Any]


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_a_product_within_a_factor_of_eight_of_the_largest_number_is_large() -> None:
    assert MARGIN == 8
    assert not ProductRange("block", 8187.0, True).large
    assert ProductRange("block", 8189.0, True).large


def test_a_variance_that_float16_cannot_hold_is_divided_and_the_norm_stays_the_same() -> None:
    norm = torch.nn.BatchNorm2d(2).eval()
    norm.running_mean, norm.running_var = torch.tensor([100.0, 1.0]), torch.tensor([300_000.0, 4.0])
    norm.weight.data = torch.tensor([2.0, 3.0])
    x = torch.tensor([600.0, 5.0]).reshape(1, 2, 1, 1)
    before = norm(x)
    _fit_variance(norm, 65504.0)
    torch.testing.assert_close(norm.running_var, torch.tensor([18_750.0, 4.0]))  # 300000 / 4^2
    assert norm.weight.tolist() == [0.5, 3.0]  # 2 / 2^2
    torch.testing.assert_close(norm(x), before)


def test_large_products_stay_float32_and_the_manifest_names_them(
    tiny_checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    block = loaded.network.attention_up[0]
    slices = phantom_slices(loaded.preparation, 4, 8)  # those that the export looks at
    (before,) = (found for found in product_ranges(loaded.network, slices) if found.name == "attention_up.0")
    growth = 30000 / before.largest
    with torch.no_grad():
        for branch in (block.squeeze, block.residual):  # their last norm and ReLU are linear in its weights
            for weights in (branch[4].weight, branch[4].bias):
                weights.mul_(growth**0.5)
        loaded.network.transition_up[1].conv.weight.div_(growth)  # what follows sees numbers as before
    save_checkpoint(Checkpoint(loaded.network, loaded.preparation, loaded.model), tmp_path / "wide.pt")
    bundle = tmp_path / "b"
    run(
        *("export", tmp_path / "wide.pt", "-o", bundle, "--precision", "fp16"),
        *("--percentile-difference", 1, "--max-difference", 1),
    )
    manifest = json.loads((bundle / "manifest.json").read_text())
    products = manifest["attention_products"]
    assert manifest["in_float32"] == {"fp16": ["attention_up.0"]}
    assert products["slices"] == "phantom"
    assert products["in_float32"] == ["attention_up.0"]
    assert 29000 < products["blocks"]["attention_up.0"] < 31000
    kinds = types_of(onnx.load(bundle / "model_fp16.onnx"))
    model = onnx.load(bundle / "model_fp16.onnx")
    products_by_type = [kinds[node.output[0]] for node in model.graph.node if node.op_type == "Mul"]
    assert products_by_type.count(TensorProto.FLOAT) == 1
    assert products_by_type.count(TensorProto.FLOAT16) > 5


def test_bfloat16_keeps_its_transposed_convolutions_in_float32(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "model_bf16.onnx")
    kinds = types_of(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 22)]
    for node in model.graph.node:
        if node.op_type == "ConvTranspose":
            assert kinds[node.output[0]] == TensorProto.FLOAT
        if node.op_type == "Conv":
            assert kinds[node.output[0]] == TensorProto.BFLOAT16
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert manifest["in_float32"]["bf16"] == ["transition_up.0.conv", "transition_up.1.conv"]
    assert {row["precision"] for row in manifest["parity"]} == {"fp32", "fp16", "bf16"}
    assert all("emulated" in row["notes"][0] for row in manifest["parity"] if row["precision"] == "bf16")


def test_a_part_kept_in_float32_changes_nothing_but_its_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig(4, 1, 1, 8)).eval()
    slices = torch.randn(5, 1, 8, 8)
    with torch.inference_mode():
        expected = network(windows_of(slices)).numpy()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for kept in ((), ("attention_down.0",), ("transition_up.0.conv",)):
        export_graph(network, "fp16", tmp_path / "g.onnx", {}, kept)
        session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
        (result,) = session.run(["lesion"], {"slices": slices.numpy()})
        assert abs(result - expected).max() < 5e-3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert parts_in_float32(network, "fp32", ("attention_down.0",)) == []


class Product(torch.nn.Module):
    """A squeeze-and-attention block's last step, kept in float32."""

    def forward(self, y: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return _product_in_float32(y, r)


def test_a_product_beyond_float16_becomes_its_largest_number_not_infinite() -> None:
    y, r = (torch.tensor(values, dtype=torch.float16) for values in ([2.0, 300.0, 65504.0], [3.0, 300.0, 65504.0]))
    assert Product()(y, r).tolist() == [8.0, 65504.0, 65504.0]
    model = trace(Product().eval(), (y, r), ({0: Dim("n")}, {0: Dim("n")}), ["y", "r"], ["p"], OPSETS["fp16"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(["p"], {"y": y.numpy(), "r": r.numpy()})
    assert (result.dtype, result.tolist()) == (np.float16, [8.0, 65504.0, 65504.0])
