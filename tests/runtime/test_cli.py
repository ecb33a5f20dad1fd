"""What every verb of the command line does alike."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, get_args

import pytest

from lesionrt.runtime.backends.cuda import DeviceError, OutOfDeviceMemoryError
from lesionrt.runtime.cli import main
from lesionrt.runtime.cli.options import MaxFlipped, MinDice, needs
from lesionrt.runtime.errors import UnavailableError, VolumeError
from lesionrt.runtime.segmenter import Segmenter

Call = Callable[..., tuple[object, str]]
TOO_LONG = "x" * 300  # file systems take 255 bytes
FOLDERS = (
    ("segment", "flair.nii.gz", "-o"),
    ("evaluate", "scans.csv", "-o"),
    ("bench", "bundle", "-o"),
    ("phantom", "-o"),
)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command in this process, in an empty folder; its exit code and what it said on stderr."""

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test process keeps its own
        monkeypatch.setattr(sys, "argv", ["lesionrt", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("verb", FOLDERS, ids=lambda verb: verb[0])
def test_a_path_that_the_file_system_refuses_is_one_line(call: Call, verb: tuple[str, ...]) -> None:
    code, said = call(*verb, f"{TOO_LONG}/out")
    assert code == 3
    assert said.startswith(f"error: {TOO_LONG}")
    assert "cannot be used (File name too long); give another path" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("verb", FOLDERS, ids=lambda verb: verb[0])
@pytest.mark.parametrize("below", ["", "/out"])
def test_a_file_in_place_of_the_results_folder_is_refused_first(
    call: Call, tmp_path: Path, verb: tuple[str, ...], below: str
) -> None:
    (tmp_path / "file").touch()
    assert call(*verb, f"file{below}") == (3, "error: file is a file; expected a folder for the results\n")


def test_nothing_is_made_where_one_of_several_phantoms_exists(call: Call, tmp_path: Path) -> None:
    (tmp_path / "phantom001_mask.nii.gz").touch()
    code, said = call("phantom", "--count", "2", "-o", ".")
    assert code == 3
    assert said.startswith("error: phantom001_mask.nii.gz exists already")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("verb", FOLDERS, ids=lambda verb: verb[0])
def test_a_folder_that_takes_no_files_is_refused_first(call: Call, verb: tuple[str, ...]) -> None:
    code, said = call(*verb, "/proc/out")
    assert code == 3
    assert said.startswith("error: /proc/out: cannot be written (/proc: ")
    assert said.endswith("; give another folder\n")


@pytest.mark.parametrize("failure", [ImportError("undefined symbol: x"), OSError("libcudart.so.12: cannot open")])
def test_a_library_that_does_not_load_is_unavailable(failure: Exception) -> None:
    with (
        pytest.raises(
            UnavailableError, match=rf"\({failure}\)\. Run: pip install --force-reinstall torch onnx onnxscript$"
        ),
        needs("export"),
    ):
        raise failure


@pytest.mark.parametrize(
    "arguments",
    [
        *((*verb, "") for verb in FOLDERS if verb[0] != "phantom"),
        *(("segment", "flair.nii.gz", "-o", "out", option, "") for option in ("--model", "--brain-mask")),
        ("export", "checkpoint.pt", "-o", ""),
        ("train", "scans.csv", "-o", ""),
        ("untrained", "-o", ""),
        ("inspect", ""),
        *((verb, "", "-o", "out") for verb in ("train", "crossval", "evaluate", "bench", "export", "import-official")),
        ("data", "check", ""),
        *(("evaluate", "scans.csv", "-o", "out", option, "") for option in ("--masks", "--model")),
        ("crossval", "scans.csv", "-o", "out", "--evaluate-on", ""),
        ("train", "scans.csv", "-o", "out", "--start", ""),
        ("bench", "bundle", "", "-o", "out"),
        ("bench", "bundle", "flair.nii.gz", "-o", "out", "--reference", ""),
        *(("verify", "bundle", option, "") for option in ("--reference", "--input", "--save-reference")),
        *(("export", "checkpoint.pt", "-o", "out", option, "") for option in ("--input", "--card")),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(call: Call, arguments: tuple[str, ...]) -> None:
    code, said = call(*arguments)
    assert code == 2
    assert "is empty" in said


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (MemoryError(), 3),
        (UnavailableError("ONNX Runtime failed on CPU"), 3),
        (OutOfDeviceMemoryError("no room"), 3),
        (VolumeError("empty"), 3),
        (DeviceError("lost"), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_volume_that_fails_is_a_bad_one_unless_the_device_is_lost(
    call: Call, monkeypatch: pytest.MonkeyPatch, failure: Exception, expected: int
) -> None:
    class Failing(Segmenter):
        def __init__(self, *_: object, **__: object) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    def fail(*_: object) -> NoReturn:
        raise failure

    monkeypatch.setattr("lesionrt.runtime.segmenter.Segmenter", Failing)
    monkeypatch.setattr("lesionrt.runtime.segmenter.load_volume", fail)
    code, said = call("segment", "flair.nii.gz", "-o", "out", "--json")
    assert code == expected
    assert said.startswith("error: flair.nii.gz: ")  # the failure does not name it


def test_help_says_that_two_voxels_may_always_flip() -> None:
    dice, flipped = (get_args(option)[1].help for option in (MinDice, MaxFlipped))
    assert "where more than two voxels flip" in dice
    assert "two voxels always may" in flipped


def test_a_reference_file_needs_the_ending_that_is_read(call: Call) -> None:
    code, said = call("verify", "b", "--input", "f.nii", "--reference", "c.pt", "--save-reference", "ref.dat")
    assert code == 2
    assert said == "error: --save-reference is ref.dat; expected a name that ends in .npz, as --reference\n"


def test_a_seed_beyond_pytorchs_is_a_wrong_option(call: Call) -> None:
    code, said = call("untrained", "--seed", "99999999999999999999", "-o", "untrained.pt")
    assert code == 2
    assert "18446744073709551615" in said
