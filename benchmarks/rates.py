"""What the machine can do: its matrix rate in each precision and its memory bandwidth, measured.

    python -m lesionrt.benchmarks.rates THREADS

The CPU and, where PyTorch sees one, the GPU.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIZE = 2048  # of the square matrices: far larger than the caches' tiles, a fraction of a second on two cores
GPU_SIZE = 8192
STREAM_BYTES = 2**28  # of each of three arrays, so that no cache holds them
CPU_COMPUTED_IN = {"fp16": "fp32"}  # ONNX Runtime's CPU casts most half-precision operators to float32 and back
SECONDS = 1.0  # for which each is repeated; the best counts, because the limit is asked for


def best_seconds(run: Callable[[], Any], seconds: float = SECONDS) -> float:
    """The shortest of repeated runs after one to warm up."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def measure(threads: int, seconds: float = SECONDS) -> dict[str, Any]:
    """By device, ``cpu`` and ``cuda``: FLOP/s of a matrix product by precision, and bytes/s of ``a = b + 3 c``.

    For the CPU with ``computed_in``: precisions that are computed in another one there.
    """
    try:
        import torch
    except ImportError:
        return {"cpu": {**_with_numpy(seconds), "computed_in": CPU_COMPUTED_IN}}
    torch.set_num_threads(threads)
    found = {"cpu": {**_with_torch("cpu", seconds), "computed_in": CPU_COMPUTED_IN}}
    return found | ({"cuda": _with_torch("cuda", seconds)} if torch.cuda.is_available() else {})


def best_of(one: Any, other: Any) -> Any:
    """The larger of every rate in two measurements: a shared machine is slower at times than it can be.

    >>> best_of({"cpu": {"by": "torch", "bytes_per_s": 1.5}}, {"cpu": {"by": "torch", "bytes_per_s": 2.5}})
    {'cpu': {'by': 'torch', 'bytes_per_s': 2.5}}
    """
    if isinstance(one, dict):
        return {name: best_of(value, other[name]) for name, value in one.items()}
    return max(one, other) if isinstance(one, float) else one


def _with_torch(device: str, seconds: float) -> dict[str, Any]:
    import torch

    def timed(run: Callable[[], Any]) -> float:
        def whole() -> None:
            run()
            if device == "cuda":
                torch.cuda.synchronize()

        return best_seconds(whole, seconds)

    size = GPU_SIZE if device == "cuda" else SIZE
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device == "cuda":
        kinds |= {"tf32": torch.float32, "fp16": torch.float16}
    rates = {}
    with torch.inference_mode():
        for name, dtype in kinds.items():
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            rates[name] = 2 * size**3 / timed(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        one, other, result = (torch.ones(STREAM_BYTES // 4, device=device) for _ in range(3))
        bandwidth = 3 * STREAM_BYTES / timed(lambda: torch.add(one, other, alpha=3, out=result))
    return {"by": f"torch {torch.__version__}", "flops_per_s": rates, "bytes_per_s": bandwidth, "matrix_size": size}


def _with_numpy(seconds: float) -> dict[str, Any]:
    a, b = (np.random.default_rng(seed).random((SIZE, SIZE), np.float32) for seed in range(2))
    out = np.empty_like(a)
    rate = 2 * SIZE**3 / best_seconds(lambda: np.matmul(a, b, out=out), seconds)
    one, other = (np.ones(STREAM_BYTES // 4, np.float32) for _ in range(2))
    bandwidth = 3 * STREAM_BYTES / best_seconds(lambda: np.add(one, other, out=other), seconds)
    by = f"numpy {np.__version__}, bandwidth with one thread"
    return {"by": by, "flops_per_s": {"fp32": rate}, "bytes_per_s": bandwidth, "matrix_size": SIZE}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
