"""Put what two runs did and reached into the default model's manifest, its page and the README.

    python weights/card.py HELD_OUT_RUN ALL_RUN BUNDLE README

A run is the folder of a training, with what `lesionrt evaluate` found in `evaluation/`: steps, minutes and figures are copied from
there, never typed, and kept in `record.json`.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from lesionrt.runtime.bundle import MANIFEST
from lesionrt.runtime.files import sha256_of, write_atomically

BEGIN, END = "<!-- model -->\n", "<!-- /model -->\n"
# Dice of a fixed threshold, which needs no training: non-zero voxels, eroded by 4; (x - median) / (1.4826 MAD) over them, smoothed
# by 0.7 voxels, over 2.0, the best single threshold on these scans.
THRESHOLD = {"p07_1": 0.33, "p19_1": 0.25, "P14_1": 0.69, "P14_2": 0.78, "P14_3": 0.74, "P39_1": 0.87}


def figures(held_out: dict[str, Any], everyone: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By scan, those of the held-out run with `_held_out` behind their names, beside a fixed threshold's Dice."""
    runs = (("", True, everyone), ("_held_out", False, held_out))
    return {
        f"{scan['name']}{ending}": {
            "dice": round(scan["whole_volume"]["dice"], 4),
            "lesion_f1": round(scan["field"]["lesion_f1"], 4),
            "predicted_ml": round(scan["predicted_ml"], 1),
            "reference_ml": round(scan["reference_ml"], 1),
            "fixed_threshold_dice": THRESHOLD[scan["name"]],
            "trained_on_it": trained_on_it,
        }
        for ending, trained_on_it, run in runs
        for scan in run["scans"]
    }


def recipe(text: str, held_out: dict[str, Any], everyone: dict[str, Any]) -> str:
    """How the model was made, with what the runs' descriptions say in place of the names in braces."""
    if held_out["recipe"] != everyone["recipe"]:
        raise SystemExit("the two runs are of different recipes: the first one's figures say nothing about the second")
    unseen = everyone["train"].keys() - held_out["train"].keys()
    return text.format(
        device={"cpu": "CPU cores"}.get(everyone["where"]["device"], "a GPU"),
        held_out=" and ".join(sorted({name.rpartition("_")[0] for name in unseen})),
        **{key: everyone["recipe"][key] for key in ("steps", "slabs", "slab_slices", "size")},
        held_minutes=round(held_out["seconds"] / 60),
        all_minutes=round(everyone["seconds"] / 60),
    )


def limits(text: str, everyone: dict[str, Any]) -> str:
    """What the model gets wrong of what it finds in a scan, and misses of the expert's: `{p07_1_wrong_voxels}`, `..._wrong_lesions`, `..._missed_voxels`."""
    wrong = {}
    for scan in everyone["scans"]:
        wrong[f"{scan['name']}_wrong_voxels"] = f"{100 * (1 - scan['whole_volume']['ppv']):.0f} %"
        wrong[f"{scan['name']}_missed_voxels"] = f"{100 * (1 - scan['whole_volume']['sensitivity']):.0f} %"
        wrong[f"{scan['name']}_wrong_lesions"] = f"{100 * scan['field']['lesion_false_positive_rate']:.0f} %"
    return text.format(**wrong)


def table(found: dict[str, dict[str, Any]]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "| scan | Dice | lesion F1 | ml found | ml by the expert | Dice of a fixed threshold | trained on it |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        seen = "yes" if row["trained_on_it"] else "**no**"
        lines.append(
            f"| {name} | {row['dice']:.2f} | {row['lesion_f1']:.2f} | {row['predicted_ml']:.1f} | "
            f"{row['reference_ml']:.1f} | {row['fixed_threshold_dice']:.2f} | {seen} |"
        )
    return "\n".join(lines)


def with_table(text: str, found: dict[str, dict[str, Any]]) -> str:
    """The README with the figures between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the README has no {BEGIN.strip()} with {END.strip()} after it")
    return f"{before}{begin}{table(found)}\n{end}{after}"


def page(manifest: dict[str, Any], measured_with: str) -> str:
    """The model card for people."""
    model, card = manifest["model"], manifest["card"]
    return (
        f"# {model['name']} {model['version']}\n\n"
        f"The model that `lesionrt segment` uses when none is named. {model['description']}\n\n"
        f"## Data\n\n{card['data'].strip()}\n\n## Recipe\n\n{card['recipe'].strip()}\n\n"
        f"## Figures\n\nWhole volumes, threshold {manifest['threshold']}, measured by lesionrt's authors with "
        f"`lesionrt evaluate` ({measured_with}).\n\n{table(card['figures'])}\n\n"
        f"## Intended use\n\n{card['intended_use'].strip()}\n\n## Limits\n\n{card['limits'].strip()}\n\n"
        f"Licence of the weights: {model['licence']}.\n"
    )


def seconds(folder: Path) -> float:
    """How long a run took, by its history."""
    *_, last = csv.DictReader((folder / "history.csv").open())
    return float(last["seconds"])


def main(held_out: Path, everyone: Path, bundle: Path, readme: Path) -> None:
    """Write the manifest, the page beside the bundle, the README's table, and the record of the runs beside this script."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    folders = (held_out, everyone)
    runs = [{**json.loads((folder / "run.json").read_text()), "seconds": seconds(folder)} for folder in folders]
    found = [json.loads((folder / "evaluation" / "evaluation.json").read_text()) for folder in folders]
    manifest["card"]["recipe"] = recipe(manifest["card"]["recipe"], *runs)
    manifest["card"]["limits"] = limits(manifest["card"]["limits"], found[1])
    manifest["card"]["figures"] = figures(*found)
    by = [f"{one['prediction']['backend']}, {one['prediction']['precision']}" for one in found]
    measured_with = by[1] if by[0] == by[1] else f"{by[1]}; held out: {by[0]}"
    content = json.dumps(manifest, indent=2) + "\n"
    found[1]["prediction"]["model_sha256"] = sha256_of(
        content.encode()
    )  # the bundle's, with the card that follows from it
    texts = {
        bundle / MANIFEST: content,
        bundle.parent / "README.md": page(manifest, measured_with),
        readme: with_table(readme.read_text(), manifest["card"]["figures"]),
        Path(__file__).with_name("record.json"): json.dumps(
            {
                "model": manifest["model"],
                "runs": dict(zip(("held_out", "all"), runs, strict=True)),
                "evaluations": dict(zip(("held_out", "all"), found, strict=True)),
            },
            indent=1,
        )
        + "\n",
    }
    write_atomically({path: text.encode() for path, text in texts.items()})
    print(table(manifest["card"]["figures"]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
