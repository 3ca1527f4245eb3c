"""Small pictures for pages: made anew from their pixels, so that nothing of a stranger's file but the picture reaches the page."""

import base64
import io

from PIL import Image

__all__ = ["PICTURE_SIDE", "picture_uri"]

PICTURE_SIDE = 200
"""Longer side of a picture on a page (pixels)."""

MAX_PIXELS = 89_478_485
"""Width x height of the largest picture that is decoded (Pillow's own limit)."""

FORMATS = ("JPEG", "PNG", "WEBP")
"""What shards hold. Formats that start programs or run code (EPS, PDF) are never tried."""


def picture_uri(data: bytes, *, formats: tuple[str, ...] = FORMATS, side: int = PICTURE_SIDE) -> str:
    """A picture as a small `data:` URI. Raises ValueError or OSError for what is no whole picture of these formats, or too large."""
    with Image.open(io.BytesIO(data), formats=formats) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}")
        opened.draft("RGB", (side, side))  # JPEG only: decodes at a fraction of the size
        drawn = opened.convert("RGBA")
    drawn.thumbnail((side, side))
    paper = Image.new("RGB", drawn.size, "white")
    paper.paste(drawn, mask=drawn.getchannel("A"))
    out = io.BytesIO()
    # Tiny pictures stay exact: JPEG's blocks would be seen when the page enlarges them.
    kind = "png" if max(paper.size) <= 64 else "jpeg"
    paper.save(out, kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
