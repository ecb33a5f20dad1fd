"""On what was measured."""

import os
import platform
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.doctor import PACKAGES
from lesionrt.runtime.processor import cores

# What decides how fast a CPU multiplies in each precision.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "avx_vnni")
LOOK_S = 0.1  # between two looks at a GPU's memory


def describe() -> dict[str, Any]:
    """Processor, memory, GPUs, system and library versions."""
    info = _first_processor()
    flags = info.get("flags", "").split()
    return {
        "cpu": info.get("model name", platform.machine()),
        "architecture": platform.machine(),
        "cores": cores(),
        "flags": [name for name in FLAGS if name in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": list(gpus()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in (*PACKAGES, "nncf") if (found := _version(name)) is not None},
    }


def device_memory_mb() -> float | None:
    """Memory in use on all NVIDIA GPUs, by everyone: which of them computes is not asked; None where there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return sum(map(float, answer.split())) * 2**20 / 1e6 if answer.split() else None
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


@contextmanager
def device_peak() -> Iterator[Callable[[], float | None]]:
    """What tells, afterwards, the most that :func:`device_memory_mb` said meanwhile; None where there is no GPU."""
    seen = [device_memory_mb()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            seen.append(device_memory_mb())

    watcher = threading.Thread(target=look)
    if seen[0] is not None:
        watcher.start()
    try:
        yield lambda: max((value for value in seen if value is not None), default=None)
    finally:
        over.set()
        if watcher.ident is not None:
            watcher.join()
            seen.append(device_memory_mb())


def _first_processor() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
