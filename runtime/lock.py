"""One process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lesionrt.runtime.errors import OutputError


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time is inside this for a folder; the others wait, if they may. Nothing is written for it.

    Raises
    ------
    OutputError
        If the folder is missing or cannot be locked, or another process is inside and this one must not wait.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(handle)
            raise
    except BlockingIOError as error:
        raise OutputError(
            f"{folder}: another process works in it; wait until it ends, or give another folder"
        ) from error
    except OSError as error:
        raise OutputError(f"{folder}: cannot be locked ({error.strerror})") from error
    try:
        yield
    finally:
        os.close(handle)
