"""TensorRT's module: what it says, by thread, and which versions of it are refused."""

import _thread
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lesionrt.runtime.backends import probe
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.engines.build import _use_timings, build_engine
from lesionrt.runtime.engines.library import Log, load
from lesionrt.runtime.engines.wanted import Wanted
from lesionrt.runtime.errors import UnavailableError

TRT = SimpleNamespace(ILogger=object)


def test_a_threads_errors_are_in_no_other_threads_message() -> None:
    log, both_failed = Log(TRT), threading.Barrier(2)
    messages: dict[str, str] = {}

    def fail(name: str) -> None:
        log.logger.log(SimpleNamespace(name="ERROR"), f"{name} failed")
        both_failed.wait(timeout=60)
        messages[name] = log.text_of_errors()

    threads = [threading.Thread(target=fail, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert messages == {"one": "one failed", "other": "other failed"}
    assert log.errors == []


def test_an_error_of_a_thread_that_tensorrt_started_is_not_lost() -> None:
    log, said = Log(TRT), threading.Event()

    def work() -> None:
        log.logger.log(SimpleNamespace(name="INTERNAL_ERROR"), "a worker failed")
        said.set()

    _thread.start_new_thread(work, ())  # unknown to `threading`, as TensorRT's are
    assert said.wait(timeout=60)
    assert log.text_of_errors() == "a worker failed"
    assert log.text_of_errors() == "TensorRT gave no reason"


def installed(monkeypatch: pytest.MonkeyPatch, version: str, **parts: object) -> None:
    """A TensorRT of some version, as far as its age is looked at."""
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    context = SimpleNamespace(set_device_memory=0, update_device_memory_size_for_shapes=0)
    has = {
        "DataType": SimpleNamespace(BF16=0),
        "ExecutionContextAllocationStrategy": SimpleNamespace(USER_MANAGED=0),
        "IExecutionContext": context,
        "PreviewFeature": SimpleNamespace(RUNTIME_ACTIVATION_RESIZE_10_10=0),
    }
    vars(module).update({"__version__": version, **has, **parts})
    monkeypatch.setitem(sys.modules, "tensorrt", module)


@pytest.mark.parametrize(
    ("version", "parts", "finding"),
    [
        ("10.11.0.33", {}, "TensorRT 10.11.0.33 is too old; expected 10.12 or later"),
        (
            "10.3.0.26",
            {"PreviewFeature": None},
            "TensorRT 10.3.0.26 has no PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10; expected 10.12 or later",
        ),
        ("12.0.0.1", {"DataType": None}, "TensorRT 12.0.0.1 has no DataType.BF16; expected 10.12 or later"),
    ],
)
def test_a_tensorrt_that_is_too_old_is_refused_by_probe_and_build_with_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, version: str, parts: dict[str, object], finding: str
) -> None:
    installed(monkeypatch, version, **parts)
    found = probe("tensorrt")
    assert found.problem == finding
    assert "pip install --upgrade 'lesionrt[tensorrt]'" in str(found.remedy)
    with pytest.raises(UnavailableError, match=finding):
        build_engine(load_bundle(tiny_bundle), Wanted("tensorrt"), lambda *built: (None, None))


@pytest.mark.parametrize("version", ["10.12.0.36", "10.13.3.9", "11.4.0.106"])
def test_a_tensorrt_that_is_new_enough_is_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    installed(monkeypatch, version, PreviewFeature=None)
    assert load("tensorrt").__version__ == version


class Config:
    """A builder's configuration that takes some timing caches and no others."""

    def __init__(self, *takes: bytes) -> None:
        self.takes, self.tried, self.has = takes, list[bytes](), None

    def create_timing_cache(self, content: bytes) -> bytes | None:
        self.tried.append(content)
        return None if content == b"damaged" else content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.has = cache if cache in self.takes else self.has
        return cache in self.takes


@pytest.mark.parametrize(
    ("known", "used"), [(b"timings", b"timings"), (b"another GPU's", b""), (b"damaged", b""), (None, b"")]
)
def test_timings_are_reused_unless_they_are_damaged_or_another_gpus(
    tmp_path: Path, known: bytes | None, used: bytes
) -> None:
    trt, file = SimpleNamespace(__name__="tensorrt", __version__="11.4", ILogger=object), tmp_path / "timing.cache"
    if known is not None:
        file.write_bytes(known)
    config = Config(b"timings", b"")
    assert _use_timings(config, file, trt, Log(trt)) == config.has == used
    with pytest.raises(UnavailableError, match=r"takes no timing cache: TensorRT gave no reason"):
        _use_timings(Config(), file, trt, Log(trt))
