"""What the default model's card says is copied from the runs that made it."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    spec = spec_from_file_location("card", ROOT / "weights" / "card.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(scans: str, device: str = "cpu", steps: int = 8) -> dict[str, object]:
    recipe = {"steps": steps, "slabs": 4, "slab_slices": 3, "size": 96}
    return {
        "recipe": recipe,
        "train": dict.fromkeys(scans.split()),
        "where": {"device": device},
        "seconds": 60.0 * len(scans),
    }


def test_the_recipes_numbers_are_those_of_the_runs() -> None:
    text = "{steps} steps of {slabs}x{slab_slices}x{size}; without {held_out}; {device}, {held_minutes} and {all_minutes} minutes"
    held_out, everyone = run("a_1"), run("a_1 b_1 b_2")
    assert script().recipe(text, held_out, everyone) == "8 steps of 4x3x96; without b; CPU cores, 3 and 11 minutes"
    assert script().recipe("{device}", held_out, run("a_1", "cuda")) == "a GPU"
    with pytest.raises(SystemExit, match="different recipes"):
        script().recipe(text, held_out, run("a_1 b_1", steps=9))


def test_what_it_gets_wrong_is_the_evaluations() -> None:
    scan = {
        "name": "a_1",
        "whole_volume": {"ppv": 0.375, "sensitivity": 0.75},
        "field": {"lesion_false_positive_rate": 0.8},
    }
    text = script().limits("{a_1_wrong_voxels}, {a_1_missed_voxels}, {a_1_wrong_lesions}", {"scans": [scan]})
    assert text == "62 %, 25 %, 80 %"


def test_figures_of_unseen_people_stand_apart_and_in_the_tables() -> None:
    card = script()

    def evaluated(dice: float) -> dict[str, object]:
        scan = {"name": "P14_1", "whole_volume": {"dice": dice}, "field": {"lesion_f1": 0.5}}
        return {"scans": [{**scan, "predicted_ml": 20.04, "reference_ml": 24.76}]}

    found = card.figures(evaluated(0.5), evaluated(0.75))
    assert list(found) == ["P14_1", "P14_1_held_out"]
    assert found["P14_1_held_out"] == {
        "dice": 0.5,
        "lesion_f1": 0.5,
        "predicted_ml": 20.0,
        "reference_ml": 24.8,
        "fixed_threshold_dice": 0.69,
        "trained_on_it": False,
    }
    text = card.with_table(f"before\n{card.BEGIN}stale\n{card.END}after\n", found)
    assert "stale" not in text
    assert "| P14_1 | 0.75 | 0.50 | 20.0 | 24.8 | 0.69 | yes |\n" in text
    assert "| P14_1_held_out | 0.50 | 0.50 | 20.0 | 24.8 | 0.69 | **no** |\n" in text
    with pytest.raises(SystemExit, match="the README has no"):
        card.with_table("nothing", found)
