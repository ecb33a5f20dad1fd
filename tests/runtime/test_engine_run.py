"""Out of memory and a lost GPU. pycuda's driver and TensorRT are stand-ins, because this runs where there is no GPU: they
keep device memory in a dictionary and fail where they are told to. All that is ours, `cuda.py` too, is the real one.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lesionrt.runtime.backends import cuda, engine_backend, engine_group
from lesionrt.runtime.backends.engine_backend import EngineBackend
from lesionrt.runtime.backends.engine_group import EngineGroup
from lesionrt.runtime.backends.engine_loaded import LoadedEngine, runtime_cache_file
from lesionrt.runtime.engines.identity import Engine, Identity, Profile
from lesionrt.runtime.errors import OutputError, StackError, UnavailableError, UsageError

PROFILE = Profile((3, 4, 4), (16, 8, 8), (40, 8, 8))
IDENTITY = Identity("ab" * 32, "tensorrt", "11.4", "fp32", "A GPU", "8.6", (), PROFILE, 2**30, ())
SLICES = np.random.default_rng(0).normal(size=(18, 1, 8, 8)).astype(np.float32)
EXPECTED = (SLICES[:-2] + SLICES[2:])[:, 0]


class DriverError(Exception):
    """pycuda's base of errors."""


class DriverMemoryError(DriverError):
    """pycuda's, where memory ends."""


class Gpu:
    """What pycuda's driver shows of a GPU: memory that ends at a number of bytes, and calls that fail once it is lost."""

    Error, MemoryError = DriverError, DriverMemoryError

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.room, self.lost, self.next = 2**20, False, 256
        self.pushed: list[object] = []
        context = SimpleNamespace(push=lambda: self.pushed.append(context), detach=self.detach, valid=True)
        self.Context = SimpleNamespace(pop=self.pop, synchronize=self.answer, get_current=self.drop_detached)
        self.primary = context
        self.event_flags = SimpleNamespace(DISABLE_TIMING=0)
        named = SimpleNamespace(
            name=lambda: "A GPU", compute_capability=lambda: (8, 6), total_memory=lambda: 2**30,
            retain_primary_context=lambda: context,
        )  # fmt: skip
        self.Device: Any = lambda ordinal: named
        self.Device.count = lambda: 1
        self.Event = lambda flags: SimpleNamespace(record=self.answer, synchronize=self.answer)
        self.Stream = lambda flags: SimpleNamespace(handle=0, wait_for_event=self.answer, synchronize=self.answer)

    def detach(self) -> None:
        if not self.primary.valid:
            raise DriverError("cannot detach from invalid context")
        self.primary.valid = False

    def drop_detached(self) -> None:
        if not self.primary.valid:
            self.pushed.clear()

    def pop(self) -> None:
        self.answer()
        if not self.pushed:
            raise DriverError("cannot pop non-current context")
        self.pushed.pop()

    def answer(self, *what: object) -> None:
        if self.lost:
            raise DriverError("cuCtxSynchronize failed: an illegal memory access was encountered")

    def get_driver_version(self) -> int:
        return 13000

    def mem_alloc(self, nbytes: int) -> Any:
        self.answer()
        if sum(block.nbytes for block in self.blocks.values()) + nbytes > self.room:
            raise DriverMemoryError("cuMemAlloc failed: out of memory")
        address, self.next = self.next, self.next + 2**20
        self.blocks[address] = np.zeros(nbytes, np.uint8)
        return type("Block", (int,), {"free": lambda block: self.free(int(block))})(address)

    def free(self, address: int) -> None:
        self.answer()
        del self.blocks[address]

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        memory = type("Pinned", (np.ndarray,), {"free": lambda array: None})
        return np.ndarray(shape, dtype, memory(int(np.prod(shape)) * 4, np.uint8))

    def memcpy_htod_async(self, address: int, array: np.ndarray, stream: object) -> None:
        self.blocks[address][: array.nbytes] = array.view(np.uint8).ravel()

    def memcpy_dtoh_async(self, array: np.ndarray, address: int, stream: object) -> None:
        array[...] = self.blocks[address][: array.nbytes].view(np.float32).reshape(array.shape)


class Context:
    """An execution context: a slice's lesion is the sum of its neighbours."""

    def __init__(self, gpu: Gpu, run: Callable[[], bool]) -> None:
        self.gpu, self.run, self.addresses = gpu, run, dict[str, int]()
        self.memory: Callable[[int], None] = lambda address: None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0] - 2, *self.shape[2:])

    def update_device_memory_size_for_shapes(self) -> int:
        return 4 * int(np.prod(self.shape))

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.memory(address)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self.run():
            return False
        slices = self.gpu.blocks[self.addresses["slices"]].view(np.float32)[: np.prod(self.shape)].reshape(self.shape)
        lesion = (slices[:-2] + slices[2:]).view(np.uint8).ravel()
        self.gpu.blocks[self.addresses["lesion"]][: lesion.size] = lesion
        return True


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    found = Gpu()
    monkeypatch.setattr(cuda, "_driver", lambda: found)
    for cached in (cuda.gpu, cuda._primary_context):
        cached.cache_clear()
    yield found
    assert found.pushed == []  # pycuda would end the process
    for cached in (cuda.gpu, cuda._primary_context):
        cached.cache_clear()
    cuda._given_up.clear()


@pytest.fixture
def backend(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> EngineBackend:
    """An engine whose runs go as `backend.run` says, with what TensorRT logs about it."""
    strategy = SimpleNamespace(USER_MANAGED=0)
    trt = SimpleNamespace(
        __name__="tensorrt", __version__="11.4", ILogger=object, ExecutionContextAllocationStrategy=strategy
    )

    def run() -> bool:
        message = opened.run()
        if message is not None:
            opened._loaded.log.logger.log(SimpleNamespace(name="ERROR"), message)
        return message is None

    engine = SimpleNamespace(create_execution_context=lambda strategy: Context(gpu, run))
    trt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    monkeypatch.setattr(engine_backend, "load", lambda flavour: trt)
    opened: Any = EngineBackend(Engine(IDENTITY.file_name, IDENTITY, {}), b"plan")
    opened.run = lambda: None
    return opened  # type: ignore[no-any-return]


def test_stacks_run_and_their_memory_is_kept_and_freed(backend: EngineBackend, gpu: Gpu) -> None:
    for chunk in (None, 16, 5, 1):
        np.testing.assert_array_equal(backend.infer_stack(SLICES, chunk), EXPECTED)
    assert gpu.blocks
    with pytest.raises(StackError, match="--max-size"):
        backend.infer_stack(np.zeros((3, 1, 12, 8), np.float32))
    backend.__exit__(None, None, None)
    assert gpu.blocks == {}


def test_buffers_are_allocated_anew_only_for_a_larger_volume(backend: EngineBackend, gpu: Gpu) -> None:
    def run(slices: np.ndarray) -> int:
        np.testing.assert_array_equal(backend.infer_stack(slices), (slices[:-2] + slices[2:])[:, 0])
        return gpu.next

    first = run(SLICES)
    assert [run(stack) for stack in (SLICES[:5], SLICES[..., :4], SLICES)] == [first] * 3
    larger = run(np.concatenate([SLICES, SLICES]))
    assert larger > first
    assert len(gpu.blocks) == 5  # the context's, and two slots' slices and lesion: the smaller ones are gone
    assert run(SLICES) == larger


def test_where_the_largest_of_every_buffer_does_not_fit_what_is_needed_does(backend: EngineBackend, gpu: Gpu) -> None:
    backend.infer_stack(SLICES[:12])  # 768 numbers of slices, 640 of lesion
    gpu.room = sum(block.nbytes for block in gpu.blocks.values())
    narrow = np.concatenate([SLICES, SLICES])[:23, :, :, :4]  # 736 and 672
    np.testing.assert_array_equal(backend.infer_stack(narrow), (narrow[:-2] + narrow[2:])[:, 0])
    assert backend.warnings == []


def test_idle_memory_is_given_back_before_the_chunk_is_halved(backend: EngineBackend, gpu: Gpu) -> None:
    with backend._lane() as lane:  # as another thread would hold it
        lane.run(SLICES, 16, None)
        backend.infer_stack(SLICES[:3])
    used = sum(block.nbytes for block in gpu.blocks.values())
    assert len(backend._idle) == 2
    gpu.room = used
    larger = np.concatenate([SLICES, SLICES])[:20]
    np.testing.assert_array_equal(backend.infer_stack(larger), (larger[:-2] + larger[2:])[:, 0])
    assert backend.warnings == []


@pytest.mark.parametrize("freed", [True, False])
def test_even_a_single_slice_is_tried_again_once_if_others_gave_memory_back(
    backend: EngineBackend, gpu: Gpu, freed: bool
) -> None:
    asked = []

    def release() -> bool:
        asked.append(True)
        gpu.room = 2**20 if freed else gpu.room
        return True

    gpu.room = 100
    if freed:
        np.testing.assert_array_equal(backend.infer_stack(SLICES[:3], release=release), EXPECTED[:1])
    else:
        with pytest.raises(UnavailableError, match="no memory for a single slice"):
            backend.infer_stack(SLICES[:3], release=release)
    assert asked == [True]


def test_a_group_gives_back_what_its_other_engines_hold(
    backend: EngineBackend, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(IDENTITY, profile=Profile((3, 4, 4), (3, 8, 8), (3, 8, 8)))
    engines = [Engine(each.file_name, each, {}) for each in (IDENTITY, small)]
    monkeypatch.setattr(engine_group, "read_plan", lambda bundle, engine: b"plan")
    bundle: Any = None
    with EngineGroup(bundle, engines) as group:
        group.infer_stack(SLICES)
        gpu.room = sum(block.nbytes for block in gpu.blocks.values())
        np.testing.assert_array_equal(group.infer_stack(SLICES[:3]), EXPECTED[:1])
        assert group.warnings == []
        assert len(group._loaded) == 2
    with pytest.raises(UsageError, match="is closed"):
        group.infer_stack(SLICES)


def test_a_closed_backend_says_so(backend: EngineBackend, gpu: Gpu) -> None:
    with backend:
        backend.infer_stack(SLICES)
    with pytest.raises(UsageError, match="is closed; use it inside its `with` block"):
        backend.infer({"slices": SLICES})


def test_what_runs_while_the_backend_is_closed_is_closed_when_it_returns(backend: Any, gpu: Gpu) -> None:
    backend.run = lambda: backend.__exit__(None, None, None)
    np.testing.assert_array_equal(backend.infer_stack(SLICES), EXPECTED)
    assert (backend._idle, gpu.blocks) == ([], {})


def test_out_of_memory_halves_the_chunk_warns_and_goes_on(backend: EngineBackend, gpu: Gpu) -> None:
    gpu.room = 12000  # bytes; 16 slices at a time need more
    np.testing.assert_array_equal(backend.infer_stack(SLICES), EXPECTED)
    assert ["8 slices at a time" in warning for warning in backend.warnings] == [True]
    np.testing.assert_array_equal(backend.infer_stack(SLICES), EXPECTED)
    assert len(backend.warnings) == 1
    gpu.room = 100
    backend.release_idle()
    with pytest.raises(UnavailableError, match="no memory for a single slice of 8x8"):
        backend.infer_stack(SLICES)
    assert gpu.blocks == {}


def test_tensorrts_own_out_of_memory_counts_too(backend: Any) -> None:
    answers = iter(["CUDA error 2: out of memory"])
    backend.run = lambda: next(answers, None)
    np.testing.assert_array_equal(backend.infer_stack(SLICES), EXPECTED)
    assert "8 slices at a time" in backend.warnings[0]


def test_any_other_failure_is_an_error_after_which_it_goes_on(backend: Any, gpu: Gpu) -> None:
    answers = iter(["kernel failed"])
    backend.run = lambda: next(answers, None)
    with pytest.raises(UnavailableError, match=r"tensorrt 11\.4 could not run: kernel failed"):
        backend.infer_stack(SLICES)
    assert gpu.blocks == {}
    np.testing.assert_array_equal(backend.infer_stack(SLICES), EXPECTED)


def test_a_lost_gpu_is_exit_code_4_at_once_and_for_good(backend: Any, gpu: Gpu) -> None:
    def lose() -> str:
        gpu.lost = True
        return "Cuda failure: an illegal memory access was encountered"

    backend.run = lose
    with pytest.raises(cuda.DeviceError, match=r"A GPU .*is lost, start it again.*could not run") as caught:
        backend.infer_stack(SLICES)
    assert caught.value.exit_code == 4
    with pytest.raises(cuda.DeviceError, match="start it again"):
        backend.infer_stack(SLICES)
    assert backend._idle == []
    backend.__exit__(None, None, None)
    assert backend._loaded.engine is None


def test_a_gpu_that_is_lost_between_two_runs_is_lost_for_good(backend: Any, gpu: Gpu) -> None:
    def spoiled(flags: int) -> None:
        gpu.lost = True
        gpu.answer()

    gpu.Stream = spoiled
    with pytest.raises(cuda.DeviceError, match="start it again"):
        backend.infer_stack(SLICES)
    assert backend._lost is not None


def test_what_cannot_be_kept_of_a_good_run_is_a_warning(backend: Any) -> None:
    backend._loaded._cache, backend._loaded._cache_file = SimpleNamespace(serialize=lambda: None), Path("there")
    np.testing.assert_array_equal(backend.infer_stack(SLICES), EXPECTED)
    assert ["could not give its runtime cache" in warning for warning in backend.warnings] == [True]
    assert len(backend._idle) == 1
    np.testing.assert_array_equal(backend.infer_stack(SLICES), EXPECTED)
    assert len(backend.warnings) == 1


def test_memory_that_tensorrt_refuses_only_in_its_log_is_an_error(backend: Any) -> None:
    def refuse(address: int) -> None:
        backend._loaded.log.logger.log(SimpleNamespace(name="ERROR"), "memory is not aligned")

    created = backend._loaded.engine.create_execution_context

    def context(strategy: object) -> Context:
        made: Context = created(strategy)
        made.memory = refuse
        return made

    backend._loaded.engine.create_execution_context = context
    with pytest.raises(UnavailableError, match=r"could not take its memory: memory is not aligned"):
        backend.infer_stack(SLICES)


def test_a_running_backend_keeps_no_log(backend: Any) -> None:
    backend._loaded.log.logger.log(SimpleNamespace(name="INFO"), "a line")
    assert backend._loaded.log.lines == []


class Rtx:
    """TensorRT for RTX, as far as an engine is loaded: its cache, and how it was set up."""

    __name__, __version__, ILogger = "tensorrt_rtx", "1.7", object
    IRuntimeCache = object
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        cache = SimpleNamespace(deserialize=self.taken.append, serialize=lambda: b"compiled")
        self.config = SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: setattr(self, "strategy", strategy),
            create_runtime_cache=lambda: cache,
            set_runtime_cache=lambda given: given is cache,
        )
        engine = SimpleNamespace(
            create_runtime_config=lambda: self.config, create_execution_context=lambda config: config
        )
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)


def test_what_rtx_compiled_is_kept_and_taken_again(tmp_path: Path) -> None:
    file, rtx = tmp_path / "lesionrt/rtx.cache", Rtx()
    loaded = LoadedEngine(rtx, b"plan", file)
    assert loaded.execution_context() is rtx.config
    assert (rtx.strategy, rtx.config.dynamic_shapes_kernel_specialization_strategy) == ("user managed", "eager")
    assert rtx.taken == []
    loaded.save_runtime_cache()
    assert file.read_bytes() == b"compiled"
    LoadedEngine(rtx, b"plan", file).close()
    assert rtx.taken == [b"compiled"]


def test_where_nothing_can_be_kept_an_engine_loads_all_the_same(tmp_path: Path) -> None:
    loaded = LoadedEngine(Rtx(), b"plan", tmp_path)  # a folder, which is no file to read or to write
    with pytest.raises(OutputError, match=str(tmp_path)):
        loaded.save_runtime_cache()
    loaded.close()
    LoadedEngine(Rtx(), b"plan", None).save_runtime_cache()


def test_only_what_compiles_looks_for_a_folder_to_keep_it_in(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    here, rtx = cuda.gpu(), replace(IDENTITY, flavour="rtx")
    assert runtime_cache_file(Rtx(), rtx, here) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime_cache_file(SimpleNamespace(), IDENTITY, here) is None
    assert runtime_cache_file(Rtx(), rtx, here) != runtime_cache_file(Rtx(), replace(rtx, version="1.8"), here)


def test_a_driver_too_old_for_tensorrt_is_an_error_with_the_remedy() -> None:
    def too_old(logger: Any) -> None:
        logger.log(SimpleNamespace(name="ERROR"), "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    rtx = Rtx()
    rtx.Runtime = too_old  # type: ignore[assignment]
    with pytest.raises(UnavailableError, match=r"1\.7 does not start: .* error: 35\. Install the newest NVIDIA driver"):
        LoadedEngine(rtx, b"plan", None)
