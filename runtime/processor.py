"""What this machine's processor is good at."""

import math
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def cores() -> int:
    """Cores that this process may use, and so the threads that are taken unasked.

    Measured in OpenVINO, bfloat16, 46 slices of 160x160 on 2 cores: 13.9 s with one thread, 7.3 s with two. Two threads of one
    core would share its multipliers.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return int(min(_cores(allowed, SIBLINGS), _granted(CPU_MAX)))


def _cores(allowed: Iterable[int], siblings: str) -> int:
    found = set()
    for processor in allowed:
        try:
            found.add(Path(siblings.format(processor)).read_text(encoding="utf-8"))
        except OSError:  # no Linux, or not told: each by itself
            found.add(str(processor))
    return len(found)


def _granted(path: Path) -> float:
    """Cores whose time a container may use (cgroup v2): more threads would be stopped in turns."""
    try:
        quota, period = path.read_text(encoding="utf-8").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no limit, or not told
        return math.inf


@cache
def fast_bfloat16() -> bool:
    """Whether the processor computes faster in bfloat16 than in float32.

    Having its instructions is not enough. Measured with convolutions of this network: an AMD processor with AVX-512 BF16 is
    1.8 times as fast in it as in float32, an Intel processor with AVX-512 BF16 but without AMX takes 1.5 times as long.
    """
    try:
        return _fast_bfloat16(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:  # no Linux: float32 is right anywhere
        return False


def _fast_bfloat16(cpuinfo: str) -> bool:
    """Of what Linux tells of its processors.

    >>> _fast_bfloat16("vendor_id : AuthenticAMD\\nflags : avx512f avx512_bf16")
    True
    >>> _fast_bfloat16("vendor_id : GenuineIntel\\nflags : avx512f avx512_bf16")
    False
    >>> _fast_bfloat16("vendor_id : GenuineIntel\\nflags : avx512_bf16 amx_bf16 amx_tile")
    True
    >>> _fast_bfloat16("Features : asimd sve bf16")
    True
    """
    values: dict[str, str] = {}
    for line in cpuinfo.splitlines():  # of the first processor; the others are alike
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value)
    flags = {*values.get("flags", "").split(), *values.get("Features", "").split()}
    if values.get("vendor_id", "").strip() == "AuthenticAMD":
        flags |= {"bf16"} & {flag.removeprefix("avx512_") for flag in flags}
    return bool(flags & {"bf16", "amx_bf16"})
