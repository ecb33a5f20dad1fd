"""RTX engines, really built: no GPU is needed for that."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
import pytest

from lesionrt.export.graph import OPSETS, export_graph, graph_metadata, parts_in_float32
from lesionrt.runtime.backends.engine_parity import measure
from lesionrt.runtime.backends.engine_plan import read_plan
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.engines import stacks
from lesionrt.runtime.engines.build import build_engine
from lesionrt.runtime.engines.command import build_command
from lesionrt.runtime.engines.identity import engines_of
from lesionrt.runtime.engines.wanted import Wanted
from lesionrt.runtime.errors import BundleError, UnavailableError, UsageError
from lesionrt.runtime.lock import locked
from lesionrt.train.model import NetworkConfig
from lesionrt.train.untrained import untrained_checkpoint

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: pip install 'lesionrt[rtx]'")
COMMAND = Path(sys.executable).parent / "lesionrt"
TINY = Wanted("rtx", max_slices=5, max_size=(16, 16), workspace_bytes=2**30)
Run = Callable[..., Any]
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
NAMES = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
SMALL = ("--flavor", "rtx", "--workspace", 1, "--max-slices", 10, "--max-size", "32x64")


def copy(bundle: Path, to: Path) -> Path:
    return Path(shutil.copytree(bundle, to / "bundle"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_graph(bundle: Path, precision: str, model: bytes) -> None:
    """Put another graph into a bundle, as if it had been exported so."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    name = f"model_{precision}.onnx"
    (bundle / name).write_bytes(model)
    manifest["graphs"][precision] = name
    manifest["files"][name] = {"bytes": len(model), "sha256": sha256(model).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_is_added_with_everything_that_identifies_it(
    tiny_bundle: Path, tmp_path: Path, run: Run, precision: str
) -> None:
    import tensorrt_rtx

    bundle = copy(tiny_bundle, tmp_path)
    before = content(bundle)
    result = run("engine", "build", bundle, *SMALL, "--precision", precision, "--target", "8.6,12.0")
    (engine,) = engines_of(load_bundle(bundle).manifest)
    assert set(content(bundle)) - set(before) == {engine.file}
    assert {name: data for name, data in content(bundle).items() if name in before and name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    identity = engine.identity
    graph = "model_fp32.onnx" if precision == "tf32" else f"model_{precision}.onnx"
    assert engine.entry["graph"] == graph
    digests = [sha256(before[name]).hexdigest() for name in dict.fromkeys((graph, "model_fp32.onnx"))]
    assert identity.onnx_sha256 == (digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest())
    assert (identity.flavour, identity.version) == ("rtx", tensorrt_rtx.__version__)
    assert (identity.gpu, identity.targets, identity.precision) == (None, ("8.6", "12.0"), precision)
    assert (identity.profile.smallest, identity.profile.largest) == ((3, 4, 4), (10, 32, 64))
    assert ("TF32" in identity.flags) == (precision == "tf32")
    layers = engine.entry["layers"]
    assert layers["in_precision"] == layers["types"][NAMES[precision]]
    assert layers["share"] > 0.95
    assert engine.entry["memory_bytes"]["activations"] > 10 * 32 * 64 * 4
    assert engine.entry["parity"] is None
    assert "not measured" in result.stdout
    assert "MiB" in result.stderr
    assert read_plan(load_bundle(bundle), engine) == (bundle / engine.file).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert f"engine       {engine.file}" in run("inspect", bundle).stdout


@pytest.mark.parametrize(("attention", "convlstm"), [(True, False), (False, True), (False, False)])
def test_every_variant_of_the_network_builds_in_every_precision(
    tmp_path: Path, tiny_bundle: Path, attention: bool, convlstm: bool
) -> None:
    config = NetworkConfig(4, 1, 2, 8, attention=attention, convlstm=convlstm)
    network = untrained_checkpoint(config).network
    bundle = copy(tiny_bundle, tmp_path)
    for precision in OPSETS:
        path = tmp_path / "graph.onnx"
        in_float32 = parts_in_float32(network, precision, ["attention_up.0"] if attention else [])
        export_graph(network, precision, path, graph_metadata(network, "00", precision), in_float32)
        with_graph(bundle, precision, path.read_bytes())
    for precision in PRECISIONS:
        wanted = Wanted("rtx", precision, max_slices=10, max_size=(32, 64))
        build_engine(load_bundle(bundle), wanted, measure)
    for engine in engines_of(load_bundle(bundle).manifest):
        assert engine.entry["layers"]["share"] > 0.8  # of so small a network's, casts are many
        assert set(engine.entry["layers"]["types"]) <= {NAMES[engine.identity.precision], "FLOAT"}


def test_the_full_network_builds_in_every_precision(full_bundle: Path, tmp_path: Path, run: Run) -> None:
    bundle = copy(full_bundle, tmp_path)
    for precision in PRECISIONS:
        run("engine", "build", bundle, "--flavor", "rtx", "--precision", precision, "--workspace", 4)
    engines = engines_of(load_bundle(bundle).manifest)
    assert [engine.identity.precision for engine in engines] == list(PRECISIONS)
    for engine in engines:
        entry, identity = engine.entry, engine.identity
        assert entry["layers"]["total"] > 900
        assert entry["layers"]["computing"] > 300
        assert entry["layers"]["share"] > 0.95
        assert entry["memory_bytes"]["activations"] <= identity.workspace_bytes == 4 * 2**30
        # The guess before the build uses most of the workspace.
        assert entry["memory_bytes"]["activations"] > identity.workspace_bytes / 2
        assert identity.profile.optimum[1:] == (160, 192)
    by_precision = {engine.identity.precision: engine.entry["memory_bytes"] for engine in engines}
    assert by_precision["fp16"]["weights"] < 0.6 * by_precision["fp32"]["weights"]


def test_the_largest_stack_shrinks_until_it_fits_the_workspace(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    monkeypatch.setitem(stacks.BYTES_PER_PIXEL, "fp32", 20)  # far too few: the first guess is the whole head
    wanted = Wanted("rtx", max_size=(64, 64), workspace_bytes=64 * 2**20)
    said: list[str] = []
    engine = build_engine(load_bundle(bundle), wanted, measure, say=said.append)
    assert any("do not fit 64.0 MiB: fewer slices" in line for line in said)
    assert engine.entry["memory_bytes"]["activations"] <= 64 * 2**20
    assert 10 < engine.identity.profile.largest[0] < stacks.BRAIN[0]
    said.clear()
    with pytest.raises(UsageError, match="is there already"):  # and is known without building the too large one again
        build_engine(load_bundle(bundle), wanted, measure, say=said.append)
    assert not any("building" in line for line in said)


def test_stacks_that_do_not_fit_the_workspace_are_an_error_with_the_figures(
    tiny_bundle: Path, tmp_path: Path, run: Run
) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    before = content(bundle)
    options = ("--flavor", "rtx", "--max-size", "64", "--max-slices", 100, "--workspace", 1 / 16)
    error = run("engine", "build", bundle, *options, code=2).stderr
    assert "stacks of up to 100x64x64 need" in error
    assert "the workspace is 64.0 MiB; give --max-slices of about" in error
    error = run("engine", "build", bundle, "--flavor", "rtx", "--workspace", 1 / 1024, code=2).stderr
    assert "a smaller --max-size, or more --workspace" in error
    assert content(bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_engine_is_built_again_only_by_force(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    run("engine", "build", bundle, *SMALL)
    before = content(bundle)
    assert "is there already; give --force" in run("engine", "build", bundle, *SMALL, code=2).stderr
    assert content(bundle) == before
    run("engine", "build", bundle, *SMALL, "--force")
    assert set(content(bundle)) == set(before)
    (engine,) = engines_of(load_bundle(bundle).manifest)
    program, *words = shlex.split(build_command(bundle, engine.identity))
    assert program == "lesionrt"
    assert "is there already" in run(*words, code=2).stderr  # what it builds is that engine


def test_a_build_that_gives_nothing_leaves_the_bundle_and_its_log(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_rtx

    bundle = copy(tiny_bundle, tmp_path)
    before = content(bundle)
    monkeypatch.setattr(tensorrt_rtx.Builder, "build_serialized_network", lambda *arguments: None)
    with pytest.raises(UnavailableError, match=r"1\..* could not build the engine") as caught:
        build_engine(load_bundle(bundle), TINY, measure)
    assert caught.value.exit_code == 4
    assert content(bundle) == before
    assert (tmp_path / "bundle.rtx-fp32.engine-build.log").stat().st_size


def test_an_engine_is_not_added_to_a_bundle_that_was_exported_anew_meanwhile(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    exported: dict[str, bytes] = {}

    def export_meanwhile(*built: object) -> tuple[None, None]:
        with_graph(bundle, "fp32", b"another graph")
        exported.update(content(bundle))
        return None, None

    with pytest.raises(BundleError, match="exported anew meanwhile; build again"):
        build_engine(load_bundle(bundle), TINY, export_meanwhile)
    assert content(bundle) == exported


def test_an_engine_is_added_only_when_nobody_else_adds_one(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    before, said = content(bundle), list[str]()
    with ThreadPoolExecutor(1) as others:
        with locked(bundle):
            building = others.submit(build_engine, load_bundle(bundle), TINY, measure, say=said.append)
            while not any(text.startswith("memory") for text in said):
                time.sleep(0.1)
            time.sleep(1)
            assert content(bundle) == before
        engine = building.result()
    assert set(content(bundle)) - set(before) == {engine.file}


def no_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Banana"


def no_weights(model: onnx.ModelProto) -> None:
    del model.graph.initializer[20]


def other_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "mask"


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (no_operator, "node 'node_tanh' (Banana)"),
        (no_weights, "cannot read it"),
        (other_output, "its inputs and outputs are"),
        (None, "Failed to parse the ONNX model"),
    ],
    ids=["unknown operator", "lost weights", "foreign graph", "no ONNX"],
)
def test_a_bad_graph_is_an_error_that_names_the_node_and_leaves_the_bundle(
    tiny_bundle: Path, tmp_path: Path, run: Run, damage: Callable[[onnx.ModelProto], None] | None, finding: str
) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    model = onnx.load(bundle / "model_fp32.onnx")
    if damage is not None:
        damage(model)
    with_graph(bundle, "fp32", b"no graph" * 9 if damage is None else model.SerializeToString())
    before = content(bundle)
    error = run("engine", "build", bundle, *SMALL, code=3).stderr
    assert finding in error
    assert content(bundle) == before
    log = tmp_path / "bundle.rtx-fp32.engine-build.log"
    assert str(log) in error
    assert log.is_file()


def test_a_float16_graph_that_is_in_truth_float32_is_an_error(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    with_graph(bundle, "fp16", (bundle / "model_fp32.onnx").read_bytes())
    error = run("engine", "build", bundle, *SMALL, "--precision", "fp16", code=3).stderr
    assert "only 0 of" in error
    assert "FLOAT" in error
    assert engines_of(load_bundle(bundle).manifest) == []


def test_a_missing_precision_names_the_command_that_makes_it(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["graphs"]["bf16"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    error = run("engine", "build", bundle, *SMALL, "--precision", "bf16", code=3).stderr
    assert "has no bf16 graph, only fp32, fp16" in error
    assert f"lesionrt export CHECKPOINT -o {bundle} --precision fp32 --precision fp16 --precision bf16" in error


@pytest.mark.parametrize(
    ("options", "code", "finding"),
    [
        (["--workspace", "nan"], 2, "expected GiB over 0"),
        (["--workspace", "inf"], 2, "expected GiB over 0"),
        (["--target", "9.9"], 2, "--target 9.9 is not known"),
        (["--max-size", "30x64"], 2, "multiples of 4"),
        (["--max-size", "large"], 2, "expected pixels"),
        (["--flavor", "tensorrt", "--target", "8.6"], 2, "--target is for --flavor rtx"),
    ],
)
def test_wrong_options_leave_the_bundle_as_it_was(
    tiny_bundle: Path, tmp_path: Path, run: Run, options: list[str], code: int, finding: str
) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    before = content(bundle)
    assert finding in run("engine", "build", bundle, *SMALL, *options, code=code).stderr
    assert content(bundle) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_build_leaves_the_bundle_and_its_log(
    full_bundle: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    bundle = copy(full_bundle, tmp_path)
    before = content(bundle)
    command = [COMMAND, "engine", "build", bundle, "--flavor", "rtx"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("building for stacks"):
            assert process.poll() is None
        time.sleep(0.3)  # into the build itself, which takes seconds
        process.send_signal(number)
        shown, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert not shown
    assert "Traceback" not in told
    assert content(bundle) == before
    log = next(tmp_path.glob("bundle.rtx-*.engine-build.log")).read_text()
    assert "INFO" in log
    if number != signal.SIGKILL:
        assert "BuildCanceled" in log
        assert "the build's log is kept" in told


def test_a_tampered_plan_is_not_loaded(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    run("engine", "build", bundle, *SMALL)
    loaded = load_bundle(bundle)
    (engine,) = engines_of(loaded.manifest)
    plan = bytearray((bundle / engine.file).read_bytes())
    plan[len(plan) // 2] ^= 1
    (bundle / engine.file).write_bytes(plan)
    with pytest.raises(BundleError, match=r"sha256 is .* it is not loaded.*lesionrt engine build"):
        read_plan(loaded, engine)
    assert engine.file in run("inspect", bundle, "--json", code=3).stdout
    (bundle / engine.file).unlink()
    with pytest.raises(BundleError, match="missing"):
        read_plan(loaded, engine)


def test_where_nothing_can_be_written_beside_the_bundle_the_log_goes_elsewhere(
    tiny_bundle: Path, tmp_path: Path, run: Run
) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    with_graph(bundle, "fp32", b"no graph" * 9)
    (tmp_path / "bundle.rtx-fp32.engine-build.log").mkdir()
    (tmp_path / "temporary").mkdir()
    error = run(
        "engine", "build", bundle, *SMALL, code=3, env={**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    ).stderr
    (log,) = (tmp_path / "temporary").glob("lesionrt.*.log")
    assert f"the build's log is kept: {log}" in error
    assert "cannot be written (Is a directory); it goes to" in error
    assert log.stat().st_size


def test_building_needs_neither_torch_nor_onnx(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    bundle = copy(tiny_bundle, tmp_path)
    (tmp_path / "without").mkdir()
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in ("torch", "onnx", "onnxscript", "onnxruntime"))
    (tmp_path / "without/sitecustomize.py").write_text(f"import sys\n{blocked}")
    path = os.pathsep.join(filter(None, (str(tmp_path / "without"), os.environ.get("PYTHONPATH"))))
    run("engine", "build", bundle, *SMALL, env={**os.environ, "PYTHONPATH": path})
    assert len(engines_of(load_bundle(bundle).manifest)) == 1
