"""What ONNX Runtime's failures become."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lesionrt.runtime.backends import onnx_cuda, onnx_session
from lesionrt.runtime.backends.cuda import DeviceError
from lesionrt.runtime.backends.onnx_session import OnnxSession
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.errors import UnavailableError, UsageError

FEED = {"slices": np.zeros((3, 1, 4, 4), np.float32)}


class Failing:
    """A session whose runs fail with these words."""

    def __init__(self, words: str) -> None:
        self.words = words

    def run(self, *_: Any) -> Any:
        raise RuntimeError(self.words)


def session(inside: Failing | None) -> OnnxSession:
    made = OnnxSession.__new__(OnnxSession)  # without a graph
    made.device, made._session = "CPU", inside
    return made


@pytest.mark.parametrize(
    ("words", "chunk"),
    [
        ("BFCArena: Failed to allocate memory for requested buffer of size 8", True),
        ("std::bad_alloc", True),
        ("CUDA failure 2: out of memory", True),
        ("Concat: axis 1 has mismatched dimensions of 4 and 5", False),
    ],
)
def test_a_smaller_chunk_is_advised_where_memory_is_missing(words: str, chunk: bool) -> None:
    with pytest.raises(UnavailableError, match="failed on CPU") as caught:
        session(Failing(words)).infer(FEED)
    assert ("--chunk" in str(caught.value)) is chunk


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("CUDA failure 700: an illegal memory access was encountered", True),
        ("CUDNN_FE failure 8: CUDNN_BACKEND_API_FAILED", True),
        ("CUDA failure 2: out of memory", False),
        ("Concat: axis 1 has mismatched dimensions of 4 and 5", False),
    ],
)
def test_a_gpu_that_is_lost_is_told_from_what_a_model_or_memory_lacks(words: str, lost: bool) -> None:
    with pytest.raises(UnavailableError) as caught:
        session(Failing(words)).infer(FEED)
    assert isinstance(caught.value, DeviceError) is lost


def test_files_that_another_distribution_took_along_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = ModuleType("onnxruntime")  # a folder without Python files
    bare.__spec__ = ModuleSpec("onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", bare)
    monkeypatch.setattr(onnx_session, "installed", lambda: {"onnxruntime": "1"})
    found = onnx_session.probe_library("cpu", "CPU", "cpu")
    assert found.problem == "ONNX Runtime is installed but its Python files are not there"
    assert found.remedy == "Run: pip install --force-reinstall onnxruntime"


def test_of_several_gpus_none_is_named_as_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for names, device in ((("A", "A"), "A"), (("B", "A"), "CUDA device 0 of A, B"), ((), "NVIDIA GPU")):
        monkeypatch.setattr(onnx_cuda, "gpus", lambda names=names: names)
        assert onnx_cuda.device() == device


def test_a_gpu_that_does_not_start_is_no_fault_of_the_bundle(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So `auto` goes on to the CPU; and what the library prints of it stays out of the JSON on stdout."""

    def start(*_: Any, **options: Any) -> Any:
        if options["providers"][0][0] == onnx_cuda.PROVIDER:
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")

    library = SimpleNamespace(
        **{"__version__": "1", "SessionOptions": SimpleNamespace, "InferenceSession": start},
        preload_dlls=lambda: print("Failed to load libcublasLt"),
    )
    for module in (onnx_session, onnx_cuda):
        monkeypatch.setattr(module, "load", lambda: library)
    monkeypatch.setattr(onnx_cuda, "gpus", lambda: ["a GPU"])
    with pytest.raises(UnavailableError, match="does not start with CUDAExecutionProvider on a GPU"):
        onnx_cuda.open_backend("cuda", load_bundle(tiny_bundle), "fp32", None)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "Failed to load libcublasLt\n")


def test_a_provider_that_the_session_does_not_list_does_not_count(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fallen:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    library = SimpleNamespace(__version__="1", SessionOptions=SimpleNamespace, InferenceSession=Fallen)
    monkeypatch.setattr(onnx_session, "load", lambda: library)
    with pytest.raises(UnavailableError, match="did not accept CUDAExecutionProvider, only CPUExecutionProvider"):
        OnnxSession("cuda", "a GPU", tiny_bundle / "model_fp32.onnx", "fp32", "CUDAExecutionProvider", None)


def test_a_closed_session_says_so() -> None:
    with pytest.raises(UsageError, match="the segmenter is closed"):
        session(None).infer(FEED)


def test_a_precision_that_it_does_not_compute_is_said_with_what_mends_it(tiny_bundle: Path) -> None:
    graph = tiny_bundle / "model_bf16.onnx"
    with pytest.raises(
        UnavailableError, match=r"does not compute bf16 on CPU .*export the model again with --precision fp32"
    ):
        OnnxSession("cpu", "CPU", graph, "bf16", "CPUExecutionProvider", None)
