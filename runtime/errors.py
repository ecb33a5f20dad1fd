"""What can go wrong, by who can mend it.

Each error says which thing, what was found, what was expected and what to do.  The command line
turns it into a message on stderr and its exit code.
"""


class LesionrtError(Exception):
    """Base of all errors that lesionrt raises on purpose."""

    exit_code = 1


class UsageError(LesionrtError, ValueError):
    """Options or arguments that do not fit together."""

    exit_code = 2


class InputError(LesionrtError, ValueError):
    """A file or array that cannot be used."""

    exit_code = 3


class VolumeError(InputError):
    """A FLAIR volume or brain mask that cannot be used."""


class BundleError(InputError):
    """A model bundle that is damaged, incomplete or of another format."""


class StackError(InputError):
    """A stack of slices for which no engine at hand was built."""


class CheckpointError(InputError):
    """A checkpoint that is damaged, incomplete or foreign."""


class DatasetError(InputError):
    """A data set, recipe or run that cannot be trained or evaluated on."""


class OutputError(InputError):
    """A result that cannot be written where it was asked for."""


class UnavailableError(LesionrtError, RuntimeError):
    """A library or a device that is not there."""

    exit_code = 4


class Interrupted(LesionrtError):
    """A training that was asked to stop by a signal, and can be resumed; its exit code is a shell's for that signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class ParityError(LesionrtError, RuntimeError):
    """Two computations that should agree, and do not."""

    exit_code = 5


def first_line(error: Exception) -> str:
    """What a library says of an error, without its details."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(said: str) -> str:
    """What a process, or a library that begins with its own trace, said last."""
    return (said.strip().splitlines() or ["it said nothing"])[-1]
