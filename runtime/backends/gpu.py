"""Which NVIDIA GPUs the driver sees."""

import subprocess
from functools import cache


@cache
def gpus() -> tuple[str, ...]:
    """Names and driver of the NVIDIA GPUs here, none where there is no driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(
        f"{name} (driver {driver})"
        for name, driver in (line.split(", ", 1) for line in answer.splitlines() if ", " in line)
    )
