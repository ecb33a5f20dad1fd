"""`lesionrt segment`."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lesionrt.runtime.cli.options import (
    BackendOption,
    JsonOption,
    ThresholdOption,
    check_folder,
    given_path,
)

if TYPE_CHECKING:
    from lesionrt.runtime.outputs import Job
    from lesionrt.runtime.segmenter import Loaded, Segmenter

Progress = Callable[[int, int], None] | None


def command(
    flair: Annotated[
        list[Path],
        typer.Argument(
            help="FLAIR volumes (.nii, .nii.gz), or folders of them.",
            metavar="FLAIR",
            parser=given_path,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the results.", parser=given_path, show_default=False)
    ],
    model: Annotated[
        Path | None, typer.Option(help="A bundle's folder.", parser=given_path, show_default="the default model")
    ] = None,
    backend: BackendOption = "auto",
    threshold: ThresholdOption = None,
    min_lesion_mm3: Annotated[float, typer.Option(help="Drop lesions below this volume.")] = 0.0,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write the lesion probabilities too.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write a picture with the lesions drawn.")] = False,
    brain_mask: Annotated[
        Path | None,
        typer.Option(help="Brain mask on the volumes' grid.", parser=given_path, show_default="voxels that are not 0"),
    ] = None,
    chunk: Annotated[int | None, typer.Option(help="Slices computed at a time.", show_default="by memory")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU.", show_default="one a core")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier run's results, those too that are not written now.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Segment lesions: mask, table and report for each volume, on the volume's own grid."""
    from lesionrt.runtime.backends.cuda import DeviceError
    from lesionrt.runtime.bundle import load_bundle
    from lesionrt.runtime.errors import InputError, ParityError, UnavailableError
    from lesionrt.runtime.outputs import check_free, plan_jobs
    from lesionrt.runtime.segmenter import DEFAULT_MODEL, Segmenter, check_options, load_volume

    check_folder(out)
    plan = plan_jobs(flair, out, brain_mask)
    for path in plan.left_out:
        print(f"left out, named as a result of lesionrt: {path}", file=sys.stderr)
    if plan.other_contrasts:
        count, example = len(plan.other_contrasts), plan.other_contrasts[0]
        print(f"left out, no FLAIR by their BIDS names: {count}, such as {example}", file=sys.stderr)
    failures: dict[Path, int] = {}
    for path, problem in plan.unusable.items():
        failures[path] = InputError.exit_code
        _tell({"input": str(path), "error": f"{path}: {problem}"}, as_json)
    if not plan.jobs:
        raise typer.Exit(InputError.exit_code)
    check_options(threshold, min_lesion_mm3, chunk, threads)
    bundle = load_bundle(model or DEFAULT_MODEL)

    def read(job: "Job") -> "Loaded":
        check_free(job, force)
        return load_volume(bundle, job.flair, brain_mask)

    # The first volume is read and prepared while the network loads, each other one while that before it is computed.
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, plan.jobs[0])
        with Segmenter(
            bundle, backend=backend, threshold=threshold, min_lesion_mm3=min_lesion_mm3, chunk=chunk, threads=threads
        ) as segmenter:
            if not as_json:
                chosen = f"backend {segmenter.backend.name} ({segmenter.chosen_because})"
                print(f"model {bundle.name}, {chosen}", file=sys.stderr)
            for number, job in enumerate(plan.jobs):
                loaded = ahead
                if job is not plan.jobs[-1]:
                    ahead = reader.submit(read, plan.jobs[number + 1])
                start = time.perf_counter()
                try:
                    line = _segment(segmenter, job, loaded.result(), probabilities, overlay, force, as_json)
                except (InputError, ParityError, UnavailableError, OSError, MemoryError) as error:
                    line = {"input": str(job.flair), "error": _named(job.flair, error)}
                    # A volume that cannot be computed, as for lack of memory, is as bad as one that cannot be read.
                    failures[job.flair] = (
                        error.exit_code if isinstance(error, DeviceError | ParityError) else InputError.exit_code
                    )
                _tell(line, as_json, time.perf_counter() - start)
    total = len(plan.jobs) + len(plan.unusable)
    if total > 1 and not as_json:
        print(f"{total - len(failures)} of {total} inputs segmented")
    if total > 1 and failures:
        print(f"{len(failures)} of {total} failed:", *(f"  {path}" for path in failures), sep="\n", file=sys.stderr)
    if failures:
        raise typer.Exit(max(failures.values()))  # a lost device or a wrong network weighs more than a bad volume


def _segment(
    segmenter: "Segmenter",
    job: "Job",
    loaded: "Loaded",
    probabilities: bool,
    overlay: bool,
    force: bool,
    as_json: bool,
) -> dict[str, Any]:
    """One volume to files; its line for `--json`."""
    from lesionrt.runtime.outputs import write_results

    with _progress(job.flair.name, as_json) as progress:
        result = segmenter.segment(loaded, progress)
    earlier = [path for path in job.targets.values() if os.path.lexists(path)]
    written = write_results(result, job, probabilities, overlay, force)
    for path in earlier:
        if path not in written.values():
            print(f"removed, of an earlier run: {path}", file=sys.stderr)
    return {**result.report, "outputs": {kind: str(path) for kind, path in written.items()}}


def _named(flair: Path, error: Exception) -> str:
    """What went wrong with a volume, which not every error names."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"not enough memory ({text}); end what else uses it, or give a smaller --chunk"
    return text if text.startswith(f"{flair}: ") else f"{flair}: {text}"


def _tell(line: dict[str, Any], as_json: bool, seconds: float = 0.0) -> None:
    """What came of one volume, for machines or for people."""
    for warning in line.get("warnings", ()):
        print(f"warning: {line['input']}: {warning}", file=sys.stderr)
    if "error" in line:
        print(f"error: {line['error']}", file=sys.stderr)
    if as_json:
        print(json.dumps(line), flush=True)
    elif "error" not in line:
        print(f"{line['input']}: {line['lesion_count']} lesions, {line['lesion_volume_ml']:.2f} ml, in {seconds:.1f} s")
        for kind in ("mask", "table", "report", "probability", "overlay"):
            if kind in line["outputs"]:
                print(f"  {kind:<12}{line['outputs'][kind]}")


@contextmanager
def _progress(name: str, as_json: bool) -> Iterator[Progress]:
    """A bar on stderr where a person is watching, nothing in a pipe."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("slices"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
