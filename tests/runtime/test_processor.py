"""How many threads are taken unasked."""

import math
from pathlib import Path

import pytest

from lesionrt.runtime import processor
from lesionrt.runtime.processor import _cores, _granted


def test_two_threads_of_a_core_count_once_and_only_what_may_be_used_counts(tmp_path: Path) -> None:
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"{number}").write_text(f"{siblings}\n")
    assert _cores(range(4), f"{tmp_path}/{{}}") == 2
    assert _cores({0, 2}, f"{tmp_path}/{{}}") == 1
    assert _cores({1, 2}, f"{tmp_path}/{{}}") == 2


def test_where_nothing_is_told_each_processor_is_a_core(tmp_path: Path) -> None:
    assert _cores({0, 3, 5}, f"{tmp_path}/{{}}") == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200000 100000\n", 2), ("150000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", math.inf)],
)
def test_a_container_has_as_many_cores_as_it_is_granted(text: str, expected: float, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert _granted(tmp_path / "cpu.max") == expected
    assert _granted(tmp_path / "none") == math.inf


def test_no_more_threads_are_taken_than_are_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(processor, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(processor, "_cores", lambda *_: 8)
    assert processor.cores() == 1
