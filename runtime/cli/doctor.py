"""`lesionrt doctor`."""

import json

import typer

from lesionrt.runtime.cli.options import JsonOption
from lesionrt.runtime.errors import UnavailableError


def command(as_json: JsonOption = False) -> None:
    """Show which backends can run here, and what would mend those that cannot."""
    from lesionrt.runtime.doctor import examine

    found = examine()
    if as_json:
        print(json.dumps(found))
    else:
        for section in ("system", "versions"):
            print(f"{section}: " + ", ".join(f"{name} {value}" for name, value in found[section].items()))
        print("GPUs: " + ("; ".join(found["gpus"]) or "none seen"))
        for backend in found["backends"]:
            state = (
                "can run"
                if backend["problem"] is None
                else f"cannot run: {backend['problem']}\n    {backend['remedy']}"
            )
            print(f"backend {backend['name']} ({backend['library']}, {backend['device']}): {state}")
        auto = found["auto"]
        print(f"auto chooses {auto['backend'] or 'nothing'} for {auto['for']} ({auto['why']})")
        if auto["with_an_engine"] not in (None, auto["backend"]):
            print(f"auto chooses {auto['with_an_engine']} for a bundle with an engine that runs here")
        if found["conflict"] is not None:
            print(f"problem: {found['conflict']}")
    if (found["auto"]["backend"] or found["auto"]["with_an_engine"]) is None or found["conflict"] is not None:
        raise typer.Exit(UnavailableError.exit_code)
