"""What a user gets is what stands in the tree."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("runtime", "train", "export", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_rooms_and_nothing_else(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code = {name for name in tracked.split() if not name.startswith("benchmarks/results/")}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix("lesionrt/") for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == code


def test_the_base_needs_no_torch_and_each_extra_what_it_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> list[str]:
        return sorted(re.split(r"[>=\[]", requirement)[0] for requirement in requirements)

    extras = {extra: names(requirements) for extra, requirements in project["optional-dependencies"].items()}
    assert names(project["dependencies"]) == ["nibabel", "numpy", "pillow", "rich", "scipy", "typer"]
    assert extras["cpu"] == ["onnxruntime"]
    assert extras["gpu"] == ["onnxruntime-gpu"]
    assert extras["tensorrt"] == ["tensorrt"]
    assert extras["rtx"] == ["tensorrt-rtx"]
    assert extras["cuda"] == ["pycuda"]
    assert extras["openvino"] == ["openvino"]
    assert extras["train"] == ["matplotlib", "torch"]
    assert extras["export"] == ["onnx", "onnxscript", "torch"]


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
