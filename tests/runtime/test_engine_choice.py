"""Which engine runs where, and what is said where none does. The GPU is described, not there."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lesionrt.runtime.backends import NAMES, Probe, cuda, engine, engine_choice, engine_parity, open_backend, probe
from lesionrt.runtime.backends.choice import BackendChoice
from lesionrt.runtime.bundle import Bundle, load_bundle
from lesionrt.runtime.engines.command import build_command
from lesionrt.runtime.engines.identity import Engine, Identity, Profile, engines_of
from lesionrt.runtime.errors import StackError, UnavailableError
from lesionrt.runtime.parity import TOLERANCES, Reference
from lesionrt.runtime.parity_table import table_lines
from lesionrt.runtime.verify import verify

Run = Callable[..., Any]
HERE = cuda.Gpu("RTX A4000", "8.6", 16 * 2**30, "13.0")
VERSION = "11.4.0.106"
PROFILE = Profile((3, 4, 4), (10, 160, 192), (10, 256, 256))
FP32 = Identity("ab" * 32, "tensorrt", VERSION, "fp32", HERE.name, HERE.compute_capability, (), PROFILE, 2**30, ())

RTX = replace(FP32, flavour="rtx", gpu=None, compute_capability=None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with that GPU and that TensorRT, as far as the choice of an engine looks at it, and bundles with the graphs
    that the engines were built from."""
    known = {"NONE": 0, "CURRENT": 1, "SM75": 75, "SM86": 86, "SM120": 120}
    library = SimpleNamespace(__version__=VERSION, Runtime=object, ComputeCapability=SimpleNamespace(__members__=known))
    for module in (engine, engine_choice):
        monkeypatch.setattr(module, "gpu", lambda: HERE)
        monkeypatch.setattr(module, "load", lambda flavour: library)
    graphs = dict.fromkeys(("fp32", "fp16", "bf16"), FP32.onnx_sha256)
    monkeypatch.setattr(Bundle, "graph_sha256", lambda bundle, precision: graphs[precision])
    monkeypatch.setattr(Bundle, "precisions", [*graphs])


def listing(bundle: Path, to: Path, *identities: Identity) -> Bundle:
    """A copy of a bundle that lists engines; their plans are not looked at."""
    copy = Path(shutil.copytree(bundle, to / "bundle"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["engines"] = [{"file": each.file_name, "identity": each.as_dict()} for each in identities]
    for each in identities:
        (copy / each.file_name).write_bytes(b"plan")
        manifest["files"][each.file_name] = {"bytes": 4, "sha256": sha256(b"plan").hexdigest()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return load_bundle(copy)


@pytest.mark.usefixtures("here")
def test_the_most_exact_engines_are_taken_the_latest_first(tiny_bundle: Path, tmp_path: Path) -> None:
    larger = replace(FP32, profile=replace(PROFILE, largest=(20, 256, 256)))
    half, tf32 = replace(FP32, precision="fp16"), replace(FP32, precision="tf32")
    bundle = listing(tiny_bundle, tmp_path, half, FP32, larger, replace(FP32, precision="bf16"), tf32)
    assert [found.identity for found in engine_choice.find_engines("tensorrt", bundle)] == [FP32, larger]
    assert [found.identity for found in engine_choice.find_engines("tensorrt", bundle, "fp16")] == [half]
    precisions = [found.identity.precision for found in engine_choice.runnable("tensorrt", bundle)]
    assert precisions == ["bf16", "fp16", "tf32", "fp32", "fp32"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"version": "10.13.0.35"}, "built with tensorrt 10.13.0.35, here is 11.4.0.106"),
        (
            {"gpu": "RTX 4090", "compute_capability": "8.9"},
            "built for RTX 4090 (compute capability 8.9), here is RTX A4000",
        ),
        ({"onnx_sha256": "cd" * 32}, "built from another graph than the bundle's"),
    ],
)
def test_another_version_or_gpu_finds_no_engine_and_says_which_command_builds_it(
    tiny_bundle: Path, tmp_path: Path, changed: dict[str, str], finding: str
) -> None:
    bundle = listing(tiny_bundle, tmp_path, replace(FP32, precision="fp16", **changed))
    with pytest.raises(UnavailableError) as caught:
        engine_choice.find_engines("tensorrt", bundle)
    assert finding in str(caught.value)
    (listed,) = engines_of(bundle.manifest)
    sized = "gpu" not in changed  # another GPU has other memory
    assert str(caught.value).endswith(f"Run: {build_command(bundle.path, listed.identity, sized)}")


@pytest.mark.usefixtures("here")
def test_a_bundle_without_engines_says_so(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(UnavailableError, match=r"has no tensorrt engine\. Run: lesionrt engine build .* fp32"):
        engine_choice.find_engines("tensorrt", bundle)
    with pytest.raises(UnavailableError, match="has no tensorrt engine of precision bf16"):
        engine_choice.find_engines("tensorrt", bundle, "bf16")


def test_auto_loads_tensorrt_only_where_a_gpu_and_an_engine_are(full_bundle: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from lesionrt.runtime.backends import choose\n"
        "from lesionrt.runtime.bundle import load_bundle\n"
        "choose('auto', load_bundle(pathlib.Path(sys.argv[1])))\n"
        "print([name for name in ('tensorrt', 'tensorrt_rtx') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(full_bundle)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout == "[]\n"


def test_an_installed_library_is_asked_nothing_where_the_bundle_has_no_engine_of_it(
    monkeypatch: pytest.MonkeyPatch, full_bundle: Path
) -> None:
    def unasked(flavour: str) -> object:
        raise AssertionError("loaded")

    monkeypatch.setattr(engine, "find_spec", lambda name: object())
    monkeypatch.setattr(engine, "gpu", lambda: HERE)
    for module in (engine, engine_choice):
        monkeypatch.setattr(module, "load", unasked)
    found = probe("tensorrt", load_bundle(full_bundle))
    assert "has no tensorrt engine" in str(found.problem)
    assert "Run: lesionrt engine build" in str(found.remedy)


@pytest.mark.usefixtures("here")
def test_an_rtx_engine_for_other_gpus_is_refused_before_it_is_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = listing(tiny_bundle, tmp_path, replace(RTX, targets=("8.9", "12.0")))
    found = probe("rtx", bundle)
    assert "built for compute capability 8.9, 12.0, here is RTX A4000 (compute capability 8.6)" in str(found.problem)
    assert found.remedy == f"Run: {build_command(bundle.path, replace(RTX, targets=('8.6',)), sized=False)}"
    assert "--workspace" not in found.remedy


@pytest.mark.usefixtures("here")
def test_a_precision_that_does_not_run_here_is_told_beside_one_that_does(tiny_bundle: Path, tmp_path: Path) -> None:
    old = replace(FP32, precision="fp16", version="10.13.0.35")
    bundle = listing(tiny_bundle, tmp_path, old, replace(FP32, version="10.13.0.35"), FP32)
    left_out = engine_choice.left_out("tensorrt", bundle)
    assert list(left_out) == ["fp16"]
    assert "built with tensorrt 10.13.0.35, here is 11.4.0.106. Run: lesionrt engine build" in left_out["fp16"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("capability", "problem"), [("9.0", False), ("8.6", False), ("7.0", True)])
def test_only_a_gpu_older_than_all_that_rtx_names_is_refused_without_an_engine(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path, capability: str, problem: bool
) -> None:
    for module in (engine, engine_choice):
        monkeypatch.setattr(module, "gpu", lambda: replace(HERE, compute_capability=capability))
    assert (probe("rtx").problem is not None) == problem
    if not problem:  # as built for every RTX GPU, and as built on the GPU that it runs on
        bundle = listing(tiny_bundle, tmp_path, RTX, replace(RTX, targets=(capability,)))
        assert probe("rtx", bundle).problem is None
        assert len(engine_choice.runnable("rtx", bundle)) == 2


@pytest.mark.parametrize(
    ("stack", "largest"),
    [
        ((10, 160, 192), (20, 256, 256)),  # all hold it: the latest
        ((30, 160, 192), (40, 192, 192)),  # only this one holds it whole
        ((90, 160, 192), (40, 192, 192)),  # none does: the most slices at a time
        ((30, 256, 192), (20, 256, 256)),  # the largest slices, of those the latest
        ((3, 320, 320), None),
    ],
)
def test_a_stacks_shape_decides_which_engine_runs_it(
    stack: tuple[int, int, int], largest: tuple[int, int, int] | None
) -> None:
    sizes = ((40, 192, 192), (20, 256, 192), (20, 256, 256))
    identities = [replace(FP32, profile=replace(PROFILE, optimum=size, largest=size)) for size in sizes]
    engines = [Engine(each.file_name, each, {}) for each in identities]
    found = engine_choice.holding(engines, *stack)
    assert (None if found is None else found.identity.profile.largest) == largest


class Opened:
    """A backend with one engine, which only says what it takes."""

    name, library, device, precision = "tensorrt", "tensorrt 11", "GPU", "fp32"

    def __init__(self, name: str, bundle: Bundle, precision: str) -> None:
        (self.engine,) = engines_of(bundle.manifest)
        self.engine_file = self.engine.file

    def infer_stack(self, slices: np.ndarray, chunk: int | None, progress: object) -> np.ndarray:
        if not self.engine.identity.profile.takes(3, *slices.shape[2:]):
            raise StackError("slices are too large")
        return np.zeros((len(slices) - 2, *slices.shape[2:]), np.float32)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.usefixtures("here")
def test_verify_compares_each_engine_of_a_precision(tiny_bundle: Path, tmp_path: Path) -> None:
    small = replace(FP32, profile=Profile((3, 4, 4), (10, 8, 8), (10, 8, 8)))
    larger = replace(FP32, profile=replace(PROFILE, largest=(20, 256, 256)))
    bundle = listing(tiny_bundle, tmp_path, FP32, larger, small)
    reference = Reference(np.zeros((4, 1, 12, 12), np.float32), np.zeros((2, 12, 12), np.float32), "00", "nothing")
    rows, left_out = verify(bundle, reference, "tensorrt", {"fp32": TOLERANCES["fp32"]}, Opened)
    assert [row["engine"] for row in rows] == [FP32.file_name, larger.file_name]
    assert left_out == {f"tensorrt fp32 {small.file_name}": "slices are too large"}
    (tmp_path / "alone").mkdir()
    with pytest.raises(StackError):
        verify(
            listing(tiny_bundle, tmp_path / "alone", small), reference, "tensorrt", {"fp32": TOLERANCES["fp32"]}, Opened
        )


def test_auto_passes_by_a_backend_that_seemed_able_and_cannot_be_opened(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(tiny_bundle)
    opened: list[str] = []

    def broken(name: str, *arguments: object, **options: object) -> object:
        opened.append(name)
        if len(opened) == 1:
            raise UnavailableError("its library is broken")
        return open_backend(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("lesionrt.runtime.backends.choice.open_backend", broken)
    with BackendChoice("auto", bundle) as choice:
        assert len(opened) == 2
        assert choice.first.backend.name == opened[1]
        assert f"not {opened[0]}: its library is broken" in choice.first.why
    opened.clear()
    with pytest.raises(UnavailableError, match="its library is broken"):
        BackendChoice("cpu", bundle)


def failing(*arguments: object) -> object:
    raise UnavailableError("no kernel image")


@pytest.fixture
def failing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which engines could run, and fail."""
    monkeypatch.setattr(engine_parity, "gpu", lambda: HERE)
    monkeypatch.setattr(engine_parity, "load", lambda flavour: SimpleNamespace(__version__=VERSION))
    monkeypatch.setattr(engine_parity, "probe", lambda flavour: Probe(flavour, flavour, HERE.name))
    monkeypatch.setattr(engine_parity, "EngineBackend", failing)


@pytest.mark.usefixtures("failing_here")
def test_an_engine_that_fails_on_the_gpu_that_it_was_built_on_is_no_engine(full_bundle: Path) -> None:
    with pytest.raises(UnavailableError, match="no kernel image"):
        engine_parity.measure(load_bundle(full_bundle), Engine(FP32.file_name, FP32, {}), b"plan")


@pytest.mark.usefixtures("failing_here")
@pytest.mark.parametrize(
    ("identity", "because"),
    [
        (RTX, "no kernel image"),
        (replace(RTX, targets=("8.9",)), "built for compute capability 8.9, here is RTX A4000"),
        (replace(RTX, profile=Profile((3, 4, 4), (3, 4, 4), (3, 4, 4))), "too large for it"),
    ],
)
def test_why_an_rtx_engine_was_not_measured_where_a_gpu_is_is_said(
    full_bundle: Path, identity: Identity, because: str
) -> None:
    rows, reason = engine_parity.measure(load_bundle(full_bundle), Engine(identity.file_name, identity, {}), b"plan")
    assert rows is None
    assert because in str(reason)


@pytest.mark.usefixtures("failing_here")
def test_where_no_gpu_is_nothing_needs_saying(monkeypatch: pytest.MonkeyPatch, full_bundle: Path) -> None:
    monkeypatch.setattr(engine_parity, "gpu", failing)
    measured = engine_parity.measure(load_bundle(full_bundle), Engine(RTX.file_name, RTX, {}), b"plan")
    assert measured == (None, None)


def test_every_backend_answers_to_the_name_that_it_was_asked_by() -> None:
    assert [probe(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize("backend", ["tensorrt", "rtx"])
def test_what_is_missing_for_engines_is_exit_code_4_with_its_remedy(
    run: Run, tiny_bundle: Path, flake: Path, tmp_path: Path, backend: str
) -> None:
    error = run("segment", flake, "-o", tmp_path / "out", "--model", tiny_bundle, "--backend", backend, code=4).stderr
    assert f"backend {backend} cannot run here: " in error
    assert "Run: " in error or "Install " in error
    assert not (tmp_path / "out").exists()


def test_verify_all_compares_what_can_run_and_says_what_cannot(tiny_bundle: Path, run: Run) -> None:
    result = run("verify", tiny_bundle, "--backend", "all", "--json")
    found = json.loads(result.stdout)
    compared = {(row["backend"], row["precision"]) for row in found["results"]}
    assert {("cpu", "fp32"), ("cpu", "fp16"), ("cpu", "bf16")} <= compared
    cannot = {name for name in ("tensorrt", "rtx", "cuda") if probe(name, load_bundle(tiny_bundle)).problem}
    assert set(found["left_out"]) == cannot
    assert all(found["left_out"].values())
    assert all(row["engine"] is None for row in found["results"] if row["backend"] == "cpu")


def test_the_table_has_one_line_a_comparison() -> None:
    comparison = {
        "max_difference": 0.0123,
        "percentile_difference": 1e-6,
        "dice": 0.99951,
        "flipped_voxels": 3,
        "reference_voxels": 1800,
        "candidate_lesions": 7,
        "reference_lesions": 8,
    }
    rows = [
        {"backend": "cpu", "precision": "fp32", "comparison": comparison, "findings": []},
        {"backend": "tensorrt", "precision": "fp16", "comparison": comparison, "findings": ["much"]},
    ]
    assert table_lines(rows) == [
        "backend   precision  largest  99.9 %  mask Dice  flipped    lesions  verdict",
        "cpu       fp32       0.012    1e-06   0.99951    3 of 1800  7 of 8   ok",
        "tensorrt  fp16       0.012    1e-06   0.99951    3 of 1800  7 of 8   OUT OF TOLERANCE",
    ]
