"""A model card: what a person should know of a model before using it, kept in the bundle's manifest."""

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from lesionrt.runtime.bundle import ModelInfo
from lesionrt.runtime.errors import InputError

SECTIONS = ("data", "recipe", "figures", "intended_use", "limits")


def read_card(path: Path) -> dict[str, Any]:
    """A card from a TOML file: the tables ``model`` (replaces what the checkpoint says) and ``figures``, and texts.

    Raises
    ------
    InputError
        If it cannot be read, lacks one of :data:`SECTIONS`, or has something else.
    """
    try:
        card = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a model card in TOML ({error})") from error
    model = card.get("model", {})
    missing = [name for name in SECTIONS if name not in card]
    known = {field.name for field in fields(ModelInfo)} - {"trained"}
    unknown = [name for name in card if name not in (*SECTIONS, "model")]
    unknown += [f"model.{name}" for name in model if name not in known] if isinstance(model, dict) else ["model"]
    if missing or unknown:
        raise InputError(
            f"{path}: the card lacks {', '.join(missing) or 'nothing'} and has unknown {', '.join(unknown) or 'nothing'}; "
            f"expected {', '.join(SECTIONS)}, and a table model with some of {', '.join(sorted(known))}"
        )
    for name, value in model.items():
        if not isinstance(value, str):
            raise InputError(f"{path}: model.{name} is {value!r}; expected a text in quotes")
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: holds what JSON has no word for ({error}); write dates as text in quotes, and no nan or inf"
        ) from error
    return card
