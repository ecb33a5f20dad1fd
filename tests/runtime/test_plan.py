"""Which volumes are segmented, and what their results are called."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lesionrt.runtime.errors import OutputError, UsageError, VolumeError
from lesionrt.runtime.outputs import Job, check_free, plan_jobs, targets_of
from lesionrt.runtime.volume import read_volume


def touch(folder: Path, *names: str) -> list[Path]:
    """Empty files: planning reads none."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


@pytest.mark.parametrize(
    ("name", "mask", "table"),
    [
        ("flair.nii", "flair_lesions.nii.gz", "flair_lesions.csv"),
        ("P07.NII.GZ", "P07_lesions.nii.gz", "P07_lesions.csv"),
        ("p07.t2.nii.gz", "p07.t2_lesions.nii.gz", "p07.t2_lesions.csv"),
        ("a/b/flair.nii.gz", "a/b/flair_lesions.nii.gz", "a/b/flair_lesions.csv"),
        ("sub-01.nii.gz", "sub-01_lesions.nii.gz", "sub-01_lesions.csv"),
        ("sub-01_FLAIR.nii.gz", "sub-01_desc-lesions_mask.nii.gz", "sub-01_desc-lesions_table.csv"),
        ("my_sub-01_FLAIR.nii", "my_sub-01_FLAIR_lesions.nii.gz", "my_sub-01_FLAIR_lesions.csv"),
        (
            "sub-01/ses-2/anat/sub-01_ses-2_acq-3D_desc-brain_FLAIR.nii.gz",
            "sub-01/ses-2/anat/sub-01_ses-2_acq-3D_desc-lesions_mask.nii.gz",
            "sub-01/ses-2/anat/sub-01_ses-2_acq-3D_desc-lesions_table.csv",
        ),
    ],
)
def test_results_are_named_after_the_input(name: str, mask: str, table: str) -> None:
    targets = targets_of(Path("out", name))
    assert targets["mask"] == Path("out", mask)
    assert targets["table"] == Path("out", table)
    assert len(set(targets.values())) == 5


def test_inputs_keep_their_path_below_the_common_folder(tmp_path: Path) -> None:
    scans = touch(tmp_path, "in/a/flair.nii.gz", "in/b/one/flair.nii.gz")
    plan = plan_jobs(scans, Path("out"))
    jobs, left_out = plan.jobs, plan.left_out
    assert [job.flair for job in jobs] == scans
    assert [str(job.targets["mask"].parent) for job in jobs] == ["out/a", "out/b/one"]
    assert left_out == []


def test_one_input_needs_no_folder_of_its_own(tmp_path: Path) -> None:
    [scan] = touch(tmp_path, "in/a/flair.nii.gz")
    assert plan_jobs([scan], Path("out")).jobs[0].targets["mask"] == Path("out/flair_lesions.nii.gz")


def test_relative_and_absolute_inputs_have_a_common_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/flair.nii", "b/flair.nii")
    monkeypatch.chdir(tmp_path / "a")
    jobs = plan_jobs([Path("flair.nii"), tmp_path / "b/flair.nii"], tmp_path / "out").jobs
    assert [job.targets["mask"].parent for job in jobs] == [tmp_path / "out/a", tmp_path / "out/b"]


def test_folder_stands_for_its_volumes_without_our_results(tmp_path: Path) -> None:
    scans = touch(
        tmp_path, "a/flair.nii.gz", "a/X.NII.GZ", "a/sub-1_FLAIR.nii", "b/lesions.nii.gz", "b/other_lesions.nii.gz"
    )
    touch(tmp_path, "a/notes.txt", "a/.flair.nii.gz", "a/.flair_lesions.nii.gz.0a1b2c3d.partial")
    results = touch(
        tmp_path,
        *("a/flair_lesions.nii.gz", "a/flair_probability.nii.gz"),  # beside their volume
        *(
            "a/sub-1_desc-lesions_mask.nii.gz",
            "a/sub-1_desc-lesions_probseg.nii.gz",
            "a/sub-1_desc-lesions_report.json",
        ),
        *("out/x_report.json", "out/x_lesions.nii.gz"),  # beside their report
    )
    plan = plan_jobs([tmp_path], tmp_path / "out")
    jobs, left_out = plan.jobs, plan.left_out
    assert {job.flair for job in jobs} == set(scans)
    assert set(left_out) == {path for path in results if path.suffix != ".json"}


def test_folder_without_volumes_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "x_report.json", "x_lesions.nii.gz")
    plan = plan_jobs([tmp_path], tmp_path / "out")
    assert (plan.jobs, list(plan.unusable)) == ([], [tmp_path])


def test_folders_that_cannot_be_entered_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [scan] = touch(tmp_path, "a/flair.nii")
    (tmp_path / "b").mkdir()
    listed = os.scandir

    def scandir(folder: str) -> Any:  # root may enter every folder
        if Path(folder).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    plan = plan_jobs([tmp_path], tmp_path / "out")
    assert [job.flair for job in plan.jobs] == [scan]
    assert [*plan.unusable] == [tmp_path / "b"]
    assert "Permission denied" in plan.unusable[tmp_path / "b"]


def test_a_link_to_nothing_is_no_reason_for_silence(tmp_path: Path) -> None:
    (tmp_path / "flair.nii.gz").symlink_to("gone.nii.gz")
    [job] = plan_jobs([tmp_path], tmp_path / "out").jobs
    with pytest.raises(VolumeError, match=r"flair\.nii\.gz: a link to gone\.nii\.gz, which is not there"):
        read_volume(job.flair)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    scan, *_ = touch(tmp_path, "scans/p01/flair.nii.gz", "store/flair.nii.gz", "one/flair.nii", "other/flair.nii")
    for link, target in {
        "scans/p02": "../store",
        "scans/latest": "p01",  # the same scan again
        "scans/p01/all": "..",
        "scans/x": "../one",
        "one/y": "../other",
        "other/z": "../one",
    }.items():
        (tmp_path / link).symlink_to(target)
    found = [job.flair for job in plan_jobs([tmp_path / "scans"], tmp_path / "out").jobs]
    names = ("p02/flair.nii.gz", "x/flair.nii", "x/y/flair.nii")
    assert found == [scan, *(tmp_path / "scans" / name for name in names)]


def test_hidden_folders_are_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, ".git/annex/x/flair.nii.gz", "a/.old/flair.nii")
    [scan] = touch(tmp_path / ".data", "flair.nii")
    assert plan_jobs([tmp_path], tmp_path / "out").jobs == []
    assert [job.flair for job in plan_jobs([tmp_path / ".data"], tmp_path / "out").jobs] == [scan]


def test_a_brain_mask_beside_its_volume_is_not_segmented(tmp_path: Path) -> None:
    scan, mask = touch(tmp_path, "p01/flair.nii.gz", "p01/brain.nii.gz")
    (tmp_path / "link").symlink_to("p01")
    assert [job.flair for job in plan_jobs([mask.parent], tmp_path / "out", tmp_path / "link" / mask.name).jobs] == [
        scan
    ]


def test_in_a_folder_of_phantoms_their_masks_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "phantom000_flair.nii.gz", "phantom000_mask.nii.gz", "phantom001_mask.nii.gz")
    plan = plan_jobs([tmp_path], tmp_path / "out")
    assert [job.flair.name for job in plan.jobs] == ["phantom000_flair.nii.gz", "phantom001_mask.nii.gz"]
    assert [path.name for path in plan.left_out] == ["phantom000_mask.nii.gz"]


def test_a_name_that_is_too_long_for_its_results_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    for letters, fits in ((255 - len("_lesions.nii.gz"), True), (256 - len("_lesions.nii.gz"), False)):
        job = Job(Path("flair.nii"), targets_of(tmp_path / f"{'a' * letters}.nii"))
        for force in (False, True):
            if fits:
                check_free(job, force)
                continue
            with pytest.raises(OutputError, match=r"cannot be written \(File name too long\); give a shorter name"):
                check_free(job, force)


def test_in_a_folder_bids_names_say_what_is_flair(tmp_path: Path) -> None:
    flairs = touch(tmp_path, "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-02/anat/sub-02_ses-1_flair.nii", "flair_T1w.nii")
    others = touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    plan = plan_jobs([tmp_path], tmp_path / "out")
    assert {job.flair for job in plan.jobs} == set(flairs)
    assert set(plan.other_contrasts) == set(others)
    assert [job.flair for job in plan_jobs([others[0]], tmp_path / "out").jobs] == [others[0]]  # named, it is taken


@pytest.mark.parametrize(
    ("given", "out"),
    [
        (["flair.nii", "flair.nii.gz"], "out"),
        (["flair.nii", "flair.nii"], "out"),
        (["flair.nii", "../in/flair.nii"], "out"),
        ([".", "flair.nii"], "out"),
        (["sub-1_FLAIR.nii", "sub-1_desc-x_FLAIR.nii"], "out"),
        (["a.nii", "a_lesions.nii.gz"], "in"),
        (["a.nii", "a_lesions.nii.gz"], "link"),
    ],
)
def test_names_that_collide_are_refused_before_anything_is_read(tmp_path: Path, given: list[str], out: str) -> None:
    touch(tmp_path / "in", "flair.nii", *(name for name in given if name != "."))
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(UsageError, match="rename them or run them apart"):
        plan_jobs([tmp_path / "in" / name for name in given], tmp_path / out)
