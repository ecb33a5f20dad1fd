"""A picture that shows at a glance what was found."""

from io import BytesIO
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lesionrt.runtime.segmenter import Segmentation
from lesionrt.runtime.view import view

SLICES = 6
COLUMNS = 3
TILE = 340  # pixels along a slice's longer side
GAP = 6  # pixels between slices
CAPTION_WIDTH = 480  # pixels, at least
FONT, LINE = 16, 22  # pixels
ROOM_MM = 12.0  # around the head, for the letters at its sides
BRIGHTEST = 225  # grey value of the brightest tissue, so that the outline stands out
FRAME = (34, 34, 40)
RED = (255, 64, 64)
WHITE = (235, 235, 235)
AMBER = (255, 190, 60)


def draw_overlay(result: Segmentation) -> bytes:
    """The slices with most lesion, outlined in red, seen from the feet (patient's left on the right), as PNG."""
    seen = view(result.flair, ROOM_MM)
    mask: NDArray[np.bool_] = seen.cut(np.asarray(result.mask.dataobj).reshape(result.flair.shape)) > 0
    positions = _positions_mm(result, int(seen.axes[2]))
    width, height = size = seen.tile_size(TILE)
    tiles = [_tile(seen.grey(k), mask[:, :, k], size, positions[k]) for k in seen.choose(mask, SLICES)]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    font = ImageFont.load_default(FONT)
    across = max(columns * (width + GAP) - GAP, CAPTION_WIDTH)
    lines = _caption(result, font, across - 2 * GAP)
    head = GAP + LINE * len(lines) + GAP
    picture = Image.new("RGB", (across, head + rows * (height + GAP)), FRAME)
    draw = ImageDraw.Draw(picture)
    for number, (line, colour) in enumerate(lines):
        draw.text((GAP, GAP + LINE * number), line, colour, font)
    for number, tile in enumerate(tiles):
        picture.paste(tile, (number % columns * (width + GAP), head + number // columns * (height + GAP)))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _positions_mm(result: Segmentation, axis: int) -> NDArray[np.float64]:
    """Superior position of each slice's centre, inferior to superior."""
    affine, shape = result.flair.affine, result.flair.shape
    index = (np.array(shape) - 1) / 2 * np.ones((shape[axis], 1))
    index[:, axis] = np.arange(shape[axis])
    positions: NDArray[np.float64] = index @ affine[2, :3] + affine[2, 3]
    return positions if affine[2, axis] > 0 else positions[::-1]


def _tile(grey: NDArray[np.float32], mask: NDArray[np.bool_], size: tuple[int, int], position_mm: float) -> Image.Image:
    """One slice (L, P), with its lesions outlined and its sides named."""
    width, height = size
    tile = Image.fromarray((grey.T * BRIGHTEST).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    # Where a slice is shrunk, nearest neighbours would drop whole rows, and small lesions with them.
    way = Image.Resampling.BOX if width < mask.shape[0] or height < mask.shape[1] else Image.Resampling.NEAREST
    large = np.asarray(Image.fromarray(mask.T.astype(np.uint8) * 255).resize(size, way)) > 0
    pixels = np.array(tile)
    pixels[large & ~scipy.ndimage.binary_erosion(large)] = RED
    tile = Image.fromarray(pixels)
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(FONT)
    draw.text((4, height // 2), "R", WHITE, font, anchor="lm")
    draw.text((width - 4, height // 2), "L", WHITE, font, anchor="rm")
    draw.text((4, height - 4), f"S {position_mm:.0f} mm", WHITE, font, anchor="ls")
    return tile


def _caption(result: Segmentation, font: Any, width: int) -> list[tuple[str, tuple[int, int, int]]]:
    report = result.report
    found = f"{report['lesion_count']} lesions, {report['lesion_volume_ml']:.2f} ml, probability over {report['threshold']:g}"
    lines = [(_shortened(report["input"], font, width), WHITE), (found, WHITE)]
    if not report["model"]["trained"]:
        lines.append(("UNTRAINED MODEL: the outlines mean nothing", AMBER))
    return [(_shortened(line, font, width), colour) for line, colour in lines]


def _shortened(text: str, font: Any, width: int) -> str:
    """The end of a text that is too long for a line; a file's name stands there."""
    if font.getlength(text) <= width:
        return text
    while font.getlength("…" + text) > width and len(text) > 1:
        text = text[1:]
    return "…" + text
