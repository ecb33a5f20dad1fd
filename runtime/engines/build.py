"""From a bundle's ONNX graph to an engine in the bundle."""

import json
import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile, mkstemp
from typing import Any

from lesionrt.runtime.backends.cuda import Gpu, gpu
from lesionrt.runtime.bundle import MANIFEST, REFERENCE, TIMING_CACHES, Bundle, load_bundle
from lesionrt.runtime.engines.identity import Engine, Identity, Profile, engines_of
from lesionrt.runtime.engines.interrupt import interruptible
from lesionrt.runtime.engines.library import Log, compiles_at_first_run, load
from lesionrt.runtime.engines.network import Layers, ParsedNetwork, check_precision, in_words
from lesionrt.runtime.engines.stacks import first_guess, profile_for, room, widest
from lesionrt.runtime.engines.targets import set_targets
from lesionrt.runtime.engines.wanted import SMALLEST_STACK, Wanted
from lesionrt.runtime.errors import BundleError, OutputError, UnavailableError, UsageError
from lesionrt.runtime.files import sha256_of, write_atomically
from lesionrt.runtime.lock import locked

_ATTEMPTS = 4
_FIGURES = {
    "activations": r"Total Activation Memory: (\d+) bytes",
    "weights": r"Total Weights Memory: (\d+) bytes",
    "scratch": r"Max Scratch Memory: (\d+) bytes",
    "persistent_on_device": r"Total Device Persistent Memory: (\d+) bytes",
    "persistent_on_host": r"Total Host Persistent Memory: (\d+) bytes",
}

Say = Callable[[str], None]
# A finished engine's parity rows, None where it cannot run; and what is unusual about that, None where nothing is.
Parity = tuple[list[dict[str, Any]] | None, str | None]
Measure = Callable[[Bundle, Engine, bytes], Parity]


def build_engine(
    bundle: Bundle, wanted: Wanted, measure: Measure, force: bool = False, say: Say = lambda text: None
) -> Engine:
    """Build an engine and add it to the bundle.

    Parameters
    ----------
    bundle
        The bundle; it is as it was unless all went well.
    wanted
        Which engine.
    measure
        Compares the finished engine with the bundle's reference where it can run.
    force
        Build it though the bundle has it.
    say
        Told what is going on.

    Raises
    ------
    UsageError
        If the stacks do not fit the network or the workspace, or the bundle has the engine.
    BundleError
        If the graph is missing, damaged, unreadable or of another precision than it says, or is another one by the time the
        engine is built.
    UnavailableError
        If the library or, for TensorRT, the GPU is missing, or the build fails, or an engine does not run on the GPU that it
        was just built for.
    ParityError
        If the engine ran and is out of tolerance.
    OutputError
        If the bundle or, anywhere, a log cannot be written.
    KeyboardInterrupt, SystemExit
        After SIGINT, SIGTERM.
    """
    graph = _graph(bundle, wanted)
    trt = load(wanted.flavour)
    device = None if wanted.flavour == "rtx" else gpu()
    bundle.checked(REFERENCE)  # with which the engine will be compared
    _check_writable(bundle)
    log_path = _log_path(bundle, wanted, say)
    with log_path.open("w", encoding="utf-8") as file:
        log = Log(trt, file)
        try:
            engine, plan, timings = _build(bundle, graph, wanted, trt, device, log, force, say)
            parity = measure(bundle, engine, plan)
        except UsageError:
            log_path.unlink(missing_ok=True)  # it says nothing that the error does not
            raise
        except BaseException:
            say(f"the build's log is kept: {log_path}")
            raise
    engine = _add(bundle, engine, plan, timings, parity)
    log_path.unlink(missing_ok=True)
    return engine


def _check_writable(bundle: Bundle) -> None:
    try:
        with TemporaryFile(dir=bundle.path):
            pass
    except OSError as error:
        raise OutputError(
            f"{bundle.path}: no engine can be added, it cannot be written ({error.strerror}); build in a copy of it"
        ) from error


def _log_path(bundle: Bundle, wanted: Wanted, say: Say) -> Path:
    """An empty file beside the bundle, or where nothing can be written there, among the temporary files."""
    folder = bundle.path.resolve()
    path = folder.with_name(f"{folder.name}.{wanted.flavour}-{wanted.precision}.engine-build.log")
    try:
        path.write_text("")
    except OSError as error:
        problem = f"{path}: the build's log cannot be written ({error.strerror})"
    else:
        return path
    try:
        handle, name = mkstemp(prefix="lesionrt.", suffix=f".{path.name}")
    except OSError:
        raise OutputError(f"{problem}, nor anywhere else: set TMPDIR to a folder that can be written") from None
    os.close(handle)
    say(f"{problem}; it goes to {name}")
    return Path(name)


def _graph(bundle: Bundle, wanted: Wanted) -> Path:
    precision = wanted.graph_precision
    if precision not in bundle.precisions:
        asked = " ".join(f"--precision {name}" for name in (*bundle.precisions, precision))
        raise BundleError(
            f"{bundle.path}: has no {precision} graph, only {', '.join(bundle.precisions)}. Where its checkpoint is, run: "
            f"lesionrt export CHECKPOINT -o {bundle.path} {asked} --force (its engines are then built anew)"
        )
    return bundle.graph(precision)


def _build(
    bundle: Bundle,
    graph: Path,
    wanted: Wanted,
    trt: Any,
    device: Gpu | None,
    log: Log,
    force: bool,
    say: Say,
) -> tuple[Engine, bytes, bytes | None]:
    """The engine with its plan and timing cache; nothing is written."""
    workspace = wanted.workspace_bytes or room(wanted)
    say(f"{trt.__name__} {trt.__version__} reads {graph.name}")
    parsed = ParsedNetwork(trt, log, graph)
    layers = parsed.layers(wanted.precision)
    check_precision(layers, wanted.precision, graph)
    say(f"{layers.total} layers, of which {layers.computing} compute: {in_words(wanted.precision, layers.share)}")
    guess = first_guess(wanted, workspace, widest(bundle.manifest["network"]))

    def identified(slices: int) -> Identity:
        return _identity(bundle, wanted, trt, device, workspace, profile_for(wanted, bundle.size_multiple, slices))

    slices = guess if wanted.max_slices is not None else _fitted_before(bundle, identified, guess) or guess
    for _ in range(_ATTEMPTS):
        identity = identified(slices)
        if not force and any(known.identity == identity for known in engines_of(bundle.manifest)):
            raise UsageError(f"{bundle.path / identity.file_name} is there already; give --force to build it again")
        say(f"building for stacks of up to {'x'.join(map(str, identity.profile.largest))}")
        said_before = len(log.lines)
        plan, timings = _plan(bundle, parsed, identity, trt, log)
        memory = _figures(log.lines[said_before:])
        needed = memory["activations"]
        if needed is None or needed <= workspace:
            say("memory: " + ", ".join(f"{name} {_mib(size)}" for name, size in memory.items()))
            entry = {**_entry(graph, identity, layers, memory), "first_guess_slices": guess}
            return Engine(identity.file_name, identity, entry), plan, timings
        fitting = min(slices - 1, int(slices * workspace / needed))
        if wanted.max_slices is not None or fitting < SMALLEST_STACK:
            raise UsageError(_does_not_fit(identity.profile, needed, workspace, fitting))
        say(f"{_mib(needed)} of activations do not fit {_mib(workspace)}: fewer slices")
        slices = fitting
    raise UnavailableError(f"{graph}: no largest stack was found that fits {_mib(workspace)}; give --max-slices")


def _fitted_before(bundle: Bundle, identified: Callable[[int], Identity], guess: int) -> int | None:
    """To how many slices an earlier build of the same engine had to go down from the same guess; None if none did."""
    for known in engines_of(bundle.manifest):
        slices = known.identity.profile.largest[0]
        if known.entry.get("first_guess_slices") == guess and known.identity == identified(slices):
            return slices
    return None


def _identity(
    bundle: Bundle, wanted: Wanted, trt: Any, device: Gpu | None, workspace: int, profile: Profile
) -> Identity:
    flags = ["TF32"] if wanted.precision == "tf32" else []
    if _resizes_activations(trt):
        flags.append("RUNTIME_ACTIVATION_RESIZE_10_10")
    return Identity(
        onnx_sha256=bundle.graph_sha256(wanted.graph_precision),
        flavour=wanted.flavour,
        version=trt.__version__,
        precision=wanted.precision,
        gpu=None if device is None else device.name,
        compute_capability=None if device is None else device.compute_capability,
        targets=wanted.targets,
        profile=profile,
        workspace_bytes=workspace,
        flags=tuple(flags),
    )


def _resizes_activations(trt: Any) -> bool:
    """Whether an execution context can ask for less memory than its largest stack needs."""
    return hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10")


def _plan(bundle: Bundle, parsed: ParsedNetwork, identity: Identity, trt: Any, log: Log) -> tuple[bytes, bytes | None]:
    """The serialised engine, and the timing cache if this library times anything.

    Raises
    ------
    UnavailableError
        If the build fails, with TensorRT's own message.
    """
    config = parsed.builder.create_builder_config()
    (config.set_flag if identity.precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
    if "RUNTIME_ACTIVATION_RESIZE_10_10" in identity.flags:
        config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    timings: Any = None
    if compiles_at_first_run(trt):
        # The whole graph is one block there, whose scratch memory is all its activations: a limit would end the build
        # without a figure.
        set_targets(trt, config, identity.targets)
    else:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, identity.workspace_bytes)
        timings = _use_timings(config, _timing_cache(bundle, identity), trt, log)
    profile = parsed.builder.create_optimization_profile()
    shapes = [(slices, 1, height, width) for slices, height, width in _shapes(identity.profile)]
    profile.set_shape("slices", *shapes)
    log.forget_errors()
    if config.add_optimization_profile(profile) < 0:
        raise UsageError(f"TensorRT refuses stacks from {shapes[0]} to {shapes[-1]} ({log.text_of_errors()})")
    with interruptible(trt) as monitor:
        config.progress_monitor = monitor
        plan = parsed.builder.build_serialized_network(parsed.network, config)
    if plan is None:
        raise UnavailableError(f"{trt.__name__} {trt.__version__} could not build the engine: {log.text_of_errors()}")
    return bytes(plan), None if timings is None else bytes(config.get_timing_cache().serialize())


def _shapes(profile: Profile) -> tuple[tuple[int, int, int], ...]:
    return profile.smallest, profile.optimum, profile.largest


def _use_timings(config: Any, file: Path, trt: Any, log: Log) -> Any:
    """Set what earlier builds timed, or nothing yet; the configuration does not keep it alive.

    Raises
    ------
    UnavailableError
        If not even an empty cache is taken.
    """
    # One that is damaged gives none, and one of another device is refused.
    for known in (file.read_bytes() if file.is_file() else b"", b""):
        log.forget_errors()
        timings = config.create_timing_cache(known)
        if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
            return timings
    raise UnavailableError(f"{trt.__name__} {trt.__version__} takes no timing cache: {log.text_of_errors()}")


def _timing_cache(bundle: Bundle, identity: Identity) -> Path:
    """Shared by every engine of one library and GPU: layers of one shape need timing once."""
    key = sha256_of(f"{identity.flavour} {identity.version} {identity.gpu} {identity.compute_capability}".encode())[:16]
    return bundle.path / TIMING_CACHES.replace("*", f"{identity.flavour}_{key}")


def _figures(lines: list[str]) -> dict[str, int | None]:
    """The builder's memory figures in bytes, as far as it gave them."""
    text = "\n".join(lines)
    found = {name: re.findall(pattern, text) for name, pattern in _FIGURES.items()}
    return {name: int(figures[-1]) if figures else None for name, figures in found.items()}


def _mib(size: int | None) -> str:
    return "not said" if size is None else f"{size / 2**20:.1f} MiB"


def _does_not_fit(profile: Profile, needed: int, workspace: int, fitting: int) -> str:
    remedy = f"--max-slices of about {fitting}" if fitting >= SMALLEST_STACK else "a smaller --max-size"
    return (
        f"stacks of up to {'x'.join(map(str, profile.largest))} need {_mib(needed)} of activations, the workspace is "
        f"{_mib(workspace)}; give {remedy}, or more --workspace"
    )


def _entry(graph: Path, identity: Identity, layers: Layers, memory: dict[str, int | None]) -> dict[str, Any]:
    return {
        "file": identity.file_name,
        "identity": identity.as_dict(),
        "identity_sha256": identity.sha256,
        "graph": graph.name,
        "layers": layers.as_dict(),
        "memory_bytes": memory,
        "built_with": {"lesionrt": version("lesionrt"), "platform": f"{platform.system()} {platform.machine()}"},
    }


def _add(bundle: Bundle, engine: Engine, plan: bytes, timings: bytes | None, parity: Parity) -> Engine:
    """Write plan, timing cache and manifest; the manifest last."""
    entry = {**engine.entry, "parity": parity[0], "not_measured_because": parity[1]}
    written = {bundle.path / engine.file: plan}
    if timings is not None:
        written[_timing_cache(bundle, engine.identity)] = timings
    with locked(bundle.path):
        now = load_bundle(bundle.path)  # another build may have added an engine meanwhile
        if not now.has_graph_of(engine.identity):
            raise BundleError(f"{bundle.path}: the bundle was exported anew meanwhile; build again")
        others = [known.entry for known in engines_of(now.manifest) if known.file != engine.file]
        files = {**now.manifest["files"], engine.file: {"bytes": len(plan), "sha256": sha256_of(plan)}}
        manifest = {**now.manifest, "engines": [*others, entry], "files": files}
        text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
        write_atomically({**written, bundle.path / MANIFEST: text.encode()})
    return Engine(engine.file, engine.identity, entry)
