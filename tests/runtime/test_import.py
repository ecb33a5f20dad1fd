"""The runtime is lean: what it loads, what it says of what is missing, and that it needs no network."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HEAVY = {"torch", "onnx", "onnxruntime", "onnxscript", "tensorrt", "tensorrt_rtx", "openvino", "pycuda", "matplotlib"}
VERBS = (
    *("segment", "verify", "inspect", "doctor", "export", "engine", "import-official", "untrained", "phantom"),
    *("data", "train", "evaluate", "crossval", "bench"),
)
# Put before all else on the path: the named libraries are not installed, as far as Python can tell.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else PathFinder.find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        return (found for found in PathFinder.find_distributions(*context) if found.name.replace("-", "_") not in {names!r})

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
Environment = dict[str, str]
Run = Callable[..., subprocess.CompletedProcess[str]]


def with_first(folder: Path) -> Environment:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).strip(":")}


@pytest.fixture
def without(tmp_path: Path) -> Callable[..., Environment]:
    """An environment in which libraries are not installed."""

    def make(*names: str) -> Environment:
        (tmp_path / "without").mkdir()
        (tmp_path / "without/sitecustomize.py").write_text(WITHOUT.format(names=names))
        return with_first(tmp_path / "without")

    return make


def test_runtime_is_imported_in_a_second_without_an_inference_or_training_library(tmp_path: Path) -> None:
    code = """if True:
        import json, sys, time
        start = time.process_time()  # this process's own: other tests run beside it
        import lesionrt.runtime
        print(json.dumps([time.process_time() - start, sorted(sys.modules)]))
    """
    seconds = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        taken, modules = json.loads(result.stdout)
        assert not HEAVY & set(modules)
        assert not {name for name in modules if name.startswith(("lesionrt.train", "lesionrt.export"))}
        seconds.append(taken)
    assert min(seconds) < 1, seconds


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_loads_no_heavy_library(run: Run, arguments: list[str]) -> None:
    result = run(*arguments, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "lesionrt.runtime.cli" in imported
    assert not {name for name in imported if name.partition(".")[0] in HEAVY}
    assert result.stdout


def test_help_lists_every_verb(run: Run) -> None:
    shown = run("--help").stdout
    assert [verb for verb in VERBS if verb not in shown] == []


@pytest.mark.parametrize(
    ("library", "verb", "extra"),
    [
        ("torch", "export", "export"),
        ("onnx", "export", "export"),
        ("onnxscript", "export", "export"),
        ("onnxruntime", "export", "cpu"),
        ("torch", "untrained", "export"),
        ("torch", "import-official", "export"),
        ("onnxruntime", "segment", "cpu"),
        ("onnxruntime", "verify", "cpu"),
        ("torch", "verify --reference", "export"),
        ("torch", "evaluate", "train"),
        ("torch", "crossval", "train"),
        ("onnx", "verify bf16", "export"),
        ("onnx", "verify --bisect", "export"),
        ("tensorrt_rtx", "engine build", "rtx"),
    ],
)
def test_missing_library_is_named_with_the_command_that_brings_it(
    run: Run,
    without: Callable[..., Environment],
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    small_flair: Path,
    small_dataset: Path,
    tmp_path: Path,
    library: str,
    verb: str,
    extra: str,
) -> None:
    arguments = {
        "export": ("export", tiny_checkpoint, "-o", tmp_path / "out"),
        "untrained": ("untrained", "-o", tmp_path / "out"),
        "import-official": ("import-official", tiny_checkpoint, "-o", tmp_path / "out"),
        "segment": ("segment", small_flair, "-o", tmp_path / "out", "--model", tiny_bundle, "--backend", "cpu"),
        "verify": ("verify", tiny_bundle, "--backend", "cpu"),
        "evaluate": ("evaluate", small_dataset, "--model", tiny_checkpoint, "-o", tmp_path / "out"),
        "crossval": ("crossval", small_dataset, "-o", tmp_path / "out"),
        "verify --reference": ("verify", tiny_bundle, "--reference", tiny_checkpoint),
        "verify bf16": ("verify", tiny_bundle, "--backend", "cpu", "--precision", "bf16"),
        "verify --bisect": ("verify", tiny_bundle, "--bisect"),
        "engine build": ("engine", "build", tiny_bundle, "--flavor", "rtx"),
    }[verb]
    result = run(*arguments, code=4, env=without(library))
    assert f"pip install 'lesionrt[{extra}]'" in result.stderr
    said = {"onnxruntime": "ONNX Runtime is not installed", "tensorrt_rtx": "TensorRT for RTX is not installed"}
    assert said.get(library, library) in result.stderr
    assert not result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_library_that_is_there_but_does_not_load_is_a_clear_error(
    run: Run, tiny_bundle: Path, flake: Path, tmp_path: Path, backend: str
) -> None:
    message = "libonnxruntime.so.1: cannot open shared object file"
    for library in ("onnxruntime", "openvino"):
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text(f"raise ImportError({message!r})\n")
    out = tmp_path / "out"
    result = run(
        *("segment", flake, "-o", out, "--model", tiny_bundle, "--backend", backend), code=4, env=with_first(tmp_path)
    )
    assert message in result.stderr
    assert not out.exists()


def test_main_job_needs_no_training_library(
    run: Run, without: Callable[..., Environment], tiny_bundle: Path, flake: Path, tmp_path: Path
) -> None:
    environment = without("torch", "onnx", "onnxscript", "tensorrt", "openvino", "matplotlib")
    run("segment", flake, "-o", tmp_path / "out", "--model", tiny_bundle, "--overlay", env=environment)
    assert (tmp_path / "out/flair_lesions.nii.gz").exists()


def test_masks_are_evaluated_and_data_sets_checked_without_a_training_library(
    run: Run, without: Callable[..., Environment], small_dataset: Path, tmp_path: Path
) -> None:
    environment = without("torch", "onnx", "onnxruntime", "matplotlib")
    (tmp_path / "masks").mkdir()
    for name in ("a_1", "a_2", "b_1"):
        shutil.copy(small_dataset.parent / f"{name.replace('_', '')}_mask.nii.gz", tmp_path / f"masks/{name}.nii.gz")
    run("data", "check", small_dataset, env=environment)
    run("evaluate", small_dataset, "--masks", tmp_path / "masks", "-o", tmp_path / "out", env=environment)
    assert (tmp_path / "out/evaluation.html").exists()


def test_without_onnx_bfloat16_is_left_out_and_named(
    run: Run, without: Callable[..., Environment], tiny_bundle: Path
) -> None:
    result = run("verify", tiny_bundle, "--backend", "cpu", "--json", env=without("onnx"))
    found = json.loads(result.stdout)
    assert [row["precision"] for row in found["results"]] == ["fp32", "fp32", "fp16"]
    assert "pip install 'lesionrt[export]'" in found["left_out"]["cpu bf16"]


def test_main_job_needs_no_network(tiny_bundle: Path, flake: Path, tmp_path: Path) -> None:
    code = """if True:
        import socket, sys
        from lesionrt.runtime.cli import main

        class Blocked:
            def __init__(self, *arguments, **options):
                raise RuntimeError("a socket was opened")

        def watch(event, arguments):
            if event.startswith("socket."):
                raise RuntimeError(event)

        socket.socket = Blocked
        sys.addaudithook(watch)
        sys.argv[0] = "lesionrt"
        main()
    """
    arguments = ["segment", flake, "-o", tmp_path, "--model", tiny_bundle, "--overlay", "--probabilities"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_no_library_tells_its_makers_of_us(tiny_bundle: Path, flake: Path, tmp_path: Path, backend: str) -> None:
    # ONNX Runtime and OpenVINO would, from threads and processes of their own that the test above cannot see; before
    # they do they leave a file at home that counts this machine, but not where they take it for a build server.
    home = tmp_path / "home"
    home.mkdir()
    building = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in building}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    arguments = ["segment", flake, "-o", tmp_path / "out", "--model", tiny_bundle, "--backend", backend]
    subprocess.run([Path(sys.executable).parent / "lesionrt", *arguments], check=True, env=environment)
    assert not list(home.rglob("*"))


def test_doctor_shows_what_can_run_here(run: Run) -> None:
    import onnxruntime

    found = json.loads(run("doctor", "--json").stdout)
    assert [backend["name"] for backend in found["backends"]] == ["tensorrt", "rtx", "cuda", "openvino", "cpu"]
    assert all(backend["problem"] is None or backend["remedy"] for backend in found["backends"])
    shown = run("doctor").stdout
    assert re.search(rf"backend cpu \(onnxruntime\S* {onnxruntime.__version__}, CPU .*\): can run\n", shown)
    assert f"auto chooses {found['auto']['backend']}" in shown
    for name in ("python", "numpy", "nibabel", "GPUs: "):
        assert name in shown


def test_doctor_detects_both_onnx_runtimes_and_says_how_to_mend_it(run: Run, tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.21.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.21.0\n")
    shown = run("doctor", code=4, env=with_first(tmp_path)).stdout
    assert "onnxruntime and onnxruntime-gpu are both installed" in shown
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in shown
    assert "pip install 'lesionrt[gpu]'" in shown


def test_doctor_says_what_would_mend_a_missing_library(run: Run, without: Callable[..., Environment]) -> None:
    environment = without("onnxruntime", "openvino")
    shown = run("doctor", code=4, env=environment).stdout
    remedy = r"backend cpu .*: cannot run: ONNX Runtime is not installed\n +Run: pip install 'lesionrt\[cpu\]'"
    assert re.search(remedy, shown)
    assert json.loads(run("doctor", "--json", code=4, env=environment).stdout)["auto"]["backend"] is None
