"""Recipes: what decides a training, in a TOML file."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from lesionrt.runtime.errors import DatasetError, UsageError
from lesionrt.runtime.prepare import BRAIN_QUARTILE_Z, Preparation
from lesionrt.train.augment import Augmentation
from lesionrt.train.model import NetworkConfig

NAMES = ("default", "paper")
_CHOICES = {
    "sampling": ("slabs", "windows"),
    "optimiser": ("adamw", "sgd"),
    "decay": ("cosine", "none"),
    "precision": ("auto", "float32", "bfloat16"),
    "keep": ("last", "best"),
}
_AT_LEAST_ONE = ("slabs", "slab_slices", "size", "batch", "epoch_steps", "steps", "epochs")
_UNREAD = {  # what the other way of sampling reads alone: given here, it would be believed to do something
    "slabs": ("batch", "epochs"),
    "windows": ("slabs", "slab_slices", "size", "lesion_centred", "donors", "steps", "epoch_steps"),
}
_SHARE = "a share of the slabs, from 0 (never) to 1 (always)"
LARGEST_SEED = 2**64 - 1  # that PyTorch takes


@dataclass(frozen=True)
class Recipe:
    """A training's settings; ``train/recipes/*.toml`` explains each.

    Raises
    ------
    DatasetError
        If a value is out of range.
    """

    normalisation: str = "brain-quartile-z"
    smoothing_mm: float = 0.9
    sampling: str = "slabs"
    slabs: int = 4
    slab_slices: int = 3
    size: int = 96
    lesion_centred: float = 0.2
    donors: str = ""
    steps: int = 1600
    epoch_steps: int = 100
    batch: int = 4
    epochs: int = 200
    optimiser: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up: int = 50
    decay: str = "cosine"
    average: float = 0.99
    frozen_norms: float = 0.3
    attention_gain: float = 0.1
    cross_entropy: float = 2.0
    dice_smoothing: float = 1.0
    precision: str = "auto"
    keep: str = "last"
    seed: int = 0
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(dropout=0.0))
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise DatasetError(f"recipe: {name} is {getattr(self, name)!r}; expected {' or '.join(allowed)}")
        for name in (*_AT_LEAST_ONE, "warm_up", "seed"):
            least = 1 if name in _AT_LEAST_ONE else 0
            if getattr(self, name) < least:
                raise DatasetError(f"recipe: {name} is {getattr(self, name)}; expected at least {least}")
        if self.seed > LARGEST_SEED:
            raise DatasetError(f"recipe: seed is {self.seed}; expected at most {LARGEST_SEED}")
        if self.sampling == "slabs" and self.size % self.network.size_multiple:
            raise DatasetError(
                f"recipe: size is {self.size}; expected a multiple of {self.network.size_multiple}, as the network has {self.network.levels} levels"
            )
        for name, most in (
            ("lesion_centred", 1.0),
            ("average", 0.9999),
            ("frozen_norms", 1.0),
            ("attention_gain", 1.0),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise DatasetError(f"recipe: {name} is {getattr(self, name)}; expected 0 to {most:g}")
        for name in ("weight_decay", "cross_entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DatasetError(f"recipe: {name} is {getattr(self, name)}; expected at least 0")
        for name in ("learning_rate", "dice_smoothing"):
            if not 0 < getattr(self, name) < math.inf:
                raise DatasetError(f"recipe: {name} is {getattr(self, name)}; expected more than 0")
        if self.sampling == "slabs":
            check_batch(self, self.slabs)
        if self.sampling == "slabs" and self.normalisation != BRAIN_QUARTILE_Z:
            raise DatasetError(
                f"recipe: slabs are varied as quartile z-values; with normalisation {self.normalisation} choose sampling windows"
            )
        shares = asdict(self.augmentation)
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise DatasetError(f"recipe: augmentation.{name} is {share}; expected {_SHARE}")
        varied = [name for name, share in shares.items() if share]
        if self.sampling == "windows" and varied:
            raise DatasetError(
                f"recipe: windows are not varied; set augmentation {', '.join(varied)} to 0, or sample slabs"
            )
        _ = self.preparation  # checks its values

    @property
    def preparation(self) -> Preparation:
        """How the scans become the network's input."""
        return Preparation(normalisation=self.normalisation, smoothing_mm=self.smoothing_mm)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, to be stored with the run."""
        return asdict(self)


def check_batch(recipe: Recipe, slabs: int) -> None:
    """Refuse a step of so few slabs in a process that its norms have nothing to learn from.

    Raises
    ------
    DatasetError
        With what to raise.
    """
    if slabs * recipe.slab_slices == 1 and recipe.size == recipe.network.size_multiple:
        raise DatasetError(
            f"recipe: a step of one slice of {recipe.size} pixels has one value a channel at the bottom, of which there are no "
            "batch statistics; raise slabs, slab_slices or size"
        )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Of a step: a linear warm-up, then constant or half a cosine down to 0.

    >>> [round(learning_rate(Recipe(warm_up=2, learning_rate=0.1), step, 6), 4) for step in range(6)]
    [0.05, 0.1, 0.1, 0.0854, 0.05, 0.0146]
    """
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    if recipe.decay == "none":
        return recipe.learning_rate
    done = (step - recipe.warm_up) / max(1, steps - recipe.warm_up)
    return recipe.learning_rate * (1 + math.cos(math.pi * done)) / 2


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by its name or from a TOML file, with some values changed.

    Parameters
    ----------
    name
        ``default``, ``paper`` or the path of a TOML file.
    settings
        ``key=value`` in TOML's notation, such as ``steps=200`` or ``network.attention=false``.

    Raises
    ------
    DatasetError
        If the file cannot be read or a value is wrong.
    UsageError
        If a setting is not of the form ``key=value``, or its key is unknown.
    """
    try:
        text = (
            files("lesionrt.train").joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")
            if name in NAMES
            else Path(name).read_text(encoding="utf-8")
        )
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DatasetError(
            f"recipe {name}: cannot be read ({error}); expected {', '.join(NAMES)} or a TOML file"
        ) from error
    # What a packaged recipe says of its own way of sampling misleads nobody.
    packaged = dict(values) if name in NAMES else {}
    for setting in settings:
        _set(values, setting)
    recipe = recipe_of(values, f"recipe {name}")
    idle = [key for key in _UNREAD[recipe.sampling] if key in values and values[key] != packaged.get(key)]
    if idle:
        raise DatasetError(
            f"recipe {name}: with sampling {recipe.sampling} nothing reads {', '.join(idle)}; leave it out"
        )
    return recipe


def recipe_of(values: dict[str, Any], what: str) -> Recipe:
    """A recipe of plain values, as :meth:`Recipe.as_dict` gives them.

    Raises
    ------
    DatasetError
        If a key is unknown or a value is of the wrong type or out of range.
    """
    network = _typed(values.get("network", {}), NetworkConfig, f"{what}, network")
    augmentation = _typed(values.get("augmentation", {}), Augmentation, f"{what}, augmentation")
    return Recipe(
        **_typed(values, Recipe, what)
        | {"network": replace(Recipe().network, **network), "augmentation": Augmentation(**augmentation)}
    )


def _typed(values: Any, kind: Any, what: str) -> dict[str, Any]:
    """The values that a dataclass takes, checked against the types of its defaults."""
    if not isinstance(values, dict):
        raise DatasetError(f"{what} is {values!r}; expected a table")
    defaults = {item.name: getattr(kind(), item.name) for item in fields(kind)}
    unknown = [key for key in values if key not in defaults]
    if unknown:
        raise DatasetError(f"{what}: {', '.join(unknown)} is not known; expected {', '.join(defaults)}")
    result = {}
    for key, value in values.items():
        wanted = type(defaults[key])
        if wanted is float and type(value) is int:
            value = float(value)
        if key not in ("network", "augmentation") and type(value) is not wanted:
            expected = _SHARE if kind is Augmentation else wanted.__name__
            raise DatasetError(f"{what}: {key} is {value!r}; expected {expected}")
        result[key] = value
    return result


def _set(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {setting}: expected key=value, such as steps=200")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a text
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {setting}: {table} is no table of the recipe")
    values[last] = value
