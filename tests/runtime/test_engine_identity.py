"""What identifies an engine, where it runs, and how a stack is cut for it."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lesionrt.runtime.backends.cuda import Gpu
from lesionrt.runtime.bundle import load_bundle
from lesionrt.runtime.engines import stacks, targets
from lesionrt.runtime.engines.build import _figures
from lesionrt.runtime.engines.command import build_command
from lesionrt.runtime.engines.identity import Engine, Identity, Profile, engines_of
from lesionrt.runtime.engines.network import in_words
from lesionrt.runtime.engines.schedule import spans
from lesionrt.runtime.engines.stacks import BRAIN, first_guess, profile_for, widest
from lesionrt.runtime.engines.wanted import Wanted
from lesionrt.runtime.errors import BundleError, UnavailableError, UsageError

PROFILE = Profile((3, 32, 32), (20, 160, 192), (20, 256, 256))
NATIVE = Identity("ab" * 32, "tensorrt", "11.4.0.106", "fp16", "RTX A4000", "8.6", (), PROFILE, 2**30, ())
RTX = replace(NATIVE, flavour="rtx", version="1.7.1.116", gpu=None, compute_capability=None)


@pytest.mark.parametrize(
    "changed",
    [
        {"onnx_sha256": "cd" * 32},
        {"flavour": "rtx"},
        {"version": "11.4.0.107"},
        {"precision": "bf16"},
        {"gpu": "RTX A5000"},
        {"compute_capability": "8.9"},
        {"targets": ("8.6",)},
        {"profile": replace(PROFILE, largest=(21, 256, 256))},
        {"workspace_bytes": 2**31},
        {"flags": ("TF32",)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_an_engine_depends_on_gives_it_another_name(changed: dict[str, object]) -> None:
    assert replace(NATIVE, **changed).file_name != NATIVE.file_name


def test_an_identity_survives_json() -> None:
    for identity in (NATIVE, replace(RTX, targets=("8.6", "12.0"))):
        assert Identity.from_dict(json.loads(json.dumps(identity.as_dict()))) == identity


@pytest.mark.parametrize(
    ("identity", "version", "gpu", "capability", "finding"),
    [
        (NATIVE, "11.4.0.106", "RTX A4000", "8.6", None),
        (NATIVE, "11.3.0.99", "RTX A4000", "8.6", "built with tensorrt 11.4.0.106, here is 11.3.0.99"),
        (NATIVE, "11.4.0.106", "RTX 4090", "8.9", "built for RTX A4000 (compute capability 8.6), here is RTX 4090"),
        (NATIVE, "11.4.0.106", "RTX A4500", "8.6", "here is RTX A4500"),
        (RTX, "1.7.1.116", "RTX 4090", "8.9", None),
        (RTX, "1.7.1.116", "RTX 2080", "7.5", "built for RTX GPUs, here is RTX 2080"),
        (RTX, "1.7.1.116", "RTX 5090", "12.0", None),
        (replace(RTX, targets=("8.6", "12.0")), "1.7.1.116", "RTX 5090", "12.0", None),
        (
            replace(RTX, targets=("8.6", "12.0")),
            "1.7.1.116",
            "RTX 4090",
            "8.9",
            "built for compute capability 8.6, 12.0",
        ),
        (RTX, "1.6.0.1", "RTX 4090", "8.9", "built with rtx 1.7.1.116, here is 1.6.0.1"),
    ],
)
def test_an_engine_runs_only_where_it_was_built_for(
    identity: Identity, version: str, gpu: str, capability: str, finding: str | None
) -> None:
    reason = identity.mismatch(version, gpu, capability)
    assert reason is None if finding is None else finding in str(reason)


def listed(engine: Engine) -> dict[str, object]:
    return {"engines": [engine.entry], "files": {engine.file: {"sha256": "00", "bytes": 1}}}


ENGINE = Engine(NATIVE.file_name, NATIVE, {"file": NATIVE.file_name, "identity": NATIVE.as_dict()})


def test_a_manifest_gives_its_engines_back() -> None:
    (found,) = engines_of(listed(ENGINE))
    assert (found.file, found.identity) == (ENGINE.file, NATIVE)
    assert engines_of({"files": {}}) == []


@pytest.mark.parametrize(
    ("entry", "finding"),
    [
        ({"identity": NATIVE.as_dict()}, "damaged"),
        ({"file": NATIVE.file_name, "identity": {**NATIVE.as_dict(), "profile": {"smallest": [3]}}}, "damaged"),
        ({"file": NATIVE.file_name, "identity": {**NATIVE.as_dict(), "gpu": "another"}}, "not of the identity"),
        ({"file": "../plan", "identity": NATIVE.as_dict()}, "not of the identity"),
        ({"file": "plan", "identity": {**NATIVE.as_dict(), "precision": "fp8"}}, "precision 'fp8' is not known"),
        ({"file": "plan", "identity": {**NATIVE.as_dict(), "flavour": "trt"}}, "flavour 'trt' is not known"),
        ("engine", "damaged"),
    ],
)
def test_a_damaged_or_forged_entry_is_an_error(entry: object, finding: str) -> None:
    with pytest.raises(BundleError, match=finding):
        engines_of({"engines": [entry], "files": {NATIVE.file_name: {}}})


def test_an_engine_without_a_sha256_makes_the_bundle_invalid(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "engines": [ENGINE.entry]}))
    with pytest.raises(BundleError, match="has no sha256"):
        load_bundle(tmp_path)


@given(st.integers(1, 400), st.integers(1, 400))
def test_runs_have_one_length_and_cover_every_slice(total: int, limit: int) -> None:
    cuts = spans(total, limit)
    assert len({last - first for first, last in cuts}) == 1
    assert cuts[0][1] <= limit
    assert (cuts[0][0], cuts[-1][1]) == (0, total)
    assert all(before[1] >= after[0] > before[0] for before, after in itertools.pairwise(cuts))
    assert len(cuts) == -(-total // limit)


class Config:
    """TensorRT's, as far as targets are set."""

    def set_compute_capability(self, value: str, index: int) -> bool:
        self.__dict__.setdefault("built_for", []).append(value)
        return True


def test_a_gpu_that_rtx_does_not_name_is_built_for_on_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    known = SimpleNamespace(__members__={"CURRENT": "current", "SM86": "8.6"}, CURRENT="current")
    trt, config = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7", ComputeCapability=known), Config()
    monkeypatch.setattr(targets, "gpu", lambda: Gpu("H200", "9.0", 2**37, "13.0"))
    targets.set_targets(trt, config, ("9.0",))
    assert (config.built_for, config.num_compute_capabilities) == (["current"], 1)

    def nowhere() -> Gpu:
        raise UnavailableError("no GPU")

    monkeypatch.setattr(targets, "gpu", nowhere)
    with pytest.raises(UsageError, match=r"--target 9.0 is not known to tensorrt_rtx 1.7; expected some of 8.6;"):
        targets.set_targets(trt, config, ("9.0",))


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({"flavour": "trt"}, "flavour 'trt' is not known"),
        ({"precision": "int8"}, "precision 'int8' is not known"),
        ({"targets": ("8.6",)}, "--target is for --flavor rtx"),
        ({"max_slices": 2}, "--max-slices is 2; expected at least 3"),
        ({"max_size": (0, 64)}, "--max-size is 0x64"),
        ({"workspace_bytes": 0}, "--workspace"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(options: dict[str, object], finding: str) -> None:
    with pytest.raises(UsageError, match=finding):
        Wanted(**options)  # type: ignore[arg-type]


def test_the_profile_goes_from_three_slices_over_a_brain_to_the_largest() -> None:
    assert profile_for(Wanted(), 32, 300) == Profile((3, 32, 32), BRAIN, (300, 224, 224))
    assert profile_for(Wanted(), 32, 40).optimum == (40, 160, 192)
    assert profile_for(Wanted(max_size=(96, 512)), 32, 40) == Profile((3, 32, 32), (40, 96, 192), (40, 96, 512))
    with pytest.raises(UsageError, match="is 100x224; this network needs multiples of 32"):
        profile_for(Wanted(max_size=(100, 224)), 32, 40)


def test_a_larger_workspace_takes_more_slices_and_half_precision_more_still() -> None:
    guesses = [first_guess(Wanted(), size * 2**30, 228) for size in (1, 4, 16)]
    assert guesses == sorted(guesses)
    assert guesses[0] >= 3
    assert first_guess(Wanted(precision="fp16"), 4 * 2**30, 228) > guesses[1]
    assert first_guess(Wanted(max_size=(1024, 1024)), 2**20, 228) == 3


def test_no_tensor_of_the_largest_stack_is_beyond_nvidias_limit_however_much_memory_there_is() -> None:
    full = {"growth_rate": 12, "layers": 5, "levels": 5, "first_channels": 48}
    assert (widest(full), widest({}), widest({**full, "layers": None})) == (228, 228, 228)
    assert widest({"growth_rate": 4, "layers": 2, "first_channels": 8}) == 32
    guess = first_guess(Wanted(max_size=(256, 256)), 2**40, 228)
    assert guess * 228 * 256 * 256 <= 2**31 - 1 < (guess + 1) * 228 * 256 * 256
    assert first_guess(Wanted(max_size=(160, 192)), 2**40, 228) == 2 * BRAIN[0]


def test_the_default_stack_holds_a_whole_brain_where_the_memory_does() -> None:
    assert first_guess(Wanted(), 2**40, 228) >= BRAIN[0]
    assert all(least <= most for least, most in zip(BRAIN[1:], Wanted().max_size, strict=True))


def test_more_slices_than_a_tensor_holds_are_refused() -> None:
    # 2^31 - 1 elements: 187 slices of 228 channels of 224x224 hold 2.14e9, 188 hold 2.15e9.
    assert first_guess(Wanted(max_slices=187), 2**40, 228) == 187
    with pytest.raises(UsageError, match=r"--max-slices is 188; .* holds 187 slices at most"):
        first_guess(Wanted(max_slices=188), 2**40, 228)


def test_the_command_that_builds_an_engine_again_names_all_that_a_person_chose() -> None:
    command = build_command(Path("my bundle"), replace(RTX, targets=("8.6", "12.0"), workspace_bytes=3 * 2**29))
    assert command == (
        "lesionrt engine build 'my bundle' --flavor rtx --precision fp16 --max-slices 20 --max-size 256x256 "
        "--workspace 1.5 --target 8.6,12.0"
    )
    assert build_command(Path("b"), NATIVE).endswith("--max-size 256x256 --workspace 1")


@pytest.mark.parametrize(
    ("wanted", "gib"),
    [
        (Wanted(), 7),
        (Wanted("rtx"), 7),
        (Wanted("rtx", targets=("8.6",)), 7),
        (Wanted("rtx", targets=("8.6", "12.0")), 4),
    ],
)
def test_the_gpu_here_gives_the_workspace_of_engines_that_are_for_it(
    monkeypatch: pytest.MonkeyPatch, wanted: Wanted, gib: int
) -> None:
    monkeypatch.setattr(stacks, "gpu", lambda: Gpu("RTX A4000", "8.6", 10 * 2**30, "13.0"))
    assert stacks.room(wanted) == gib * 2**30


def test_without_a_gpu_rtx_assumes_a_small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Gpu:
        raise UnavailableError("no GPU")

    monkeypatch.setattr(stacks, "gpu", nowhere)
    assert stacks.room(Wanted("rtx")) == 4 * 2**30
    with pytest.raises(UnavailableError):
        stacks.room(Wanted())


def test_the_share_of_tf32_layers_is_that_of_float32_and_says_so() -> None:
    assert in_words("fp16", 0.985) == "98.5% of its computing layers in fp16"
    assert in_words("tf32", 1.0) == "100.0% of its computing layers in float32, which TF32 may multiply"


def test_the_builders_figures_are_the_last_that_it_said() -> None:
    lines = ["Total Activation Memory: 5 bytes", "Total Activation Memory: 7 bytes", "Total Weights Memory: 3 bytes"]
    found = _figures(lines)
    assert (found["activations"], found["weights"], found["scratch"]) == (7, 3, None)
