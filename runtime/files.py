"""Files that are either there as a whole or not at all."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

from lesionrt.runtime.errors import OutputError

PARTIAL = ".lesionrt-{}.partial"  # short: the target's own name may be as long as a name can be


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: bytes) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write_atomically(files: Mapping[Path, bytes], replaced: Collection[Path] = ()) -> None:
    """Write files that belong together: all beside their targets first, then each renamed into place.

    Parameters
    ----------
    files
        Content by target.
    replaced
        Files of an earlier run.  They are removed when all is written and before the first is renamed: a write that
        fails leaves them, an interrupted one leaves the new ones whole, and no old one stands beside the last of the new.

    Raises
    ------
    OutputError
        If a file cannot be written; none is then left half-written.
    """
    partial: dict[Path, Path] = {}
    left: list[tuple[Path, Path | None]] = []  # to be removed, or replaced by what is written
    try:
        for target in (*files, *replaced):
            if target.is_dir():
                raise OutputError(f"{target}: cannot be written, it is a folder")
        for target, content in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial[target] = beside(target)
            with partial[target].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        left = [*((target, None) for target in replaced), *partial.items()]
        while left:
            target = left[0][0]
            _settle(*left[0])
            del left[0]
    except OSError as error:
        named = error.filename if error.filename in map(str, target.parents) else target  # not the hidden partial file
        raise OutputError(f"{named}: cannot be written ({error.strerror})") from error
    finally:
        for waiting in left:  # a signal came between: what is written is not thrown away
            try:
                _settle(*waiting)
            except FileNotFoundError:
                continue  # the signal came right after it
            except OSError:
                break
        for source in partial.values():
            with contextlib.suppress(OSError):
                source.unlink(missing_ok=True)


def _settle(target: Path, source: Path | None) -> None:
    if source is None:
        target.unlink(missing_ok=True)
    else:
        source.replace(target)


def beside(target: Path) -> Path:
    """A free name in the target's folder, hidden and without an ending that anything reads."""
    return target.with_name(PARTIAL.format(secrets.token_hex(4)))
