"""Pictures of reference and prediction as in the paper's Figure 6."""

from io import BytesIO

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
    turn = ornt_transform(io_orientation(flair.affine), axcodes2ornt(("L", "P", "S")))
    image, one, other = (apply_orientation(data, turn) for data in (flair.data, reference, prediction))
    spacing = voxel_sizes(flair.affine)[np.argsort(turn[:, 0])]
    tissue = image != 0
    box = tuple(_span(tissue.any(axis=axes), size) for axes, size in (((1, 2), spacing[0]), ((0, 2), spacing[1])))
    low, high = np.percentile(image[tissue], [1, 99.5])
    grey = np.clip((image[box] - low) / max(float(high - low), np.finfo(np.float32).tiny), 0, 1)
    grey[~tissue[box]] = 0
    chosen = _choose(one | other, tissue)
    extent = np.array(grey.shape[:2]) * spacing[:2]
    width, height = (max(1, int(n)) for n in np.round(extent / extent.max() * TILE))
    picture = Image.new("RGB", (len(PANELS) * (width + GAP) - GAP, HEAD + len(chosen) * (height + GAP) - GAP), FRAME)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT)
    for column, title in enumerate(PANELS):
        draw.text((column * (width + GAP) + width // 2, HEAD // 2), title, TEXT, font, anchor="mm")
    for row, k in enumerate(chosen):
        top = HEAD + row * (height + GAP)
        tiles = _tiles(grey[:, :, k].T, one[box][:, :, k].T, other[box][:, :, k].T)
        for column, tile in enumerate(tiles):
            how = Image.Resampling.BICUBIC if column == 0 else Image.Resampling.NEAREST
            picture.paste(Image.fromarray(tile).resize((width, height), how), (column * (width + GAP), top))
        # On the reference's black, where it hides nothing of the brain.
        where = (width + GAP + 5, top + height - 5)
        draw.text(where, f"slice {k + 1} of {grey.shape[2]}, from below", TEXT, font, anchor="ls")
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


def _choose(lesions: NDArray[np.bool_], tissue: NDArray[np.bool_]) -> list[int]:
    """The fullest slice of the lower, middle and upper third of those with lesions; the middles if there are none."""
    area = lesions.sum(axis=(0, 1))
    if area.any():
        parts = np.array_split(np.flatnonzero(area), SLICES)
        return [int(part[area[part].argmax()]) for part in parts if len(part)]
    parts = np.array_split(np.flatnonzero(tissue.any(axis=(0, 1))), SLICES)
    return [int(part[len(part) // 2]) for part in parts if len(part)]


def _span(tissue: NDArray[np.bool_], spacing: float) -> slice:
    """Where the brain is along an axis."""
    where = np.flatnonzero(tissue)
    room = round(ROOM_MM / spacing)
    return slice(max(0, int(where[0]) - room), int(where[-1]) + room + 1)
