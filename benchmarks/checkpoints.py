"""The checkpoint that a bundle's cases in PyTorch compute with."""

from importlib.util import find_spec
from pathlib import Path

from lesionrt.runtime.bundle import Bundle
from lesionrt.runtime.errors import BundleError, CheckpointError


def restored_checkpoint(bundle: Bundle, folder: Path) -> tuple[Path | None, str | None]:
    """A bundle's checkpoint, written to a folder, or why it has none."""
    if find_spec("torch") is None or find_spec("onnx") is None:
        return None, "needs PyTorch and onnx. Run: pip install 'lesionrt[export]'"
    from lesionrt.export.restore import restore_checkpoint
    from lesionrt.train.checkpoint import save_checkpoint

    path = folder / "restored.pt"
    try:
        save_checkpoint(restore_checkpoint(bundle), path)
    except BundleError as error:
        return None, f"needs the checkpoint, which cannot be restored: {error}"
    return path, None


def check_preparation(bundle: Bundle, checkpoint: Path) -> None:
    """Both must prepare their input alike, or their results differ for that alone.

    Raises
    ------
    CheckpointError
        If they do not, or the checkpoint cannot be read.
    """
    from lesionrt.train.checkpoint import load_checkpoint

    found = load_checkpoint(checkpoint).preparation
    if found != bundle.preparation:
        raise CheckpointError(
            f"{checkpoint}: prepares its input as {found}, the bundle {bundle.path} as {bundle.preparation}; export it again"
        )
