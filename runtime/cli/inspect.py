"""`lesionrt inspect`."""

import json
from typing import TYPE_CHECKING

import typer

from lesionrt.runtime.cli.options import BundleArgument, JsonOption
from lesionrt.runtime.errors import BundleError, InputError

if TYPE_CHECKING:
    from lesionrt.runtime.bundle import Bundle


def command(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show a bundle's manifest and check the sha256 of every file."""
    from lesionrt.runtime.bundle import load_bundle

    loaded = load_bundle(bundle)
    findings = {name: loaded.check(name) for name in loaded.manifest["files"]}
    damaged = {name: finding for name, finding in findings.items() if finding is not None}
    if as_json:
        print(json.dumps({"manifest": loaded.manifest, "sha256": loaded.sha256, "damaged": damaged}))
    else:
        try:
            _show(loaded, findings)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{bundle}: its manifest has an entry that cannot be shown ({error!r})") from error
    if damaged:
        raise typer.Exit(InputError.exit_code)


def _show(bundle: "Bundle", findings: dict[str, str | None]) -> None:
    from lesionrt.runtime.engines.identity import engines_of
    from lesionrt.runtime.engines.network import in_words
    from lesionrt.runtime.parity import summary_lines

    manifest, model = bundle.manifest, bundle.model
    state = "trained" if model.trained else "UNTRAINED: random weights, a placeholder"
    print(f"{bundle.path}: {bundle.name} ({state})")
    print(f"  description  {model.description}")
    print(f"  trained on   {model.training_data or 'not said'}")
    print(f"  licence      {model.licence or 'not said'}")
    print(f"  sha256       {bundle.sha256}")
    print(f"  checkpoint   {manifest['checkpoint']['sha256']}")
    for section in ("network", "input", "versions"):
        print(f"  {section:<12} {', '.join(f'{name} {value}' for name, value in manifest[section].items())}")
    print(f"  threshold    {manifest['threshold']}")
    opsets = manifest.get("opsets", {})
    by_precision = ", ".join(f"{precision} {number}" for precision, number in opsets.items())
    print(f"  opset        {by_precision if len(set(opsets.values())) > 1 else manifest['opset']}")
    for section, text in manifest.get("card", {}).items():
        lines = [f"{scan}: {figure}" for scan, figure in text.items()] if isinstance(text, dict) else [text]
        for line in lines:
            print(f"  {section:<12} {' '.join(line.split())}")
    products = manifest.get("attention_products")
    if products:
        print(f"  attention    largest product {products['largest']:.4g} on slices of {products['slices']}")
    for line in summary_lines(manifest.get("parity", ())):
        print(f"  parity       {line}")
    for engine in engines_of(manifest):
        layers, stack = engine.entry["layers"], "x".join(map(str, engine.identity.profile.largest))
        print(
            f"  engine       {engine.file}, {engine.identity.precision} ({in_words(engine.identity.precision, layers['share'])}), "
            f"{engine.identity.flavour} {engine.identity.version}, for {engine.identity.made_for}, stacks of up to {stack}"
        )
        because = engine.entry.get("not_measured_because")
        unmeasured = "not measured where it was built" + (f": {because}" if because else "")
        for line in summary_lines(engine.entry["parity"] or ()) or [unmeasured]:
            print(f"    parity     {line}")
    for name, finding in findings.items():
        entry = manifest["files"][name]
        print(f"  file         {name}, {entry['bytes']} bytes, sha256 {entry['sha256']}: {finding or 'ok'}")
