"""The contract of chunked inference: chunks change neither the numbers nor their order."""

from types import TracebackType
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionrt.runtime.backends import Arrays, Stream
from lesionrt.runtime.chunks import default_chunk, infer_in_chunks
from lesionrt.runtime.errors import ParityError

Array = NDArray[np.float32]


class Neighbours:
    """A backend whose answer depends on a slice, on either neighbour and on which is which."""

    name = library = device = precision = "numpy"

    def __init__(self) -> None:
        self.fed: list[int] = []  # slices of each call

    def infer(self, feed: Arrays) -> dict[str, Array]:
        x = feed["slices"][:, 0]
        self.fed.append(len(x))
        return {"lesion": (x[:-2] + 10 * x[1:-1] + 100 * x[2:]).astype(np.float32)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class StreamingNeighbours(Neighbours):
    """The same, but it keeps the last two slices itself."""

    def stream(self) -> Stream:
        before = np.empty((0, 1, 2, 3), np.float32)

        def following(slices: Array) -> Array:
            nonlocal before
            self.fed.append(len(slices))
            known = np.concatenate([before, slices])
            before = known[-2:]
            return Neighbours().infer({"slices": known})["lesion"]

        return following


class WholeStack(Neighbours):
    """It cuts a stack itself, and loses the last slice."""

    def infer_stack(self, slices: Array, chunk: int | None, progress: object) -> Array:
        return self.infer({"slices": slices})["lesion"][:-1]


def stack(n: int) -> Array:
    """(n + 2, 1, 2, 3), every value once."""
    return np.arange((n + 2) * 6, dtype=np.float32).reshape(n + 2, 1, 2, 3)


def test_each_slice_sees_the_one_before_and_the_one_after() -> None:
    slices = np.array([1, 2, 3, 4], np.float32).reshape(4, 1, 1, 1)
    assert infer_in_chunks(Neighbours(), slices, chunk=1).tolist() == [[[321]], [[432]]]


@pytest.mark.parametrize("backend", [Neighbours, StreamingNeighbours])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 6, 7, 8, 100, None])
def test_any_chunk_gives_the_same_as_window_by_window(chunk: int | None, backend: type[Neighbours]) -> None:
    slices = stack(7)
    windows = [Neighbours().infer({"slices": slices[n : n + 3]})["lesion"][0] for n in range(7)]
    found = infer_in_chunks(backend(), slices, chunk)
    np.testing.assert_array_equal(found, windows)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("chunk", "fed"), [(1, [3] * 7), (2, [4, 4, 4, 3]), (3, [5, 5, 3]), (7, [9]), (100, [9]), (None, [9])]
)
def test_a_chunk_is_fed_with_one_slice_more_on_either_side(chunk: int | None, fed: list[int]) -> None:
    backend = Neighbours()
    infer_in_chunks(backend, stack(7), chunk)
    assert backend.fed == fed


@pytest.mark.parametrize(
    ("chunk", "fed"), [(1, [3, 1, 1, 1, 1, 1, 1]), (2, [4, 2, 2, 1]), (3, [5, 3, 1]), (7, [9]), (100, [9]), (None, [9])]
)
def test_a_backend_that_streams_is_fed_with_each_slice_once(chunk: int | None, fed: list[int]) -> None:
    backend = StreamingNeighbours()
    infer_in_chunks(backend, stack(7), chunk)
    assert backend.fed == fed


def test_every_stack_begins_without_the_one_before() -> None:
    backend = StreamingNeighbours()
    np.testing.assert_array_equal(infer_in_chunks(backend, stack(4), 2), infer_in_chunks(backend, stack(4), 2))


@pytest.mark.parametrize(
    ("n", "chunk", "expected"),
    [(5, 2, [(2, 5), (4, 5), (5, 5)]), (4, 2, [(2, 4), (4, 4)]), (1, 9, [(1, 1)]), (0, 3, [])],
)
def test_progress_counts_the_slices_that_are_done(n: int, chunk: int, expected: list[tuple[int, int]]) -> None:
    calls: list[tuple[int, int]] = []
    found = infer_in_chunks(Neighbours(), stack(n), chunk, lambda done, total: calls.append((done, total)))
    assert calls == expected
    assert found.shape == (n, 2, 3)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (160, 160, 8),  # 262144 pixels are 10.2 slices; two are neighbours
        (160, 192, 6),
        (192, 192, 5),
        (256, 256, 2),
        (320, 320, 1),
        (512, 512, 1),
        (2048, 2048, 1),  # never less than one, however large
    ],
)
def test_the_default_chunk_fills_the_budget(height: int, width: int, expected: int) -> None:
    assert default_chunk(height, width) == expected


def test_the_default_chunk_is_the_one_that_is_used() -> None:
    backend = Neighbours()
    infer_in_chunks(backend, np.zeros((8, 1, 256, 256), np.float32))  # 6 output slices, 2 at a time
    assert backend.fed == [4, 4, 4]


def test_a_whole_stack_of_another_shape_is_refused() -> None:
    with pytest.raises(ParityError, match=r"gave lesion \(3, 2, 3\) .* expected \(4, 2, 3\)"):
        infer_in_chunks(WholeStack(), stack(4))
