"""Which of a bundle's engines run here."""

from collections.abc import Sequence
from dataclasses import replace
from shlex import quote

from lesionrt.runtime.backends.cuda import gpu
from lesionrt.runtime.bundle import PRECISIONS, Bundle
from lesionrt.runtime.engines.command import build_command
from lesionrt.runtime.engines.identity import Engine, engines_of
from lesionrt.runtime.engines.library import load
from lesionrt.runtime.errors import UnavailableError


def of_flavour(flavour: str, bundle: Bundle, precision: str | None = None) -> list[Engine]:
    """The engines that a bundle lists, wherever they run, the latest last."""
    return [
        engine
        for engine in engines_of(bundle.manifest)
        if engine.identity.flavour == flavour and precision in (None, engine.identity.precision)
    ]


def bundle_problem(flavour: str, bundle: Bundle, precision: str | None = None) -> tuple[str, str] | None:
    """Why a bundle has no engine that runs here, and the command that builds one; None if it has."""
    listed = of_flavour(flavour, bundle, precision)
    kind = f"{flavour} engine" if precision is None else f"{flavour} engine of precision {precision}"
    if not listed:
        asked = precision or bundle.precisions[0]
        command = f"lesionrt engine build {quote(str(bundle.path))} --flavor {flavour} --precision {asked}"
        return f"{bundle.path} has no {kind}", f"Run: {command}"
    reasons = {_mismatch(bundle, engine) for engine in listed}
    if None in reasons:
        return None
    here, like = gpu(), listed[-1].identity
    same = like.suits(here.name, here.compute_capability)
    if flavour == "rtx" and not same:
        like = replace(like, targets=(here.compute_capability,))
    problem = f"{bundle.path} has no {kind} that runs here: {'; '.join(sorted(map(str, reasons)))}"
    return problem, f"Run: {build_command(bundle.path, like, sized=same)}"


def left_out(flavour: str, bundle: Bundle) -> dict[str, str]:
    """Why no engine of a precision that the bundle lists runs here, by precision."""
    listed = dict.fromkeys(engine.identity.precision for engine in of_flavour(flavour, bundle))
    problems = {precision: bundle_problem(flavour, bundle, precision) for precision in listed}
    return {precision: ". ".join(problem) for precision, problem in problems.items() if problem is not None}


def find_engines(flavour: str, bundle: Bundle, precision: str | None = None) -> list[Engine]:
    """The engines of one precision that run here, the latest last: the most exact if none is asked for.

    Raises
    ------
    UnavailableError
        If there is none, with the command that builds one.
    """
    problem = bundle_problem(flavour, bundle, precision)
    if problem is not None:
        raise UnavailableError(". ".join(problem))
    found = runnable(flavour, bundle, precision)
    return [engine for engine in found if engine.identity.precision == found[-1].identity.precision]


def runnable(flavour: str, bundle: Bundle, precision: str | None = None) -> list[Engine]:
    """The engines of a flavour that run here, the most exact and latest last."""
    fitting = [engine for engine in of_flavour(flavour, bundle, precision) if _mismatch(bundle, engine) is None]
    return sorted(fitting, key=lambda engine: -PRECISIONS.index(engine.identity.precision))


def _mismatch(bundle: Bundle, engine: Engine) -> str | None:
    if not bundle.has_graph_of(engine.identity):
        return "built from another graph than the bundle's"
    here = gpu()
    return engine.identity.mismatch(load(engine.identity.flavour).__version__, here.name, here.compute_capability)


def holding(engines: Sequence[Engine], slices: int, height: int, width: int) -> Engine | None:
    """The latest engine that takes a whole stack; if none does, the one that takes most of its slices at a time.

    None if the slices themselves are too large for all of them.
    """
    latest_first = [
        engine
        for engine in reversed(engines)
        if (profile := engine.identity.profile).takes(profile.smallest[0], height, width)
    ]
    whole = [engine for engine in latest_first if engine.identity.profile.takes(slices, height, width)]
    return whole[0] if whole else max(latest_first, key=lambda each: each.identity.profile.largest[0], default=None)
