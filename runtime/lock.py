"""One process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lesionrt.runtime.errors import OutputError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside this for the same folder; nothing is written for it.

    Raises
    ------
    OutputError
        If the folder is missing or cannot be locked.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except BaseException:
            os.close(handle)
            raise
    except OSError as error:
        raise OutputError(f"{folder}: cannot be locked ({error.strerror})") from error
    try:
        yield
    finally:
        os.close(handle)
