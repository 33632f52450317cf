"""Boxes drawn into photographs."""

import colorsys
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXT_SIZE = 12
GAP = 8
"""Pixels between the images of a sheet."""
BACKGROUND, INK = (255, 255, 255), (31, 41, 51)

Colour = tuple[int, int, int]


class Drawn(NamedTuple):
    """A box to draw, in pixels of the picture."""

    box: Sequence[float]
    """x1, y1, x2, y2."""
    text: str
    colour: Colour
    width: int = 2


def class_colour(label: int) -> Colour:
    """A colour for a class; neighbouring classes have colours far apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(pixels: np.ndarray, boxes: Sequence[Drawn]) -> Image.Image:
    """An image, uint8 (H, W, 3), with boxes and their texts, the last one on top."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT_SIZE)
    for box, _, colour, width in boxes:
        draw.rectangle(_within(box, picture.size), outline=colour, width=width)
    for box, text, colour, _ in boxes:  # after all boxes, so that no line crosses a text
        if text:
            x1, y1, _, _ = _within(box, picture.size)
            _label(draw, font, text, (x1, y1), colour, picture.size)
    return picture


def _within(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box cut at the border of the picture, with corners in order."""
    x = sorted(min(max(float(v), 0), size[0] - 1) for v in (box[0], box[2]))
    y = sorted(min(max(float(v), 0), size[1] - 1) for v in (box[1], box[3]))
    return x[0], y[0], x[1], y[1]


def _label(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: str,
    corner: tuple[float, float],
    colour: Colour,
    size: tuple[int, int],
) -> None:
    """A text on its colour, above the corner if there is room, else below it."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)


def scaled(pixels: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """An image whose longer side has `side` pixels, and the factor by which its boxes grow."""
    factor = side / max(pixels.shape[:2])
    height, width = (max(1, round(factor * length)) for length in pixels.shape[:2])
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized), factor


def sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Rows of images, each with a title above it, as one picture."""
    font = ImageFont.load_default(TEXT_SIZE)
    head = TEXT_SIZE + 8
    columns = max(map(len, rows))
    widths = [max(row[i][1].width for row in rows if i < len(row)) for i in range(columns)]
    heights = [max(picture.height for _, picture in row) for row in rows]
    size = sum(widths) + GAP * (columns + 1), sum(heights) + (head + GAP) * len(rows)
    whole = Image.new("RGB", size, BACKGROUND)
    draw, y = ImageDraw.Draw(whole), 0
    for row, height in zip(rows, heights, strict=True):
        x = GAP
        for (title, picture), width in zip(row, widths[: len(row)], strict=True):
            draw.text((x, y + 4), _shortened(draw, title, width), fill=INK, font=font)
            whole.paste(picture, (x, y + head))
            x += width + GAP
        y += height + head + GAP
    return whole


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """A text cut to a width in pixels."""
    font = ImageFont.load_default(TEXT_SIZE)
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-2] + "…"
    return text


def png(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
