"""What can run here, and what would mend the rest."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lesionrt.runtime.backends import NAMES, choose, needs_engine, probe
from lesionrt.runtime.backends.gpu import gpus
from lesionrt.runtime.backends.onnx_session import conflict
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.errors import InputError, UnavailableError
from lesionrt.runtime.segmenter import DEFAULT_MODEL

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
    return {
        "system": {"python": platform.python_version(), "platform": platform.platform(), "machine": platform.machine()},
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "gpus": list(gpus()),
        "backends": [vars(probe(name)) for name in NAMES],
        "auto": _auto(),
        "conflict": conflict(),
    }


def _auto() -> dict[str, Any]:
    """What ``auto`` chooses for the default bundle; where there is none, for a bundle without engines and for one with."""
    try:
        bundle = load_bundle(DEFAULT_MODEL)
        of, refused = "the default bundle", {}
    except InputError:
        lacking = "the default bundle is damaged" if DEFAULT_MODEL.exists() else "no default bundle is installed"
        bundle, of = None, f"a bundle without engines ({lacking})"
        refused = {name: "it runs engines only" for name in NAMES if needs_engine(name)}
    with_engine = [name for name in NAMES if needs_engine(name) and probe(name).problem is None]
    try:
        chosen, why = choose("auto", bundle, refused)
    except UnavailableError:
        chosen, why = None, "no backend can run here"
    return {"backend": chosen, "why": why, "for": of, "with_an_engine": with_engine[0] if with_engine else None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
