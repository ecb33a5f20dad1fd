"""The command that builds an engine."""

import shlex
from pathlib import Path

from lesionrt.runtime.engines.identity import Identity
from lesionrt.runtime.engines.stacks import GIB


def build_command(bundle: Path, identity: Identity, sized: bool = True) -> str:
    """What to type for an engine of this identity, on the GPU and with the library and graph that are there then.

    Not `sized`, the stack and the workspace are chosen by that GPU's memory.
    """
    slices, height, width = identity.profile.largest
    workspace = str(identity.workspace_bytes / GIB).removesuffix(".0")  # a power of two: all digits come back
    options = {
        "--flavor": identity.flavour,
        "--precision": identity.precision,
        "--max-slices": str(slices) if sized else "",
        "--max-size": f"{height}x{width}",
        "--workspace": workspace if sized else "",
        "--target": ",".join(identity.targets),
    }
    given = [word for option, value in options.items() if value for word in (option, value)]
    return shlex.join(["lesionrt", "engine", "build", str(bundle), *given])
