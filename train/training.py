"""Training: from scans and a recipe to a checkpoint, on the CPU, a GPU, or several through ``torchrun``."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch.distributed as dist

from lesionrt.runtime.bundle import ModelInfo
from lesionrt.runtime.errors import DatasetError, Interrupted, OutputError, VolumeError
from lesionrt.runtime.files import PARTIAL, sha256, sha256_of
from lesionrt.runtime.lock import locked
from lesionrt.train.augment import Lesions, read_lesions
from lesionrt.train.cache import PreparedScan, contents, load_scan
from lesionrt.train.checkpoint import load_checkpoint
from lesionrt.train.dataset import Scan
from lesionrt.train.processes import enough_memory, processes
from lesionrt.train.recipe import Recipe, check_batch
from lesionrt.train.run import RUN, Progress, Run, Say
from lesionrt.train.samples import Slabs, Windows

SAME_DICE = 0.9  # of two masks from which on they are of the same lesions: two people's share no such place


def train(
    recipe: Recipe,
    train_scans: Sequence[Scan],
    validation_scans: Sequence[Scan],
    out: Path,
    resume: bool = False,
    say: Say = lambda text: None,
    progress: Callable[[Progress], None] = lambda now: None,
    start: Path | None = None,
    name: str | None = None,
    cache: Path | None = None,
    left_out: Sequence[Scan] = (),
) -> Path:
    """Train a network and write its checkpoint.

    Parameters
    ----------
    recipe
        What to do.
    train_scans, validation_scans
        On what; validation is optional unless the recipe keeps the best epoch.
    out
        The run's folder: checkpoint, state, history as table and picture, resolved recipe.
    resume
        Continue from the state in `out`.
    say
        Told once an epoch how it goes.
    progress
        Told after every step.
    start
        A checkpoint whose weights to start from.
    name
        Of the model; None for the one that the run began with, or the folder's.
    cache
        Folder of prepared scans; None for ``cache`` beside the run.
    left_out
        Scans that are neither trained on nor validate, so that the network may be tested on them: none of their masks may
        be painted into others.

    Returns
    -------
    The checkpoint's path.

    Raises
    ------
    DatasetError
        If the scans do not fit the recipe, or the run that of `out`, or the loss is not finite.
    Interrupted
        After SIGINT or SIGTERM, when the state is written, or the checkpoint after the last step.
    OutputError
        If `out` holds another run, is being trained in, or cannot be written.
    """
    _check_new(out, resume)
    if not train_scans:
        raise DatasetError("no scan to train on")
    shared = {scan.patient for scan in train_scans} & {scan.patient for scan in validation_scans}
    if shared:
        say(
            f"note: {', '.join(sorted(shared))} both trains and validates: the validation figure is not one of new patients"
        )
    if recipe.sampling == "slabs" and len({scan.patient for scan in train_scans}) == 1:
        say(
            f"note: all scans are of one patient ({train_scans[0].patient}): expect little of the network on another one"
        )
    if recipe.keep == "best" and not validation_scans:
        raise DatasetError(
            "the recipe keeps the epoch with the best validation Dice, and no scan validates; name some with --validation"
        )
    if recipe.frozen_norms == 1 and start is None:
        raise DatasetError(
            "recipe: frozen_norms is 1, but a new network's norms have no statistics yet; give a checkpoint with --start"
        )
    needed = enough_memory("a GPU without other programs, or a smaller recipe")
    with ExitStack() as alone, processes() as (rank, world, device), needed:
        run = Run(recipe, out, rank, world, device)
        initial = None if start is None else load_checkpoint(start)
        if initial is not None:
            run.start_from(initial)
            if initial.model.trained and (validation_scans or left_out):
                say(
                    f"note: {initial.model.name} was trained on {initial.model.training_data}: if that holds people who validate or "
                    "are left out here, figures of theirs are not of new patients"
                )
            if initial.preparation != recipe.preparation:
                say(
                    f"note: {initial.model.name} learned from scans prepared as {initial.preparation}, not as {recipe.preparation}"
                )
        cache = cache or out.parent / "cache"
        multiple = recipe.network.size_multiple
        if world > 1:
            if rank == 0:  # prepares for all
                for scan in (*train_scans, *validation_scans):
                    load_scan(scan, recipe.preparation, multiple, cache)
            dist.barrier()
        scans = [load_scan(scan, recipe.preparation, multiple, cache) for scan in train_scans]
        held = [load_scan(scan, recipe.preparation, multiple, cache) for scan in validation_scans]
        known = {sha256_of(scan.slices.tobytes()): scan.name for scan in scans}
        for scan in held:
            _check_image(known, scan)
        for other in left_out if rank == 0 else ():  # one at a time: they are not trained on
            try:
                prepared = load_scan(other, recipe.preparation, multiple, cache)
            except (DatasetError, VolumeError) as error:
                say(f"note: {other.name}, left out, cannot be compared with what is trained on: {error}")
                continue
            _check_image(known, prepared)
        if recipe.keep == "best" and not any(scan.lesions.any() for scan in held):
            raise DatasetError("none of the validation scans has a lesion in its mask: their Dice can choose no epoch")
        donors = donor_masks(recipe)
        samples = _samples(recipe, scans, donors, [*validation_scans, *left_out], world, say)
        if isinstance(samples, Slabs) and device.type == "cpu":  # on GPUs the norms learn from all processes' slabs
            check_batch(recipe, recipe.slabs // world)
            if 1 == recipe.slabs // world < recipe.slabs:
                say(
                    "note: each process has one slab a step, and on CPUs its norms see nothing else: the batch statistics of one "
                    "scan do not train well; raise slabs"
                )
        if rank == 0 and (out.is_dir() or not resume):
            _make_folder(out)
            alone.enter_context(locked(out, wait=False))
            _check_new(out, resume)  # another may have come and gone while this one prepared
            for left in out.glob(PARTIAL.format("*")) if resume else ():  # the run was killed while it wrote
                if left.is_file():
                    left.unlink(missing_ok=True)
        named = run.describe(
            {scan.name: contents(scan) for scan in train_scans},
            {scan.name: contents(scan) for scan in validation_scans},
            {path.name: sha256(path) for path in donors},
            None if start is None else sha256(start),
            name,
            resume,
            say,
        )
        if resume:
            run.load_state()
        signum = run.fit(samples, held, say, progress)
        learned = ", ".join(scan.name for scan in train_scans)
        if recipe.keep == "best":
            learned += f"; epoch chosen on {', '.join(scan.name for scan in validation_scans)}"
        if donors:
            learned += f"; donor masks: {len(donors)}"
        if initial is not None:
            learned += f"; started from {initial.model.name}, trained on {initial.model.training_data}"
        info = ModelInfo(
            name=named,
            version="1",
            trained=True,
            description=f"{recipe.sampling}, {samples.batches} steps",
            training_data=learned,
        )
        path = run.finish(info)
    if signum:  # whoever asked to stop does not want what comes next
        raise Interrupted(f"stopped after the last step; {path} is written", signum)
    return path


def _check_new(out: Path, resume: bool) -> None:
    if (out / RUN).exists() and not resume:
        raise OutputError(f"{out}: holds a training run already; give --resume to continue it, or another folder")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from error


def _check_image(trained: Mapping[str, str], held: PreparedScan) -> None:
    """Refuse an image that is trained on under one name and held out under another, however each is stored.

    Raises
    ------
    DatasetError
        Naming both.
    """
    other = trained.get(sha256_of(held.slices.tobytes()))
    if other is not None:
        raise DatasetError(
            f"{held.name} and {other} are the same image, voxel for voxel, and only {other} is trained on: "
            "the figure would be about a scan that the model knows; take one of them out of the table"
        )


def donor_masks(recipe: Recipe) -> list[Path]:
    """The masks without images that the recipe names a folder of.

    Raises
    ------
    DatasetError
        If there are none in it.
    """
    if recipe.sampling == "windows" or not recipe.donors:
        return []
    paths = sorted(Path(recipe.donors).glob("*.nii*"))
    if not paths:
        raise DatasetError(f"recipe: donors is {recipe.donors!r}; expected a folder with lesion masks (.nii, .nii.gz)")
    return paths


def _samples(
    recipe: Recipe, scans: Sequence[PreparedScan], donors: Sequence[Path], held: Sequence[Scan], world: int, say: Say
) -> Slabs | Windows:
    if not any(scan.lesions.any() for scan in scans):
        raise DatasetError("none of the training scans has a lesion in its mask")
    shared = "batch" if recipe.sampling == "windows" else "slabs"
    if getattr(recipe, shared) % world:
        raise DatasetError(
            f"recipe: {shared} is {getattr(recipe, shared)}; expected a multiple of {world}, so that each process has as many"
        )
    if recipe.sampling == "windows":
        return Windows(scans, recipe)
    return Slabs(scans, recipe, _lesions_of(recipe, donors, held, say))


def check_donors(recipe: Recipe, held: Sequence[Scan]) -> None:
    """Find none of the masks of scans that are not trained on among the recipe's donors.

    Raises
    ------
    DatasetError
        If one is there, or a donor cannot be read.
    """
    if held:
        _lesions_of(recipe, donor_masks(recipe), held, lambda _: None)


def _lesions_of(recipe: Recipe, donors: Sequence[Path], held: Sequence[Scan], say: Say) -> list[Lesions]:
    lesions = [read_lesions(path, recipe.preparation) for path in donors]
    for scan in held if donors else ():
        try:
            theirs = read_lesions(scan.mask, recipe.preparation)
        except (DatasetError, VolumeError) as error:
            say(f"note: {scan.name}, not trained on, cannot be compared with the donors: {error}")
            continue
        for path, donor in zip(donors, lesions, strict=True):
            if _same(donor, theirs):
                raise DatasetError(
                    f"{path}: holds the lesions of {scan.name}, which is not trained on; take it out of the recipe's donors"
                )
    return lesions


def _same(one: Lesions, other: Lesions) -> bool:
    """Whether two masks are of the same lesions in the same place, also if one was cropped, padded or touched up."""
    shift = np.round(other.start_mm - one.start_mm).astype(int)  # both are on slices of 1 mm
    first, last = np.maximum(0, shift), np.minimum(one.mask.shape, shift + other.mask.shape)
    if (first >= last).any():
        return False
    mine = one.mask[tuple(map(slice, first, last))]
    theirs = other.mask[tuple(map(slice, first - shift, last - shift))]
    total = int(one.mask.sum()) + int(other.mask.sum())
    return bool(total) and 2 * int((mine & theirs).sum()) > SAME_DICE * total
