"""TensorRT's module: what it says, by thread, and which versions of it are refused."""

import _thread
import threading
from types import SimpleNamespace

from lesionrt.runtime.engines.library import Log

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
