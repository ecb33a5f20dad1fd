"""Where results go, and that they are there as a whole or not at all."""

import errno
import gzip
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lesionrt.runtime.errors import OutputError
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.outputs import Job, nifti_bytes, targets_of, write_results
from lesionrt.runtime.segmenter import Segmentation
from lesionrt.runtime.volume import read_volume

COMMAND = Path(sys.executable).parent / "lesionrt"
RESULTS = ["flair_lesions.csv", "flair_lesions.nii.gz", "flair_report.json"]
Segment = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def tall(small_flair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small volume eight times on top of itself: many seconds of computing."""
    flair = nib.load(small_flair)
    path = tmp_path_factory.mktemp("tall") / "flair.nii.gz"
    nib.save(nib.Nifti1Image(np.tile(flair.get_fdata(dtype=np.float32), (1, 1, 8)), flair.affine), path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_colliding_names_are_a_usage_error_and_nothing_is_written(
    segment: Segment, flake: Path, tmp_path: Path
) -> None:
    scan = Path(shutil.copy(flake, tmp_path))
    scan.with_suffix("").write_bytes(gzip.decompress(flake.read_bytes()))
    before = files(tmp_path)
    result = segment(scan, scan.with_suffix(""), "-o", tmp_path / "out", "--force", code=2)
    assert f"{scan}, {scan.with_suffix('')}\n" in result.stderr
    assert files(tmp_path) == before


def test_inputs_of_one_name_in_two_folders_are_both_written(segment: Segment, flake: Path, tmp_path: Path) -> None:
    for folder in ("in/a", "in/b"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(flake, tmp_path / folder)
    segment(tmp_path / "in/a/flair.nii.gz", tmp_path / "in/b/flair.nii.gz", "-o", tmp_path / "out")
    assert sorted(files(tmp_path / "out")) == [f"{folder}/{name}" for folder in "ab" for name in RESULTS]


def test_second_run_over_a_folder_leaves_out_the_results_of_the_first(
    segment: Segment, flake: Path, tmp_path: Path
) -> None:
    shutil.copy(flake, tmp_path)
    shutil.copy(flake, tmp_path / "sub-1_FLAIR.nii.gz")
    options = (tmp_path, "-o", tmp_path, "--json", "--probabilities")
    first, second = segment(*options), segment(*options, "--force")
    inputs = [[json.loads(line)["input"] for line in result.stdout.splitlines()] for result in (first, second)]
    assert inputs[0] == inputs[1] == [str(tmp_path / "flair.nii.gz"), str(tmp_path / "sub-1_FLAIR.nii.gz")]
    assert "left out" not in first.stderr
    assert second.stderr.count("left out, named as a result of lesionrt") == 4


@pytest.mark.parametrize("name", RESULTS)
def test_existing_result_is_overwritten_with_force_only(
    segment: Segment, flake: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"mine")
    result = segment(flake, "-o", tmp_path, code=3)
    assert f"{tmp_path / name} exists already; give --force" in result.stderr
    assert files(tmp_path) == {name: b"mine"}
    segment(flake, "-o", tmp_path, "--force")
    assert sorted(files(tmp_path)) == RESULTS
    assert (tmp_path / name).read_bytes() != b"mine"


@pytest.fixture
def result(small_flair: Path) -> Segmentation:
    """Nothing was found."""
    image = nib.load(small_flair)
    empty = nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine)
    return Segmentation(empty, empty, [], {"lesion_count": 0}, read_volume(small_flair))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(Path("flair.nii.gz"), targets_of(tmp_path / "flair.nii.gz"))


@pytest.mark.parametrize("kind", ["mask", "overlay"])
def test_what_another_run_wrote_in_the_meantime_stays(result: Segmentation, job: Job, kind: str) -> None:
    job.targets[kind].write_bytes(b"of another run")
    with pytest.raises(OutputError, match=rf"{job.targets[kind].name} exists already; give --force"):
        write_results(result, job)
    assert files(job.targets[kind].parent) == {job.targets[kind].name: b"of another run"}


def test_a_result_whose_content_is_elsewhere_stays(result: Segmentation, job: Job) -> None:
    job.targets["mask"].symlink_to("annexed")  # which is not fetched
    with pytest.raises(OutputError, match="exists already; give --force"):
        write_results(result, job)
    assert job.targets["mask"].is_symlink()


def test_a_folder_in_place_of_a_result_is_found_before_anything_is_replaced(result: Segmentation, job: Job) -> None:
    job.targets["mask"].write_bytes(b"old")
    job.targets["overlay"].mkdir()
    with pytest.raises(OutputError, match=r"flair_overlay\.png: cannot be written, it is a folder"):
        write_results(result, job, force=True)
    assert files(job.targets["mask"].parent) == {"flair_lesions.nii.gz": b"old"}


def test_an_interrupted_write_leaves_the_new_results_whole_and_no_old_one(
    result: Segmentation, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in job.targets.values():
        target.write_bytes(b"old")
    rename, interrupts = Path.replace, iter([KeyboardInterrupt])

    def interrupted(self: Path, target: Path) -> Path:
        rename(self, target)
        for interrupt in interrupts:
            raise interrupt
        return target

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(result, job, force=True)
    found = files(job.targets["mask"].parent)
    assert sorted(found) == ["flair_lesions.csv", "flair_lesions.nii.gz", "flair_report.json"]
    assert b"old" not in found.values()


def test_no_new_result_stands_beside_an_old_one_that_cannot_be_removed(
    result: Segmentation, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("mask", "report"):
        job.targets[kind].write_bytes(b"old")
    remove = Path.unlink

    def refused(self: Path, missing_ok: bool = False) -> None:
        if self == job.targets["mask"]:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(self))
        remove(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(OutputError, match=r"flair_lesions\.nii\.gz: cannot be written \(Operation not permitted\)"):
        write_results(result, job, force=True)
    assert set(files(job.targets["mask"].parent).values()) == {b"old"}


@pytest.mark.parametrize("out", ["a file", "a file/out", "/proc/out"])
def test_folder_that_cannot_be_made_is_one_clear_error(segment: Segment, flake: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "a file").write_bytes(b"mine")
    result = segment(flake, "-o", tmp_path / out, code=3)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(tmp_path / out) in errors[0] or str(tmp_path / "a file") in errors[0]
    assert files(tmp_path) == {"a file": b"mine"}


def test_a_name_as_long_as_names_can_be_is_written(tmp_path: Path) -> None:
    write_atomically({tmp_path / ("x" * 255): b"content"})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"content"]


def test_write_that_fails_half_way_leaves_nothing(segment: Segment, flake: Path, tmp_path: Path) -> None:
    limit = (20_000, resource.RLIM_INFINITY)  # bytes a file: enough for the table, not for the picture
    result = segment(
        *(flake, "-o", tmp_path, "--overlay"),
        code=3,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert "cannot be written" in result.stderr
    assert files(tmp_path) == {}


def start(scan: Path, out: Path, bundle: Path, *options: str) -> subprocess.Popen[str]:
    """The command in the background, with the signals of a terminal."""
    return subprocess.Popen(
        [COMMAND, "segment", scan, "-o", out, "--model", bundle, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def stop(process: subprocess.Popen[str], sent: signal.Signals) -> None:
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_run_that_is_stopped_while_it_computes_leaves_nothing(
    tiny_bundle: Path, tall: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    process = start(tall, tmp_path, tiny_bundle, "--chunk", "1", "--probabilities", "--overlay")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("model ")
    time.sleep(0.7)  # the volume is read in less
    assert process.poll() is None, "finished before it was stopped"
    stop(process, sent)
    assert process.returncode != 0
    assert files(tmp_path) == {}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_run_that_is_stopped_while_it_writes_leaves_whole_files_only(
    tiny_bundle: Path, flake: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    undisturbed = start(flake, tmp_path / "whole", tiny_bundle, "--probabilities", "--overlay")
    undisturbed.communicate(timeout=60)
    assert undisturbed.returncode == 0
    (tmp_path / "out").mkdir()
    process = start(flake, tmp_path / "out", tiny_bundle, "--probabilities", "--overlay")
    while process.poll() is None and not any((tmp_path / "out").iterdir()):
        pass
    stop(process, sent)
    left, whole = files(tmp_path / "out"), files(tmp_path / "whole")
    if sent == signal.SIGKILL:
        left = {name: content for name, content in left.items() if not name.endswith(".partial")}
    for name, content in left.items():
        if name == "flair_report.json":  # its seconds differ
            assert json.loads(content)["lesion_count"] == json.loads(whole[name])["lesion_count"]
        else:
            assert content == whole[name]


@pytest.mark.parametrize("obstacle", ["parent is a file", "target is a folder"])
def test_files_that_belong_together_are_all_written_or_none(tmp_path: Path, obstacle: str) -> None:
    first, second = tmp_path / "a.json", tmp_path / "sub" / "b.json"
    first.write_bytes(b"old")
    if obstacle == "parent is a file":
        second.parent.write_bytes(b"in the way")
    else:
        second.mkdir(parents=True)
    before = files(tmp_path)
    named = second.parent if obstacle == "parent is a file" else second
    with pytest.raises(OutputError, match=re.escape(f"{named}: cannot be written")):
        write_atomically({first: b"new", second: b"new"})
    assert files(tmp_path) == before


def test_files_are_written_into_new_folders_and_over_old_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write_atomically({tmp_path / "a": b"1", tmp_path / "new/folder/b": b"2"})
    assert files(tmp_path) == {"a": b"1", "new/folder/b": b"2"}


def test_volume_is_compressed_without_a_time_stamp_or_name() -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.eye(4))
    content = nifti_bytes(image)
    assert content[3:8] == bytes(5)  # flags (no name) and modification time of the gzip header
    assert content == nifti_bytes(image)
    assert gzip.decompress(content) == image.to_bytes()
