"""The compute capabilities that TensorRT for RTX builds for."""

from typing import Any

from lesionrt.runtime.backends.cuda import gpu
from lesionrt.runtime.engines.identity import number
from lesionrt.runtime.errors import UnavailableError, UsageError


def listed(trt: Any) -> dict[str, Any]:
    """What a library names, as ``8.6``; nothing where it builds for the GPU at hand only."""
    members: dict[str, Any] = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name[2:].isdigit()}


def too_old(trt: Any, capability: str) -> bool:
    """Whether a GPU is older than everything that a library names; of newer ones it may just not know."""
    known = listed(trt)
    return bool(known) and number(capability) < min(map(number, known))


def set_targets(trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    """Without this an RTX engine is for every RTX GPU from Ampere on.

    A GPU that the library does not name can be built for on itself, as the one at hand.

    Raises
    ------
    UsageError
        If this version of RTX does not know a target.
    UnavailableError
        If it refuses one.
    """
    if not targets:
        return
    known = listed(trt)
    if set(targets) - set(known):
        known = {**known, **_at_hand(trt)}
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise UsageError(
            f"--target {', '.join(unknown)} is not known to {trt.__name__} {trt.__version__}; expected some of "
            f"{', '.join(known)}; build for another on the GPU that has it"
        )
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        # Refused, it would build for the GPU at hand and say nothing.
        if not config.set_compute_capability(known[target], index):
            raise UnavailableError(f"{trt.__name__} {trt.__version__} refuses compute capability {target}")


def _at_hand(trt: Any) -> dict[str, Any]:
    try:
        return {gpu().compute_capability: trt.ComputeCapability.CURRENT}
    except UnavailableError:
        return {}
