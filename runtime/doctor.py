"""What can run here, and what would mend the rest."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lesionrt.runtime.backends import NAMES, choose, probe
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.backends.onnx_session import conflict
from lesionrt.runtime.errors import UnavailableError

PACKAGES = (
    "lesionrt",
    "numpy",
    "scipy",
    "nibabel",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "pycuda",
    "torch",
    "onnx",
    "onnxscript",
)


def examine() -> dict[str, Any]:
    """System, library versions, GPUs and backends, as plain values."""
    try:
        chosen, why = choose("auto")
    except UnavailableError:
        chosen, why = None, "no backend can run here"
    return {
        "system": {"python": platform.python_version(), "platform": platform.platform(), "machine": platform.machine()},
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "gpus": list(gpus()),
        "backends": [vars(probe(name)) for name in NAMES],
        "auto": {"backend": chosen, "why": why},
        "conflict": conflict(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
