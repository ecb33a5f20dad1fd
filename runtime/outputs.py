"""Which file each result goes to, and writing them."""

import gzip
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib

from lesionrt.runtime.errors import OutputError, UsageError
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.lesions import lesion_table
from lesionrt.runtime.nifti import SUFFIXES, stem_of
from lesionrt.runtime.segmenter import Segmentation

# Endings of our files, and those in BIDS derivatives (BIDS 1.10, "Derivatives: Imaging").
_PLAIN = {
    "report": "_report.json",
    "table": "_lesions.csv",
    "overlay": "_overlay.png",
    "probability": "_probability.nii.gz",
    "mask": "_lesions.nii.gz",
}
_BIDS = {
    "report": "_desc-lesions_report.json",
    "table": "_desc-lesions_table.csv",
    "overlay": "_desc-lesions_overlay.png",
    "probability": "_desc-lesions_probseg.nii.gz",
    "mask": "_desc-lesions_mask.nii.gz",
}
_BIDS_NAME = re.compile(r"(?P<entities>sub-[0-9A-Za-z]+(_[a-z]+-[0-9A-Za-z+]+)*)_(?P<suffix>[0-9A-Za-z]+)")
ALWAYS = ("mask", "table", "report")  # of the kinds
# A real mask of 7 MB: 23 ms and 34 KB at level 1, 39 ms and 9.0 KB at 6, 48 ms and 8.5 KB at 9
# (benchmarks/results/changes-2-core-epyc.json).
GZIP_LEVEL = 6


@dataclass(frozen=True)
class Job:
    """One volume and where its results go, by kind."""

    flair: Path
    targets: dict[str, Path]


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes
    ----------
    jobs
        Every volume of the inputs.
    left_out
        Volumes in folders that are named as what lesionrt writes itself, `x_mask` beside a phantom's `x_flair` among them.
    other_contrasts
        Volumes in folders whose BIDS names say that they are no FLAIR.
    unusable
        Folders that cannot be read or hold no FLAIR volume, and what is wrong.
    """

    jobs: list[Job]
    left_out: list[Path]
    other_contrasts: list[Path]
    unusable: dict[Path, str]


def plan_jobs(inputs: Sequence[Path], out: Path, brain_mask: Path | None = None) -> Plan:
    """Every volume of the inputs with its outputs; nothing is read.

    Each volume keeps its path below the inputs' common folder.  A folder stands for all FLAIR volumes in it but the brain
    mask; where a name is BIDS its suffix says what is FLAIR.  Hidden files and folders are not looked at.

    Raises
    ------
    UsageError
        If two volumes would be written to the same file, or one over another input or the brain mask.
    """
    plan = Plan([], [], [], {})
    mask_place = None if brain_mask is None else _place(brain_mask)
    flairs: list[Path] = []
    roots: list[Path] = []
    for given in inputs:
        if os.path.isdir(given):  # noqa: PTH112 (a name too long for the file system is no folder, and no error here)
            roots.append(_absolute(given))
            before = len(flairs)
            for path in _volumes(given, plan.unusable):
                if _place(path) != mask_place:
                    kind = (
                        plan.left_out if _is_own(path) else plan.other_contrasts if _is_other_contrast(path) else flairs
                    )
                    kind.append(path)
            if len(flairs) == before:
                plan.unusable.setdefault(given, "no FLAIR volumes in this folder; expected .nii or .nii.gz files")
        else:
            roots.append(_absolute(given).parent)
            flairs.append(given)
    root = Path(os.path.commonpath(roots))
    plan.jobs.extend(Job(flair, targets_of(out / _absolute(flair).relative_to(root))) for flair in flairs)
    _check_clashes(plan.jobs, brain_mask)
    return plan


def _check_clashes(jobs: Sequence[Job], brain_mask: Path | None) -> None:
    """No output may be that of another input, or an input itself."""
    users: dict[Path, list[Path]] = {}
    for job in jobs:
        for path in (job.flair, *job.targets.values()):
            users.setdefault(_place(path), []).append(job.flair)
    if brain_mask is not None and _place(brain_mask) in {_place(path) for job in jobs for path in job.targets.values()}:
        users[_place(brain_mask)].append(brain_mask)
    clashes = {target: sources for target, sources in users.items() if len(sources) > 1}
    if clashes:
        lines = (f"  {target}: {', '.join(map(str, sources))}" for target, sources in clashes.items())
        raise UsageError(
            "several inputs would be written to the same file, or over another input; "
            "rename them or run them apart:\n" + "\n".join(lines)
        )


def _place(path: Path) -> Path:
    """Which directory entry a path is, whatever links lead to its folder."""
    return Path(os.path.realpath(path.parent), path.name)  # `resolve` fails at a link to itself


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (`resolve` would follow a link; it keeps its own name)


def _volumes(folder: Path, unusable: dict[Path, str]) -> list[Path]:
    """What is named as a volume below a folder, also what cannot be read; folders that cannot be go to `unusable`.

    Links to folders are followed after all else, and no folder is entered twice.
    """

    def refused(error: OSError) -> None:
        unusable[Path(error.filename)] = f"cannot be read ({error.strerror}); mend its permissions or leave it out"

    volumes: list[Path] = []
    entered: set[Path] = set()
    left = [folder]
    while left:
        for parent, folders, names in os.walk(left.pop(0), onerror=refused):
            here = Path(parent).resolve()
            if here in entered:
                folders.clear()
                continue
            entered.add(here)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            left += [path for name in folders if (path := Path(parent, name)).is_symlink()]
            volumes += [Path(parent, name) for name in names if stem_of(name) is not None and not name.startswith(".")]
    return sorted(volumes)


def _is_other_contrast(path: Path) -> bool:
    """BIDS by its name, with a suffix that is not FLAIR."""
    bids = _BIDS_NAME.fullmatch(stem_of(path.name) or "")
    return bids is not None and bids["suffix"].lower() != "flair"


def _is_own(path: Path) -> bool:
    """Named as our output, and beside its report or the volume that it was made from; or as a phantom's mask."""
    phantom = path.with_name(f"{path.name.removesuffix('_mask.nii.gz')}_flair.nii.gz")
    if path.name.endswith("_mask.nii.gz") and os.path.exists(phantom):  # noqa: PTH110 (its name may be too long)
        return True
    for endings in (_BIDS, _PLAIN):
        for kind in ("mask", "probability"):
            if path.name.endswith(endings[kind]):
                stem = path.name.removesuffix(endings[kind])
                return any((path.parent / f"{stem}{other}").exists() for other in (endings["report"], *SUFFIXES))
    return False


def targets_of(place: Path) -> dict[str, Path]:
    """Output files of an input, by kind; `place` is the input's name in the output folder.

    >>> str(targets_of(Path("out/flair.nii.gz"))["mask"])
    'out/flair_lesions.nii.gz'
    >>> str(targets_of(Path("out/sub-01_ses-2_desc-preproc_FLAIR.nii"))["mask"])
    'out/sub-01_ses-2_desc-lesions_mask.nii.gz'
    """
    stem = stem_of(place.name) or place.name
    bids = _BIDS_NAME.fullmatch(stem)
    if bids:
        entities = re.sub(r"_desc-[0-9A-Za-z+]+", "", bids["entities"])
        return {kind: place.with_name(entities + ending) for kind, ending in _BIDS.items()}
    return {kind: place.with_name(stem + ending) for kind, ending in _PLAIN.items()}


def check_free(job: Job, force: bool = False) -> None:
    """Refuse to overwrite results without `force`, and names too long for the file system of what is always written.

    Raises
    ------
    OutputError
        Naming the first output that exists or cannot be looked at.
    """
    for kind, target in job.targets.items():
        try:
            target.lstat()  # a link to content that is not fetched is a result too
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if kind in ALWAYS:
                raise OutputError(
                    f"{job.flair}: {target} cannot be written ({error.strerror}); give a shorter name, or another folder"
                ) from error
            continue
        if not force:
            raise OutputError(f"{job.flair}: {target} exists already; give --force to overwrite, or another folder")


def write_results(
    result: Segmentation, job: Job, probabilities: bool = False, overlay: bool = False, force: bool = False
) -> dict[str, Path]:
    """Write mask, table and report, and on request probabilities and overlay, all of them or none.

    With `force`, all that an earlier run left is removed, also what is not written now: it would show another result.

    Returns
    -------
    The files that were written, by kind.

    Raises
    ------
    OutputError
        If a file cannot be written, or without `force` exists already.
    """
    content = {"table": lesion_table(result.lesions).encode()}
    if overlay:
        from lesionrt.runtime.overlay import draw_overlay  # Pillow only where it draws: it takes time to load

        content["overlay"] = draw_overlay(result)
    if probabilities:
        content["probability"] = nifti_bytes(result.probability)
    content["mask"] = nifti_bytes(result.mask)
    content["report"] = (json.dumps(result.report, indent=2) + "\n").encode()  # last: where it is, all is
    if not force:
        check_free(job)  # again: another run may have written while this one computed
    earlier = [path for path in job.targets.values() if os.path.lexists(path)] if force else []
    write_atomically({job.targets[kind]: data for kind, data in content.items()}, earlier)
    return {kind: job.targets[kind] for kind in content}


def nifti_bytes(image: nib.Nifti1Image) -> bytes:
    """An image as the content of a .nii.gz file; equal images give equal bytes (no time stamp)."""
    return gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0)
