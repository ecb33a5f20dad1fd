"""Pictures of reference and prediction as in the paper's Figure 6."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lesionrt.runtime.view import view
from lesionrt.runtime.volume import Volume

SLICES = 3  # rows of the picture: three regions of the brain
PANELS = ("FLAIR", "reference", "prediction", "differences")
TILE = 260  # pixels along a slice's longer side
GAP, HEAD = 4, 22  # pixels between tiles, and of the line above them
FONT = 14
ROOM_MM = 4.0  # around the brain
DIMMED = 0.35  # of the FLAIR's brightness behind the differences
FRAME = (20, 20, 24)
TEXT = (225, 225, 225)
FALSE_POSITIVE = (255, 70, 70)
FALSE_NEGATIVE = (60, 210, 90)
AGREED = (235, 235, 235)


def difference_picture(flair: Volume, reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> bytes:
    """Three slices: FLAIR, reference, prediction, and false positives in red, false negatives in green; as PNG.

    Slices are seen from the feet: the patient's left is on the right.
    """
    seen = view(flair, ROOM_MM)
    one, other = seen.cut(reference), seen.cut(prediction)
    chosen = seen.choose(one | other, SLICES)
    width, height = seen.tile_size(TILE)
    picture = Image.new("RGB", (len(PANELS) * (width + GAP) - GAP, HEAD + len(chosen) * (height + GAP) - GAP), FRAME)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT)
    for column, title in enumerate(PANELS):
        draw.text((column * (width + GAP) + width // 2, HEAD // 2), title, TEXT, font, anchor="mm")
    for row, k in enumerate(chosen):
        top = HEAD + row * (height + GAP)
        tiles = _tiles(seen.grey(k).T, one[:, :, k].T, other[:, :, k].T)
        for column, tile in enumerate(tiles):
            how = Image.Resampling.BICUBIC if column == 0 else Image.Resampling.NEAREST
            picture.paste(Image.fromarray(tile).resize((width, height), how), (column * (width + GAP), top))
        # On the reference's black, where it hides nothing of the brain.
        where = (width + GAP + 5, top + height - 5)
        draw.text(where, f"slice {k + 1} of {seen.image.shape[2]}, from below", TEXT, font, anchor="ls")
        draw.text((4, top + 4), "R", TEXT, font, anchor="lt")
        draw.text((width - 4, top + 4), "L", TEXT, font, anchor="rt")
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tiles(grey: NDArray[np.float32], one: NDArray[np.bool_], other: NDArray[np.bool_]) -> list[NDArray[np.uint8]]:
    """The four panels of a slice, (H, W, 3)."""
    flair = np.repeat((grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    differences = (flair * DIMMED).astype(np.uint8)
    differences[one & other] = AGREED
    differences[other & ~one] = FALSE_POSITIVE
    differences[one & ~other] = FALSE_NEGATIVE
    masks = [np.repeat((mask * np.uint8(255))[..., None], 3, axis=2) for mask in (one, other)]
    return [flair, *masks, differences]
