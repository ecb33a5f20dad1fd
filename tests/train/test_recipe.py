"""Recipes are read, changed and checked."""

from pathlib import Path

import pytest

from lesionrt.runtime.errors import CheckpointError, DatasetError, UsageError
from lesionrt.train.recipe import load_recipe, recipe_of


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = load_recipe("paper")
    assert (recipe.sampling, recipe.batch, recipe.epochs, recipe.optimiser) == ("windows", 4, 200, "sgd")
    assert (recipe.learning_rate, recipe.weight_decay, recipe.keep) == (1e-4, 1e-4, "best")
    assert (recipe.cross_entropy, recipe.normalisation, recipe.precision) == (0.0, "slice-min-max", "float32")


def test_any_value_can_be_set() -> None:
    recipe = load_recipe("default", ["steps=7", "network.attention=false", "augmentation.contrast = 0.9", "decay=none"])
    assert recipe.steps == 7
    assert not recipe.network.attention
    assert recipe.augmentation.contrast == 0.9
    assert recipe.augmentation.noise == 0.5
    assert recipe.decay == "none"


def test_a_recipe_is_rebuilt_from_what_a_run_stores() -> None:
    recipe = load_recipe("default", ["network.layers=2", "learning_rate=1"])
    assert recipe.learning_rate == 1.0
    assert recipe_of(recipe.as_dict(), "run.json") == recipe


@pytest.mark.parametrize(
    ("setting", "error", "text"),
    [
        ("steps", UsageError, "expected key=value"),
        ("speed=9", DatasetError, "speed is not known; expected normalisation"),
        ("network.depth=3", DatasetError, "depth is not known; expected growth_rate"),
        ("steps=many", DatasetError, "steps is 'many'; expected int"),
        ("size=100", DatasetError, "size is 100; expected a multiple of 32"),
        ("slab_slices=0", DatasetError, "slab_slices is 0; expected at least 1"),
        ("slabs=1 slab_slices=1 size=32", DatasetError, "no batch statistics"),
        ("optimiser=lion", DatasetError, "optimiser is 'lion'; expected adamw or sgd"),
        ("learning_rate=0", DatasetError, "learning_rate is 0.0; expected more than 0"),
        ("average=1.5", DatasetError, "average is 1.5; expected 0 to 0.9999"),
        ("steps=0", DatasetError, "steps is 0; expected at least 1"),
        ("epochs=5", DatasetError, "with sampling slabs nothing reads epochs"),
        ("network.layers=65", CheckpointError, "layers is 65; expected at most 64"),
        ("seed=99999999999999999999", DatasetError, "seed is 9+; expected at most 18446744073709551615"),
        ("weight_decay=-1", DatasetError, "weight_decay is -1.0; expected at least 0"),
        ("normalisation=slice-min-max", DatasetError, "with normalisation slice-min-max choose sampling windows"),
        ("sampling=windows", DatasetError, "windows are not varied; set augmentation flip, .* to 0"),
        (
            "augmentation.contrast=1.5",
            DatasetError,
            r"augmentation.contrast is 1.5; expected a share of the slabs, from 0",
        ),
        ("augmentation.contrast=true", DatasetError, "contrast is True; expected a share of the slabs, from 0"),
        ("network=4", DatasetError, "network is 4; expected a table"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        load_recipe("default", setting.split())


def test_a_packaged_recipe_can_be_given_another_way_of_sampling_and_more_levels() -> None:
    slabs = load_recipe("paper", ["sampling=slabs", "normalisation=brain-quartile-z", "keep=last", "size=64"])
    assert (slabs.sampling, slabs.size) == ("slabs", 64)
    assert load_recipe("paper", ["network.levels=6"]).network.levels == 6
    with pytest.raises(DatasetError, match="with sampling windows nothing reads steps"):
        load_recipe("paper", ["steps=5"])


def test_an_unreadable_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"recipe swift: cannot be read .* expected default, paper or a TOML file"):
        load_recipe("swift")
    (tmp_path / "r.toml").write_text("steps = = 3")
    with pytest.raises(DatasetError, match=r"r\.toml: cannot be read"):
        load_recipe(str(tmp_path / "r.toml"))
