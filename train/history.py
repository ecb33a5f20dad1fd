"""How a training went: as a table, and as a picture like the paper's Figure 5."""

import csv
import io
from collections.abc import Sequence

COLUMNS = (
    "epoch",
    "step",
    "learning_rate",
    "loss",
    "dice",
    "validation_loss",
    "validation_dice",
    "renormalised",
    "slices_per_second",
    "seconds",
)
Rows = Sequence[dict[str, float]]


def history_csv(rows: Rows) -> bytes:
    """One line an epoch.

    Dice is of the training slabs or windows as they were augmented; `renormalised` counts the batches that overflowed under
    frozen norms and were computed again by their own statistics; `seconds` are those of all steps so far and of the validations between them.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{row[name]:.6g}" for name in COLUMNS if name in row})
    return text.getvalue().encode()


def draw_history(rows: Rows) -> bytes:
    """Dice and loss over the epochs, training and validation, as a PNG; a line marks the best validation Dice."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, name, label in zip(figure.subplots(1, 2), ("dice", "loss"), ("Dice", "Loss"), strict=True):
        axes.plot(epochs, [row[name] for row in rows], marker=".", label="training")
        if any(f"validation_{name}" in row for row in rows):
            axes.plot(epochs, [row[f"validation_{name}"] for row in rows], marker=".", label="validation")
        if any("validation_dice" in row for row in rows):
            best = max(rows, key=lambda row: row.get("validation_dice", -1.0))
            axes.axvline(best["epoch"], color="tab:green", linewidth=1, label="best validation Dice")
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylim(0, 1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
