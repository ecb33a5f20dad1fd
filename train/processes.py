"""One process or several, and the signals that they get."""

import contextlib
import os
import signal
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from lesionrt.runtime.errors import UnavailableError, first_line


def ignore_signals(worker: int) -> None:
    """A signal to the whole group stops the main process, which then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM until the step in progress is done."""
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda signum, _: caught.append(signum)) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """PyTorch's want of memory, on a GPU or a CPU, as one error that says what to take instead.

    Raises
    ------
    UnavailableError
        If memory is not given.
    """
    try:
        yield
    except UnavailableError:  # a RuntimeError too, which says more
        raise
    except RuntimeError as error:
        text = first_line(error)
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        raise UnavailableError(f"PyTorch got no memory ({text}); take {remedy}") from error


@contextlib.contextmanager
def processes() -> Iterator[tuple[int, int, torch.device]]:
    """Rank, number of processes and device; several processes where ``torchrun`` started them."""
    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda and local >= torch.cuda.device_count():
        raise UnavailableError(
            f"process {local + 1} of this machine has no GPU of its own: {torch.cuda.device_count()} are seen; start fewer with --nproc-per-node"
        )
    if cuda:
        torch.cuda.set_device(device)
    if world == 1:
        yield 0, 1, device
        return
    # Counts and signals stay on the CPU. The first process prepares for as long as it takes.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(days=1))
    try:
        yield dist.get_rank(), world, device
    finally:
        dist.destroy_process_group()
