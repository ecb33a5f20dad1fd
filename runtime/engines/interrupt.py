"""Stopping a build in the middle without losing the way out."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Received:
    signum: int | None = None


@contextmanager
def interruptible(trt: Any) -> Iterator[Any]:
    """A progress monitor that ends the build when SIGINT or SIGTERM comes; the signal takes effect afterwards.

    An exception out of TensorRT's call back into Python would end the process, so the signal is only noted there.

    Raises
    ------
    KeyboardInterrupt
        After SIGINT.
    SystemExit
        After SIGTERM.
    """
    received = _Received()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return received.signum is None

    def note(signum: int, frame: FrameType | None) -> None:
        received.signum = signum

    previous = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield Monitor()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received.signum == signal.SIGINT:
            raise KeyboardInterrupt
        if received.signum is not None:
            sys.exit(128 + received.signum)
