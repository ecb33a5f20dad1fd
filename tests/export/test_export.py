"""Bundles, and that none is written without its proof."""

import errno
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lesionrt.export.bundle import _centre, export_bundle
from lesionrt.export.graph import export_graph, with_one_input_channel
from lesionrt.export.ranges import product_ranges
from lesionrt.export.stream import Stream, export_stream_graph
from lesionrt.runtime.backends.onnx_stream import OnnxStream
from lesionrt.runtime.bundle import FORMAT, MANIFEST
from lesionrt.runtime.chunks import infer_in_chunks
from lesionrt.runtime.errors import OutputError
from lesionrt.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lesionrt.train.model import Network, NetworkConfig, SqueezeAttention, windows_of
from lesionrt.train.untrained import untrained_checkpoint

Run = Callable[..., Any]
OLD = json.dumps({"format": FORMAT, "files": {}})  # of a bundle that is to be replaced
LEAST = NetworkConfig(growth_rate=4, layers=1, levels=1, first_channels=8, attention=False, convlstm=False)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_the_graph_takes_any_stack_height_and_width(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    graph = session(tiny_bundle / "model_fp32.onnx")
    network = load_checkpoint(tiny_checkpoint).network
    rng = np.random.default_rng(0)
    for shape in ((3, 1, 4, 4), (4, 1, 8, 12), (9, 1, 20, 4)):
        slices = rng.normal(size=shape).astype(np.float32)
        with torch.inference_mode():
            expected = network(windows_of(torch.from_numpy(slices))).numpy()
        np.testing.assert_allclose(graph.run(["lesion"], {"slices": slices})[0], expected, atol=1e-5)


def test_the_graph_has_no_loop_and_computes_in_its_precision(tiny_bundle: Path) -> None:
    for precision, weights in (("fp32", onnx.TensorProto.FLOAT), ("fp16", onnx.TensorProto.FLOAT16)):
        graph = onnx.load(tiny_bundle / f"model_{precision}.onnx").graph
        assert not {"Loop", "Scan", "If"} & {node.op_type for node in graph.node}
        constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
        kernels = [node.input[1] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
        assert {constants[name] for name in kernels} == {weights}
        assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


def test_grey_enters_the_graph_once(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "model_fp32.onnx").graph
    first = next(node for node in graph.node if node.op_type == "Conv")
    kernel = next(tensor for tensor in graph.initializer if tensor.name == first.input[1])
    assert first.input[0] == "slices"
    assert list(kernel.dims) == [8, 1, 3, 3]


def test_the_manifest_says_what_the_bundle_is(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert manifest["version"] == 1
    assert manifest["model"]["trained"] is False
    assert manifest["network"] == load_checkpoint(tiny_checkpoint).network.config.as_dict()
    assert manifest["input"] == {
        "normalisation": "brain-quartile-z",
        "region": "brain",
        "axes": "SRA",
        "spacing_mm": 1.0,
        "smoothing_mm": 0.0,
        "size_multiple": 4,
    }
    assert (manifest["threshold"], manifest["opset"]) == (0.5, 22)
    assert {"lesionrt", "torch", "onnx", "onnxscript", "numpy"} == set(manifest["versions"])
    digest = sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert manifest["checkpoint"]["sha256"] == digest
    streams = {"stream_fp32.onnx", "blocked_fp32.onnx"}
    assert set(manifest["files"]) == {
        "model_fp32.onnx",
        "model_fp16.onnx",
        "model_bf16.onnx",
        "reference.npz",
        *streams,
    }
    assert manifest["stream_graphs"] == {"fp32": "stream_fp32.onnx"}
    assert manifest["blocked_graphs"] == {"fp32": "blocked_fp32.onnx"}
    for name, entry in manifest["files"].items():
        content = (tiny_bundle / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    assert {path.name for path in tiny_bundle.iterdir()} == {"manifest.json", *manifest["files"]}


def test_parity_was_measured_at_three_stacks_and_two_sizes(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    measured = {(row["precision"], row["what"]) for row in manifest["parity"]}
    sizes = ("160x188", "8x12")  # the phantom's brain and a part of it, in multiples of 4
    streamed = {
        ("fp32", f"6 output slices of {size}, streamed {count} at a time by {name}")
        for count in (1, 2, 6)
        for size in sizes
        for name in ("stream_fp32.onnx", "blocked_fp32.onnx")
    }
    whole = {(p, f"{n} output slices of {s}") for p in ("fp32", "fp16", "bf16") for n in (1, 2, 6) for s in sizes}
    assert measured == whole | streamed
    fp32 = [row for row in manifest["parity"] if row["precision"] == "fp32"]
    assert all(row["comparison"]["max_difference"] <= row["tolerance"]["maximum"] == 1e-4 for row in fp32)
    assert all("emulated" in row["notes"][0] for row in manifest["parity"] if row["precision"] == "fp16")


def test_configuration_and_checkpoint_stand_in_the_graph_without_paths(
    tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    path = tiny_bundle / "model_fp16.onnx"
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["lesionrt.network"])["growth_rate"] == 4
    assert metadata["lesionrt.checkpoint_sha256"] == sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert b"site-packages" not in path.read_bytes()


def test_out_of_tolerance_leaves_the_numbers_and_the_old_bundle(
    least_checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    bundle = tmp_path / "b"
    bundle.mkdir()
    (bundle / MANIFEST).write_text(OLD)
    result = run("export", least_checkpoint, "-o", bundle, "--force", "--max-difference", "0", code=5)
    assert "maximum difference" in result.stderr
    assert "is over 0" in result.stderr
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["b", f"b/{MANIFEST}"]
    assert (bundle / MANIFEST).read_text() == OLD


def test_what_exists_is_replaced_only_by_force_and_only_if_it_is_a_bundle(
    least_checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    bundle = tmp_path / "b"
    bundle.mkdir()
    (bundle / "notes.txt").write_text("mine")
    assert "--force" in run("export", least_checkpoint, "-o", bundle, code=3).stderr
    # A web application has a file of that name too; and to a bundle somebody's notes may have been added.
    for manifest, problem in (
        (None, "is no bundle"),
        ('{"name": "page"}', "is no bundle"),
        (OLD, "more than a bundle: notes"),
    ):
        if manifest is not None:
            (bundle / MANIFEST).write_text(manifest)
        with pytest.raises(OutputError, match=problem):
            export_bundle(untrained_checkpoint(LEAST), "0" * 64, bundle, ["fp32"], force=True)
        assert (bundle / "notes.txt").read_text() == "mine"


@pytest.fixture
def old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that is to be replaced; the new one is a file that says so."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / MANIFEST).write_text(OLD)
    monkeypatch.setattr("lesionrt.export.bundle._build", lambda *given: (given[2] / MANIFEST).write_text("new"))
    return tmp_path / "v1"


@pytest.mark.parametrize("out", ["link", "."])
def test_the_bundle_behind_a_link_is_replaced(old_bundle: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    (old_bundle.parent / "link").symlink_to("v1")
    monkeypatch.chdir(old_bundle if out == "." else old_bundle.parent)
    export_bundle(untrained_checkpoint(LEAST), "0" * 64, Path(out), ["fp32"], force=True)
    assert (old_bundle / MANIFEST).read_text() == "new"
    assert {path.name for path in old_bundle.parent.iterdir()} == {"v1", "link"}
    assert (old_bundle.parent / "link").is_symlink()


def test_a_timing_cache_beside_its_engines_is_the_bundles_too(old_bundle: Path) -> None:
    (old_bundle / "timing_tensorrt_0123456789abcdef.cache").write_bytes(b"timings")
    export_bundle(untrained_checkpoint(LEAST), "0" * 64, old_bundle, ["fp32"], force=True)
    assert [path.name for path in old_bundle.iterdir()] == [MANIFEST]


def test_a_bundle_that_cannot_be_replaced_is_put_back(old_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if (self / MANIFEST).read_text() == "new":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match=r"cannot be written .No space left"):
        export_bundle(untrained_checkpoint(LEAST), "0" * 64, old_bundle, ["fp32"], force=True)
    assert (old_bundle / MANIFEST).read_text() == OLD
    assert [path.name for path in old_bundle.parent.iterdir()] == ["v1"]


def test_the_other_size_is_cut_from_the_middle_or_goes_beyond_it() -> None:
    stack = np.arange(256 * 256, dtype=np.float32).reshape(1, 1, 256, 256)
    assert np.array_equal(_centre(stack, 2, 4), stack[:, :, 127:129, 126:130])
    wide = _centre(stack, 256, 512)  # a network of eight levels
    assert wide.shape == (1, 1, 256, 512)
    assert np.array_equal(wide[..., 128:384], stack)
    assert np.array_equal(wide[..., 0], stack[..., 0])


def test_an_empty_folder_becomes_the_bundle(old_bundle: Path) -> None:
    (old_bundle.parent / "new").mkdir()
    export_bundle(untrained_checkpoint(LEAST), "0" * 64, old_bundle.parent / "new", ["fp32"])
    assert (old_bundle.parent / "new" / MANIFEST).read_text() == "new"


def test_a_folder_that_appears_during_the_export_stays(old_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = old_bundle.parent / "late"

    def build(*given: Any) -> None:
        (given[2] / MANIFEST).write_text("new")
        out.mkdir()
        (out / "mine.txt").write_text("mine")

    monkeypatch.setattr("lesionrt.export.bundle._build", build)
    with pytest.raises(OutputError, match=r"late exists already"):
        export_bundle(untrained_checkpoint(LEAST), "0" * 64, out, ["fp32"])
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "code", "finding"),
    [
        (["--precision", "fp8"], 2, "fp8 is not known"),
        (["--input", "flair.nii.gz"], 2, "goes with --precision fp16"),
    ],
)
def test_wrong_options_are_usage_errors(
    tiny_checkpoint: Path, tmp_path: Path, run: Run, arguments: list[str], code: int, finding: str
) -> None:
    assert finding in run("export", tiny_checkpoint, "-o", tmp_path / "b", *arguments, code=code).stderr


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path, run: Run) -> None:
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04 nothing")
    assert "c.pt: damaged" in run("export", tmp_path / "c.pt", "-o", tmp_path / "b", code=3).stderr


@pytest.mark.parametrize(
    ("attention", "convlstm", "readout"),
    [(True, True, "centre"), (False, True, "last"), (True, False, "centre"), (False, False, "last")],
)
def test_every_variant_exports_and_streams(tmp_path: Path, attention: bool, convlstm: bool, readout: str) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(4, 1, 1, 8, attention=attention, convlstm=convlstm, readout=readout)  # type: ignore[arg-type]
    network = Network(config).eval()
    export_graph(network, "fp32", tmp_path / "m.onnx", {})
    export_stream_graph(Stream(with_one_input_channel(network)), tmp_path / "s.onnx", {}, tmp_path / "m.onnx")
    slices = np.random.default_rng(0).normal(size=(7, 1, 6, 8)).astype(np.float32)
    with torch.inference_mode():
        expected = network(windows_of(torch.from_numpy(slices))).numpy()
    np.testing.assert_allclose(session(tmp_path / "m.onnx").run(["lesion"], {"slices": slices})[0], expected, atol=1e-6)
    backend = OnnxStream("cpu", "CPU", tmp_path / "s.onnx", "fp32", "CPUExecutionProvider", None)
    for chunk in (1, 2, 3, 7):
        np.testing.assert_allclose(infer_in_chunks(backend, slices, chunk), expected, atol=1e-6)


def overflowing(factor: float) -> Checkpoint:
    """A small network whose attention products grow with the square of a factor."""
    checkpoint = untrained_checkpoint(NetworkConfig(4, 1, 2, 8))
    for module in checkpoint.network.modules():
        if isinstance(module, SqueezeAttention):
            for branch in (module.squeeze, module.residual):
                branch[-2].weight.data *= factor
    return checkpoint


def test_half_precision_that_overflows_is_refused_with_the_blocks(tmp_path: Path, run: Run) -> None:
    save_checkpoint(overflowing(1000.0), tmp_path / "c.pt")
    error = run("export", tmp_path / "c.pt", "-o", tmp_path / "b", "--precision", "fp16", code=5).stderr
    assert "attention_down.0: largest magnitude" in error
    assert "65504" in error
    assert not (tmp_path / "b").exists()


def test_the_range_of_products_is_looked_at_on_a_scan_that_is_given(tiny_bundle: Path) -> None:
    products = json.loads((tiny_bundle / "manifest.json").read_text())["attention_products"]
    assert products["slices"] == "a real scan"
    assert set(products["blocks"]) == {"attention_down.0", "attention_down.1", "attention_up.0"}
    assert products["largest"] == max(products["blocks"].values()) > 0


def test_products_are_those_of_the_forward() -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig(4, 1, 1, 8)).eval()
    slices = np.random.default_rng(0).normal(size=(4, 1, 4, 4)).astype(np.float32)
    with torch.inference_mode():
        x = torch.nn.functional.conv2d(
            torch.from_numpy(slices), network.first.weight.sum(1, keepdim=True), network.first.bias, padding=1
        )
        x = network.dense_down[0](x)
        block = network.attention_down[0]
        assert isinstance(block, SqueezeAttention)
        y = block.squeeze(torch.nn.functional.avg_pool2d(x, 2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        expected = float((y * block.residual(x)).abs().max())
    (found,) = product_ranges(network, slices)
    assert (found.name, found.finite_in_half) == ("attention_down.0", True)
    assert found.largest == pytest.approx(expected, rel=1e-6)
