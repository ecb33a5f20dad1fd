"""`lesionrt inspect`."""

import json
from pathlib import Path
from typing import Any

import typer
from lesionrt.runtime.cli.options import BundleArgument, JsonOption

BAD_INPUT = 3


def command(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show a bundle's manifest and check the sha256 of every file."""
    from lesionrt.runtime.bundle import load_bundle

    loaded = load_bundle(bundle)
    findings = {name: loaded.check(name) for name in loaded.manifest["files"]}
    damaged = {name: finding for name, finding in findings.items() if finding is not None}
    if as_json:
        print(json.dumps({"manifest": loaded.manifest, "sha256": loaded.sha256, "damaged": damaged}))
    else:
        _show(loaded.manifest, loaded.sha256, findings, bundle)
    if damaged:
        raise typer.Exit(BAD_INPUT)


def _show(manifest: dict[str, Any], digest: str, findings: dict[str, str | None], path: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    model = manifest["model"]
    state = "trained" if model["trained"] else "UNTRAINED: random weights, a placeholder"
    console.print(Text(f"{path}: {model['name']} {model['version']} ({state})"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    table.add_row("description", Text(model["description"]))
    table.add_row("sha256", digest)
    for section in ("network", "input", "versions"):
        table.add_row(section, Text(", ".join(f"{name} {value}" for name, value in manifest[section].items())))
    table.add_row("threshold", str(manifest["threshold"]))
    table.add_row("opset", str(manifest["opset"]))
    table.add_row("checkpoint", manifest["checkpoint"]["sha256"])
    products = manifest.get("attention_products")
    if products:
        table.add_row("attention", Text(f"largest product {products['largest']:.4g} on {products['slices']}; {products['note']}"))
    for row in manifest.get("parity", ()):
        compared = row["comparison"]
        text = f"maximum {compared['max_difference']:.2g}, 99.9th percentile {compared['percentile_difference']:.2g}"
        table.add_row("parity", Text(f"{row['precision']} on {row['backend']} ({row['library']}), {row['what']}: {text}"))
    for name, finding in findings.items():
        entry = manifest["files"][name]
        table.add_row("file", Text(f"{name}, {entry['bytes']} bytes, sha256 {entry['sha256']}: {finding or 'ok'}"))
    console.print(table)
