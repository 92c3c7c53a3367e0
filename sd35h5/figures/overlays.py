"""Arrays → pictures: attention maps in colour, overlays, contact sheets and GIFs, with Pillow and numpy."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sd35h5.store.showable import showable

#: matplotlib's inferno (CC0), every 17th of its 256 entries: perceptually uniform, readable by colour-blind
#: eyes
_INFERNO = (
    "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c c73e4c dd513a ed6925 "
    "f8850f fca50a fac62d f2e661 fcffa4"
)
FONT = Path(__file__).with_name("fonts") / "scripts.ttf"
LEAST = 512  # pixels of the longer side of a picture with names in it
_CYAN = "#00e5ff"  # which inferno has not
_BLACK, _GRAY = "#222222", "#808080"  # the grey has a contrast of 4 on white and of 5 on black


def _lut() -> np.ndarray:
    stops = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in _INFERNO.split()], float)
    at = np.linspace(0, len(stops) - 1, 256)
    columns = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.stack(columns, axis=1).round().astype(np.uint8)


def scaled(values: np.ndarray, low: float = 0.0, high: float | None = None) -> np.ndarray:
    """Return the map as 0..1 between low and high (its own maximum when None); NaN becomes 0. float64 (y,
    x)."""
    values = np.nan_to_num(np.asarray(values, float))
    top = float(values.max()) if high is None else high
    return np.clip((values - low) / max(top - low, 1e-30), 0, 1)


def resized(values: np.ndarray, shape: tuple[int, int], smooth: bool = True) -> np.ndarray:
    """Return a (y, x) map of 0..1 at the given (height, width): smooth between patch centres, or patches as
    squares."""
    picture = Image.fromarray(np.asarray(values, np.float32), mode="F")
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.clip(np.asarray(picture.resize((shape[1], shape[0]), how)), 0, 1)


def colored(values: np.ndarray) -> np.ndarray:
    """Return values of 0..1 in inferno colours: uint8 (y, x, 3)."""
    return _lut()[(np.clip(values, 0, 1) * 255).round().astype(int)]


def map_picture(
    values: np.ndarray,
    shape: tuple[int, int],
    *,
    low: float = 0.0,
    high: float | None = None,
    smooth: bool = False,
) -> np.ndarray:
    """Return a map alone in colour: uint8 (height, width, 3)."""
    return colored(resized(scaled(values, low, high), shape, smooth))


def overlay(
    image: np.ndarray,
    values: np.ndarray,
    *,
    opacity: float = 0.6,
    low: float = 0.0,
    high: float | None = None,
    smooth: bool = True,
) -> np.ndarray:
    """Return the image with the map over it; opacity 0 shows the image alone, 1 the map alone.

    The map covers the image as far as attention is high and lets it through where it is low; the image turns
    grey as far as it is covered, so that its colours cannot be mistaken for the map's.
    Args: image uint8 (y, x, 3); values (y, x) of any size; low, high: the ends of the colour scale.
    """
    weight = resized(scaled(values, low, high), image.shape[:2], smooth)
    gray = image.astype(float).mean(axis=2, keepdims=True)
    seen = np.clip(1.5 * weight - 0.05, 0, 1)  # the lowest values are no colour at all
    cover = (opacity * (opacity**6 + (1 - opacity**6) * seen))[..., None]
    ground = image * (1 - cover) + gray * cover
    return np.clip(ground * (1 - cover) + colored(weight) * cover, 0, 255).astype(np.uint8)


def sheet(
    pictures: Sequence[np.ndarray],
    labels: Sequence[str],
    *,
    columns: int,
    size: tuple[int, int],
    title: str = "",
    clear: bool = False,
) -> Image.Image:
    """Return a contact sheet: pictures row by row, each (height, width) `size` with its label under it.

    Args: clear: a transparent ground and grey letters, for pages that may be light or dark; else black on
    white.
    """
    height, width = size
    band, gap = 20, 8
    rows = -(-len(pictures) // columns)
    top = 30 if title else gap
    canvas = _canvas((columns * (width + gap) + gap, top + rows * (height + band + gap)), clear)
    draw, ink = ImageDraw.Draw(canvas), _GRAY if clear else _BLACK
    if title:
        _write(draw, (gap, 8), fitted(title, canvas.width - 2 * gap, 14), 14, ink)
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(place, columns)
        left, upper = gap + column * (width + gap), top + row * (height + band + gap)
        tile = Image.fromarray(np.ascontiguousarray(picture))
        if tile.size != (width, height):
            tile = tile.resize((width, height), Image.Resampling.LANCZOS)
        canvas.paste(tile, (left, upper))
        _write(draw, (left, upper + height + 3), fitted(label, width, 12), 12, ink)
    return canvas


def gif(frames: Sequence[np.ndarray | Image.Image], milliseconds: int = 450) -> bytes:
    """Return the frames as an endlessly looping GIF that rests on its last frame."""
    pictures = [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(pictures) - 1) + [milliseconds * 3]
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
    )
    return buffer.getvalue()


def png(picture: np.ndarray | Image.Image) -> bytes:
    """Return the picture as PNG."""
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def color_bar(low: float, high: float, width: int = 256, clear: bool = False) -> Image.Image:
    """Return inferno from low to high with both ends written under it."""
    canvas = _canvas((width, 32), clear)
    canvas.paste(
        Image.fromarray(np.broadcast_to(colored(np.linspace(0, 1, width)), (12, width, 3)).copy()), (0, 0)
    )
    draw, ink = ImageDraw.Draw(canvas), _GRAY if clear else _BLACK
    _write(draw, (0, 15), f"{low:.3g}", 12, ink)
    _write(draw, (width, 15), f"{high:.3g}", 12, ink, side="r")
    return canvas


def _canvas(size: tuple[int, int], clear: bool) -> Image.Image:
    return Image.new("RGBA", size, (0, 0, 0, 0)) if clear else Image.new("RGB", size, "white")


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, ink: object, side: str = "l"
) -> None:
    """Write a line whose capitals begin at `place`: the font leaves room for the tallest of all scripts above them."""
    x, y = place
    draw.text((x, y + size), text, fill=ink, font=font(size), anchor=f"{side}s")


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the bundled font: Pillow's own has no é, and a machine may have none."""
    return ImageFont.truetype(FONT, size)


def fitted(text: str, width: int, size: int) -> str:
    """Return the text on one line, shortened with … so that it fits the width in pixels."""
    text, face = showable(text, width), font(size)  # no letter is narrower than a pixel
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def boxed(
    picture: np.ndarray, boxes: Sequence[tuple[tuple[float, float, float, float], str, bool]]
) -> np.ndarray:
    """Return the picture with outlined boxes, each with its name; white, the chosen ones cyan.

    Args: picture uint8 (y, x, 3), a small one is enlarged so that names can be read; boxes: (left, top, right, bottom)
        as shares of the width and the height 0..1, name, chosen.
    """
    canvas = Image.fromarray(np.ascontiguousarray(picture))
    times = max(1, round(LEAST / max(canvas.size)))
    canvas = canvas.resize((canvas.width * times, canvas.height * times), Image.Resampling.BICUBIC)
    draw, (width, height) = ImageDraw.Draw(canvas), canvas.size
    size = max(12, round(max(canvas.size) / 26))
    for (left, top, right, bottom), name, chosen in sorted(boxes, key=lambda one: one[2]):
        x0, y0, x1, y1 = left * width, top * height, right * width - 1, bottom * height - 1
        ink = _CYAN if chosen else "#ffffff"
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="#000000", width=5)
        draw.rectangle((x0, y0, x1, y1), outline=ink, width=3)
        if not (name := showable(name, 80)):
            continue
        above = y0 - size - 10
        place = (x0 + 4, above if above >= 0 else y1 + 2)
        ground = draw.textbbox((place[0], place[1] + size), name, font=font(size), anchor="ls")
        draw.rectangle((ground[0] - 4, ground[1] - 3, ground[2] + 4, ground[3] + 3), fill="#000000")
        _write(draw, place, name, size, ink)
    return np.asarray(canvas)
