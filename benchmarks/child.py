"""A process that measures one case, as its parent sees it."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lesionrt.benchmarks.worker import Order
from lesionrt.runtime.errors import UnavailableError, last_line

LIMIT_S = 3600.0  # for one answer; a process that hangs is ended


def environment(threads: int, cache: Path, precision: str = "") -> dict[str, str]:
    """Of a measuring process: its thread count, caches of compiled kernels that begin empty, and no TF32 for float32."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    names = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}
    caches = {"XDG_CACHE_HOME": str(cache), **{name: str(cache / folder) for name, folder in names.items()}}
    exact = {"NVIDIA_TF32_OVERRIDE": "0"} if precision == "fp32" else {}  # which libraries multiply in, unasked
    return {**os.environ, **counts, **caches, **exact}


class Child:
    """A measuring process; a context manager that ends it."""

    def __init__(self, order: Order, folder: Path, name: str) -> None:
        self._log = folder / f"{name}.log"
        self.begun = time.monotonic()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lesionrt.benchmarks.worker", json.dumps(asdict(order))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(order.threads, folder / f"cache-{order.case['name']}", order.case["precision"]),
            )

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """Give an order and wait for its answer.

        Raises
        ------
        UnavailableError
            If it fails, hangs or ends.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        alarm = threading.Timer(LIMIT_S, self._process.kill)
        alarm.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            alarm.cancel()
        if not line:
            last = last_line(self._log.read_text(errors="replace"))
            raise UnavailableError(f"its process ended with code {self._process.wait()}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UnavailableError(answer["error"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()

    def close(self) -> None:
        """End the process, which frees its memory; may be called again."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
