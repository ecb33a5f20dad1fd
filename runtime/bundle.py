"""A bundle: the folder that is deployed, and its manifest."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lesionrt.runtime.engines.identity import PRECISIONS as PRECISIONS
from lesionrt.runtime.engines.identity import Identity, engines_of, graph_precision
from lesionrt.runtime.errors import BundleError, InputError
from lesionrt.runtime.files import sha256, sha256_of
from lesionrt.runtime.prepare import Preparation

FORMAT = "lesionrt bundle"
VERSION = 1
MANIFEST = "manifest.json"
REFERENCE = "reference.npz"
TIMING_CACHES = "timing_*.cache"  # of TensorRT, beside its engines; no manifest lists them
# Entries with the graphs that take and give the state between chunks: the network as it is, and as ONNX Runtime's CPU kernels
# want it, channels in whole blocks.
STREAM_GRAPHS, BLOCKED_GRAPHS = "stream_graphs", "blocked_graphs"
# What every manifest holds besides format and version.
_ENTRIES: dict[str, type] = {
    "model": dict,
    "network": dict,
    "input": dict,
    "graphs": dict,
    "opset": int,
    "checkpoint": dict,
    "versions": dict,
    "files": dict,
}
UNTRAINED = "the model is untrained, its weights are random: the mask says nothing about the patient"


@dataclass(frozen=True)
class ModelInfo:
    """What a model is called, and what it learned from if it ever learned anything."""

    name: str
    version: str
    trained: bool
    description: str = ""
    training_data: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        texts = (self.name, self.version, self.description, self.training_data, self.licence)
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.trained, bool) or not self.name:
            raise InputError(
                f"model description {self!r}; expected name, version and description as text, trained as true or false"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read and checked; its files are checked when they are used.

    Attributes
    ----------
    sha256
        Of the manifest as it was read, which holds the sha256 of every other file: it identifies the whole bundle.
    """

    path: Path
    manifest: dict[str, Any]
    model: ModelInfo
    preparation: Preparation
    sha256: str

    @property
    def name(self) -> str:
        """Model name and version, for messages and reports."""
        return f"{self.model.name} {self.model.version}"

    @property
    def precisions(self) -> list[str]:
        """In which precisions the bundle has a graph, the most exact first."""
        return sorted(self.manifest["graphs"], key=PRECISIONS.index)

    @property
    def threshold(self) -> float:
        """A voxel is lesion where its probability is over this."""
        return float(self.manifest["threshold"])

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of, in pixels."""
        return int(self.manifest["input"]["size_multiple"])

    def graph(self, precision: str) -> Path:
        """The ONNX file of a precision, checked against its sha256, and that of fp32, in which its weights may lie.

        Raises
        ------
        BundleError
            If there is none, or it is not the file that was exported.
        """
        if precision not in self.precisions:
            raise BundleError(f"{self.path}: has no {precision} graph, only {', '.join(self.precisions)}")
        if precision != "fp32" and "fp32" in self.precisions:
            self.checked(self.manifest["graphs"]["fp32"])
        return self.checked(self.manifest["graphs"][precision])

    def graph_sha256(self, precision: str) -> str:
        """Of a precision's graph; where its weights may lie in that of fp32, of both digests one after the other."""
        names = [
            self.manifest["graphs"][name] for name in dict.fromkeys((precision, "fp32")) if name in self.precisions
        ]
        digests = [self.manifest["files"][name]["sha256"] for name in names]
        return digests[0] if len(digests) == 1 else sha256_of("".join(digests).encode())

    def has_graph_of(self, identity: Identity) -> bool:
        """Whether the graph that an engine was built from is this bundle's."""
        precision = graph_precision(identity.precision)
        return precision in self.precisions and self.graph_sha256(precision) == identity.onnx_sha256

    def stream_graph(self, precision: str, *kinds: str) -> Path | None:
        """The ONNX file of a precision that takes and gives the state between chunks; None if there is none.

        It is the first of the `kinds` that the bundle has, :data:`STREAM_GRAPHS` or :data:`BLOCKED_GRAPHS`. Its weights lie in
        the file of :meth:`graph`; both are checked.

        Raises
        ------
        BundleError
            If one of them is not the file that was exported.
        """
        for kind in kinds:
            name = self.manifest.get(kind, {}).get(precision)
            if name is not None:
                self.graph(precision)
                return self.checked(name)
        return None

    def checked(self, name: str) -> Path:
        """A file of the bundle, if it is what the manifest says.

        Raises
        ------
        BundleError
            If it is missing or its size or sha256 differs.
        """
        finding = self.check(name)
        if finding:
            raise BundleError(f"{self.path / name}: {finding}; export or copy the bundle again")
        return self.path / name

    def check(self, name: str) -> str | None:
        """What is wrong with a file of the bundle; None if it is as the manifest says."""
        return self._misplaced(name) or self._differing(name, sha256(self.path / name))

    def content(self, name: str) -> bytes:
        """A file of the bundle, read once: what is looked at are the very bytes that are given.

        Raises
        ------
        BundleError
            If it is missing or its size or sha256 is not the manifest's.
        """
        finding = self._misplaced(name)
        if finding is None:
            try:
                content = (self.path / name).read_bytes()
            except OSError as error:
                raise BundleError(f"{self.path / name}: cannot be read ({error.strerror})") from error
            finding = self._differing(name, sha256_of(content))
            if finding is None:
                return content
        raise BundleError(f"{self.path / name}: {finding}")

    def _misplaced(self, name: str) -> str | None:
        path, entry = self.path / name, self.manifest["files"][name]
        if not path.is_file():
            return "missing"
        if path.resolve().parent != self.path.resolve():
            return "leads out of the bundle"
        size = path.stat().st_size
        return None if size == entry["bytes"] else f"has {size} bytes, the manifest says {entry['bytes']}"

    def _differing(self, name: str, digest: str) -> str | None:
        expected = self.manifest["files"][name]["sha256"]
        return None if digest == expected else f"its sha256 is {digest}, the manifest says {expected}"


def load_bundle(path: Path) -> Bundle:
    """Read and check a bundle's manifest.

    Raises
    ------
    BundleError
        If it is missing, damaged, of another format or names files outside the bundle.
    """
    manifest_path = path / MANIFEST
    if not os.path.exists(path):  # noqa: PTH110 (a name too long for the file system does not exist)
        raise BundleError(f"{path}: no such bundle; make one with `lesionrt export`")
    if not manifest_path.is_file():
        raise BundleError(f"{path}: not a bundle: it has no {MANIFEST}; make one with `lesionrt export`")
    try:
        content = manifest_path.read_bytes()
        manifest = json.loads(content.decode())
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError(
            f"{manifest_path}: not readable as JSON ({error}); export or copy the bundle again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{manifest_path}: not the manifest of a lesionrt bundle")
    if manifest.get("version") != VERSION:
        raise BundleError(
            f"{manifest_path}: format version {manifest.get('version')!r}; this lesionrt reads version {VERSION}"
        )
    try:
        _check_manifest(manifest)
        preparation = {name: manifest["input"][name] for name in Preparation.__dataclass_fields__}
        model = ModelInfo(**manifest["model"])
        return Bundle(path, manifest, model, Preparation(**preparation), sha256_of(content))
    except KeyError as error:
        raise BundleError(f"{manifest_path}: has no entry {error}; export the bundle again") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{manifest_path}: {error}") from error


def _check_manifest(manifest: dict[str, Any]) -> None:
    for name, kind in _ENTRIES.items():
        if not isinstance(manifest[name], kind):
            raise BundleError(f"entry {name!r} is {manifest[name]!r}; expected {kind.__name__}")
    if not isinstance(manifest["checkpoint"]["sha256"], str):
        raise BundleError("the checkpoint's sha256 is no text")
    for name, entry in manifest["files"].items():
        if name != Path(name).name or "\\" in name or name in ("", ".", "..", MANIFEST):
            raise BundleError(f"file name {name!r}: expected a plain name inside the bundle")
        if not isinstance(entry["sha256"], str) or not isinstance(entry["bytes"], int):
            raise BundleError(f"file {name!r}: expected its sha256 and its size in bytes")
    if not isinstance(manifest.get("parity", []), list) or not isinstance(
        manifest.get("attention_products"), dict | None
    ):
        raise BundleError("its parity is no list or its attention_products no object")
    graphs = manifest["graphs"]
    unknown = [name for name in graphs if name not in PRECISIONS]
    if not graphs:
        raise BundleError("names no graph")
    if unknown:
        raise BundleError(f"has graphs of precision {', '.join(unknown)}; expected some of {', '.join(PRECISIONS)}")
    names = [*graphs.values(), REFERENCE]
    for key in (STREAM_GRAPHS, BLOCKED_GRAPHS):
        streams = manifest.get(key, {})
        if not isinstance(streams, dict) or not set(streams) <= set(graphs):
            raise BundleError(f"{key} is {streams!r}; expected a file for some of {', '.join(graphs)}")
        names += streams.values()
    unlisted = [name for name in names if name not in manifest["files"]]
    if unlisted:
        raise BundleError(f"names {', '.join(map(repr, unlisted))}, of which it has no sha256")
    engines_of(manifest)
    if not 0 < float(manifest["threshold"]) < 1:
        raise BundleError(f"threshold is {manifest['threshold']!r}; expected a probability between 0 and 1")
    multiple = manifest["input"]["size_multiple"]
    if type(multiple) is not int or multiple < 1:
        raise BundleError(f"size_multiple is {multiple!r}; expected a whole number of at least 1")
