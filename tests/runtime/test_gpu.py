"""Engines on a GPU: built, run, compared, in threads, out of memory, beside PyTorch, and for a long time."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lesionrt.runtime.backends import choose, open_backend, probe
from lesionrt.runtime.backends.cuda import Device, DeviceMemory, _driver
from lesionrt.runtime.backends.engine_backend import EngineBackend
from lesionrt.runtime.backends.engine_group import EngineGroup
from lesionrt.runtime.bundle import REFERENCE, Bundle, load_bundle
from lesionrt.runtime.engines.identity import engines_of
from lesionrt.runtime.errors import BundleError, InputError, UnavailableError
from lesionrt.runtime.parity import load_reference
from lesionrt.runtime.segmenter import Segmenter

pytestmark = pytest.mark.gpu
Run = Callable[..., Any]
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
MIB = 2**20


def needs(backend: str) -> None:
    found = probe(backend)
    if found.problem is not None:
        pytest.skip(f"backend {backend} cannot run here: {found.problem}. {found.remedy}")


# Of the session, like the bundles, and first of all: nothing is exported for a suite that is going to skip.
@pytest.fixture(scope="session", params=["tensorrt", "rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    needs(request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def cuda() -> None:
    needs("cuda")


@pytest.fixture(scope="module")
def engines(flavour: str, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """The small network's bundle with an engine of every precision, built here; each was compared as it was added."""
    bundle = tmp_path_factory.mktemp(flavour) / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    for precision in PRECISIONS:
        largest = ("--max-slices", 64, "--max-size", 256, "--workspace", 8)
        run("engine", "build", bundle, "--flavor", flavour, "--precision", precision, *largest)
    return bundle


@pytest.fixture
def bundle(engines: Path) -> Bundle:
    return load_bundle(engines)


@pytest.fixture
def backend(flavour: str, bundle: Bundle) -> Iterator[EngineGroup]:
    with open_backend(flavour, bundle, "fp32") as opened:
        assert isinstance(opened, EngineGroup)
        yield opened


def free_bytes() -> int:
    """Device memory that nobody uses; the context is current."""
    return int(_driver().mem_get_info()[0])


def stack(seed: int, slices: int = 30, height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(slices, 1, height, width)).astype(np.float32)


def on_the_cpu(bundle: Bundle, slices: np.ndarray) -> np.ndarray:
    with open_backend("cpu", bundle, "fp32") as cpu:
        return cpu.infer({"slices": slices})["lesion"]


def test_every_precision_was_compared_when_it_was_built(bundle: Bundle, flavour: str) -> None:
    built = {engine.identity.precision: engine.entry["parity"] for engine in engines_of(bundle.manifest)}
    assert set(built) == set(PRECISIONS)
    for precision, rows in built.items():
        (row,) = rows
        assert (row["backend"], row["precision"], row["findings"]) == (flavour, precision, [])


def test_verify_covers_every_backend_and_engine(engines: Path, flavour: str, run: Run) -> None:
    found = json.loads(run("verify", engines, "--backend", "all", "--json").stdout)
    assert found["passed"]
    compared = {(row["backend"], row["precision"]) for row in found["results"]}
    assert compared >= {(flavour, precision) for precision in PRECISIONS} | {("cpu", "fp32"), ("cpu", "bf16")}
    assert all(row["engine"] for row in found["results"] if row["backend"] == flavour)


@pytest.mark.usefixtures("cuda")
def test_onnx_runtime_on_cuda_agrees_with_pytorch(tiny_bundle: Path, run: Run) -> None:
    precisions = ("--precision", "fp32", "--precision", "fp16")
    assert json.loads(run("verify", tiny_bundle, "--backend", "cuda", *precisions, "--json").stdout)["passed"]


def test_auto_takes_the_engine(engines: Path, bundle: Bundle, flavour: str, run: Run) -> None:
    name, why = choose("auto", bundle)
    assert name == flavour, why


def test_the_full_network_agrees_with_pytorch(flavour: str, full_bundle: Path, tmp_path: Path, run: Run) -> None:
    bundle = Path(shutil.copytree(full_bundle, tmp_path / "bundle"))
    for precision in PRECISIONS:
        run("engine", "build", bundle, "--flavor", flavour, "--precision", precision)
    found = json.loads(run("verify", bundle, "--backend", flavour, "--json").stdout)
    assert found["passed"]
    assert {row["precision"] for row in found["results"]} == set(PRECISIONS)


def test_a_whole_volume_gives_the_cpus_mask(engines: Path, flavour: str, small_flair: Path) -> None:
    masks = []
    for name in ("cpu", flavour):
        with Segmenter(engines, backend=name) as segmenter:
            masks.append(np.asarray(segmenter(small_flair).mask.dataobj) > 0)
    assert (masks[0] ^ masks[1]).sum() <= max(2, 0.002 * masks[0].sum())


def test_the_same_volume_gives_the_same_bytes(engines: Path, flavour: str, small_flair: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with Segmenter(engines, backend=flavour) as segmenter:
            nib.save(segmenter(small_flair).mask, tmp_path / f"{name}.nii")
    assert (tmp_path / "one.nii").read_bytes() == (tmp_path / "two.nii").read_bytes()


def test_a_stack_may_be_cut_anywhere(backend: EngineGroup, bundle: Bundle) -> None:
    slices = stack(0)
    expected = on_the_cpu(bundle, slices)
    for chunk in (None, 28, 27, 9, 5, 2, 1):
        done: list[tuple[int, int]] = []
        result = backend.infer_stack(slices, chunk, lambda first, last: done.append((first, last)))  # noqa: B023
        assert abs(result - expected).max() < 1e-4
        assert done[-1] == (28, 28)


def test_sizes_may_change_from_volume_to_volume(backend: EngineGroup, bundle: Bundle) -> None:
    for slices in (stack(1), stack(2, 5, 32, 32), stack(3, 3, 4, 4), stack(4, 12, 160, 188), stack(1)):
        assert abs(backend.infer_stack(slices) - on_the_cpu(bundle, slices)).max() < 1e-4


def test_a_size_beyond_the_profile_is_an_error_that_says_how_to_build(backend: EngineGroup) -> None:
    with pytest.raises(InputError, match="--max-size"):
        backend.infer_stack(stack(0, 3, 512, 512))
    assert backend.infer_stack(stack(0)).shape == (28, 64, 96)


def test_a_stacks_size_decides_between_two_engines(
    engines: Path, bundle: Bundle, flavour: str, tmp_path: Path, run: Run
) -> None:
    copy = Path(shutil.copytree(engines, tmp_path / "bundle"))
    run("engine", "build", copy, "--flavor", flavour, "--max-slices", 8, "--max-size", 320, "--workspace", 8)
    taken = set()
    with open_backend(flavour, load_bundle(copy), "fp32") as opened:
        assert isinstance(opened, EngineGroup)
        for slices in (stack(0), stack(1, 5, 320, 320), stack(2, 5, 64, 64)):
            assert abs(opened.infer_stack(slices) - on_the_cpu(bundle, slices)).max() < 1e-4
            taken.add(opened.backend_for(slices).engine_file)
    assert len(taken) == 2


def test_threads_share_one_engine(backend: EngineGroup) -> None:
    stacks = [stack(seed) for seed in range(4)]
    expected = [backend.infer_stack(slices) for slices in stacks]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            if not np.array_equal(backend.infer_stack(stacks[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(stacks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert not wrong


def test_out_of_memory_halves_the_chunk_and_goes_on(flavour: str, bundle: Bundle) -> None:
    slices = stack(0, 64, 256, 256)
    device = Device()
    with open_backend(flavour, bundle, "fp32") as backend:
        assert isinstance(backend, EngineGroup)
        with device.active():
            before = free_bytes()
        expected = backend.infer_stack(slices)  # all at once, and its buffers are kept
        with device.active():
            needed = before - free_bytes()
        backend.backend_for(slices).release_idle()
        with device.active():
            hog = DeviceMemory(free_bytes() - needed // 2)
        try:
            result = backend.infer_stack(slices)
        finally:
            with device.active():
                hog.free()
        assert "ran out of memory" in backend.warnings[0]
        assert abs(result - expected).max() < 1e-4
        assert abs(backend.infer_stack(slices) - expected).max() < 1e-4


def test_it_works_beside_pytorch_in_one_process(backend: EngineGroup, bundle: Bundle) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this PyTorch is built without CUDA")
    slices = stack(0)
    expected = on_the_cpu(bundle, slices)
    ours = torch.arange(1000.0, device="cuda")
    for _ in range(3):
        assert abs(backend.infer_stack(slices) - expected).max() < 1e-4
        assert float((ours * 2).sum()) == 999000.0
    backend.__exit__(None, None, None)
    assert float((torch.ones(1000, device="cuda") + ours).sum()) == 500500.0


def test_two_hundred_volumes_leave_the_memory_flat(flavour: str, bundle: Bundle) -> None:
    device = Device()
    free = []
    with open_backend(flavour, bundle, "fp16") as backend:
        for number in range(200):
            backend.infer({"slices": stack(number, 20 + number % 7, 64, 96)})
            with device.active():
                free.append(free_bytes())
    assert abs(free[-1] - free[20]) <= 8 * MIB, [size // MIB for size in free[::20]]


def test_closing_gives_the_memory_back(flavour: str, bundle: Bundle) -> None:
    device = Device()

    def once() -> int:
        with open_backend(flavour, bundle, "fp32") as backend:
            backend.infer({"slices": stack(0, 40, 160, 160)})
        with device.active():
            return free_bytes()

    once()
    free = [once() for _ in range(5)]
    assert abs(free[-1] - free[0]) <= 8 * MIB


def test_a_plan_that_is_no_plan_is_an_error(flavour: str, bundle: Bundle) -> None:
    engine = engines_of(bundle.manifest)[0]
    with pytest.raises(UnavailableError, match="could not load the engine"):
        EngineBackend(engine, b"no plan" * 100)


SPOIL = """
import sys
from pathlib import Path
import numpy as np
from lesionrt.runtime.backends import open_backend
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.errors import LesionrtError

flavour, bundle = sys.argv[1:]
slices = np.zeros((5, 1, 32, 32), np.float32)
try:
    with open_backend(flavour, load_bundle(Path(bundle)), "fp32") as backend:
        backend.infer({"slices": slices})
        for lane in backend.backend_for(slices)._idle:
            for slot in lane._slots:
                slot.lesion.address = 256  # nobody's: the kernel that writes there ends the context
        backend.infer({"slices": slices})
except LesionrtError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_a_sticky_error_is_exit_code_4_and_no_abort(engines: Path, flavour: str) -> None:
    command = [sys.executable, "-c", SPOIL, flavour, str(engines)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 4, result.stderr
    assert "start it again" in result.stderr


def test_a_tampered_plan_is_not_loaded(engines: Path, flavour: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(engines, tmp_path / "bundle"))
    for engine in engines_of(load_bundle(copy).manifest):
        plan = bytearray((copy / engine.file).read_bytes())
        plan[-1] ^= 1
        (copy / engine.file).write_bytes(plan)
    with pytest.raises(BundleError, match="is not loaded"):
        open_backend(flavour, load_bundle(copy))


def test_the_reference_fits_the_profile_so_that_every_build_is_compared(bundle: Bundle) -> None:
    reference = load_reference(bundle.checked(REFERENCE))
    for engine in engines_of(bundle.manifest):
        assert engine.identity.profile.takes(3, *reference.slices.shape[2:])
