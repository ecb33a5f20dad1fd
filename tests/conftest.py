"""What several tests share: small networks and bundles made once, and the real scans where they are at hand."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock

SHARED = Path(__file__).parents[2] / "shared"
COMMAND = Path(sys.executable).parent / "lesionrt"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real scans and test vectors."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no real scans: ../shared is absent")
    return SHARED


@pytest.fixture(scope="session")
def run() -> Run:
    """The installed console command; `code` is the exit code that is expected."""

    def call(*arguments: object, code: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=900,
            **{"env": os.environ, **options},
        )
        assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        return result

    return call


def pytest_configure() -> None:
    """Each of several test processes keeps to its own cores, and so does what it starts: their threads would wait for each other."""
    # Some tests import these libraries themselves, and would tell their makers.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[int(worker) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
        os.sched_setaffinity(0, mine or os.sched_getaffinity(0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one of them at the end."""
    longest = [
        *(
            "test_default_model.py",
            "test_readme.py",
            "test_training.py",
            "test_resume.py",
            "test_bench.py",
            "test_export.py",
        ),
        *("test_engine_build.py", "test_bisect.py", "test_crossval.py", "test_half_precision.py", "test_model.py"),
    ]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder in the first test process that wants it; the others wait and take it as it is."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder = common / f"once-{name}"
        with FileLock(common / f"once-{name}.lock"):
            if not (folder / "made").exists():
                folder.mkdir(exist_ok=True)
                fill(folder)
                (folder / "made").touch()
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(once: Once) -> Path:
    """A network of the paper's kind that computes in moments: two levels, so sizes are multiples of 4."""
    from lesionrt.train.checkpoint import save_checkpoint
    from lesionrt.train.model import NetworkConfig
    from lesionrt.train.untrained import untrained_checkpoint

    config = NetworkConfig(growth_rate=4, layers=1, levels=2, first_channels=8)
    return once("tiny", lambda folder: save_checkpoint(untrained_checkpoint(config), folder / "tiny.pt")) / "tiny.pt"


@pytest.fixture(scope="session")
def least_checkpoint(once: Once) -> Path:
    """The smallest network there is, for what does not depend on the network; sizes are multiples of 2."""
    from lesionrt.train.checkpoint import save_checkpoint
    from lesionrt.train.model import NetworkConfig
    from lesionrt.train.untrained import untrained_checkpoint

    config = NetworkConfig(growth_rate=4, layers=1, levels=1, first_channels=8, attention=False, convlstm=False)
    return once("least", lambda folder: save_checkpoint(untrained_checkpoint(config), folder / "least.pt")) / "least.pt"


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, once: Once, run: Run, small_flair: Path) -> Path:
    """Its bundle in every precision that has a graph; the range of products was looked at on the small phantom's file."""
    options = (*(f"--precision={name}" for name in ("fp32", "fp16", "bf16")), "--input", small_flair)
    return (
        once("tiny-bundle", lambda folder: run("export", tiny_checkpoint, "-o", folder / "bundle", *options)) / "bundle"
    )


@pytest.fixture(scope="session")
def full_bundle() -> Path:
    """The paper's full network in every precision that has a graph: the default model."""
    from lesionrt.runtime.segmenter import DEFAULT_MODEL

    return DEFAULT_MODEL


@pytest.fixture(scope="session")
def small_flair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom head, 48x56x40 voxels of 1 mm, axes LPS."""
    from lesionrt.runtime.phantom import phantom

    data, _ = phantom((48, 56, 40), seed=3)
    path = tmp_path_factory.mktemp("scan") / "flair.nii.gz"
    nib.save(nib.Nifti1Image(data[::-1, ::-1], np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    return path


@pytest.fixture(scope="session")
def flake(small_flair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of its slices, for what does not depend on how many there are."""
    path = tmp_path_factory.mktemp("flake") / "flair.nii.gz"
    nib.save(nib.load(small_flair).slicer[:, :, 18:22], path)
    return path


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of three small phantom heads: patient a at two times, patient b at one."""
    from lesionrt.runtime.phantom import phantom

    folder = tmp_path_factory.mktemp("dataset")
    rows = ["flair,mask,patient,time"]
    for seed, (patient, time) in enumerate((("a", 1), ("a", 2), ("b", 1))):
        for what, data in zip(("flair", "mask"), phantom((40, 44, 24), seed=seed), strict=True):
            nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), folder / f"{patient}{time}_{what}.nii.gz")
        rows.append(f"{patient}{time}_flair.nii.gz,{patient}{time}_mask.nii.gz,{patient},{time}")
    (folder / "scans.csv").write_text("\n".join(rows) + "\n")
    return folder / "scans.csv"


@pytest.fixture(scope="session")
def segment(run: Run, tiny_bundle: Path) -> Run:
    """`lesionrt segment` with the small model on the CPU."""
    return lambda *arguments, **options: run(
        "segment", "--model", tiny_bundle, "--backend", "cpu", *arguments, **options
    )
