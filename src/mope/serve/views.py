"""What the page shows of a prediction: routing as a heat map, and pictures of where it looked."""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from mope.config import InputConfig
from mope.media.images import open_image
from mope.media.masks import open_mask, overlay

_SIDE = 480
"""Longest side of a picture on the page, in pixels."""

_NUMBERED = 16
"""Experts up to which each cell says its number."""

# Gradio draws lines around tables, and cells of its own size.
_STYLE = """
.mope-routing table {border-collapse: separate !important; border-spacing: 2px !important; width: 100%;
  table-layout: fixed; border: none !important; margin: 0 !important}
.mope-routing th {font-weight: 400 !important; font-size: 12px !important; text-align: center;
  border: none !important; padding: 2px !important; color: var(--body-text-color) !important}
.mope-routing th:first-child {width: 5em; text-align: right; padding-right: 8px !important;
  white-space: nowrap}
.mope-routing td {height: 22px; text-align: center; font-size: 12px !important; border-radius: 3px;
  border: none !important; padding: 2px !important}
.mope-routing p {font-size: 14px !important; margin: 4px 0 8px; color: var(--body-text-color)}
"""


def page_style() -> str:
    """The style sheet of what is below."""
    return _STYLE


def routing_html(routing: Sequence[Sequence[float]], layers: Sequence[str], main: str) -> str:
    """A table of layers by experts, each cell as dark as the expert's share is large; empty without routing.

    Args:
        routing: scores of each layer's experts, (L, k).
        layers: what they are called, see `Fusion.routed_layers`.
        main: name of the main input.
    """
    if not routing:
        return ""
    experts = len(routing[0])
    names = range(1, experts + 1) if experts <= _NUMBERED else [""] * experts
    head = "".join(f"<th>{f'expert {n}' if experts <= 8 else n}</th>" for n in names)
    rows = []
    for called, layer in zip(layers, routing, strict=True):
        cells = "".join(_cell(share, experts <= _NUMBERED) for share in layer)
        rows.append(f"<tr><th>layer {escape(called)}</th>{cells}</tr>")
    of = f"the {escape(main)} encoder" if layers[0].isdecimal() else "each encoder"
    text = f"Routing: the share of each expert in the prompt of each layer of {of}, in %."
    return (
        f'<div class="mope-routing"><p>{text}</p><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(share: float, numbered: bool) -> str:
    # From near white to a dark blue, with a text that can be read on it, whatever the page's theme.
    low, high = (236, 242, 249), (23, 78, 132)
    colour = ",".join(str(round(a + (b - a) * share)) for a, b in zip(low, high, strict=True))
    text = f"{100 * share:.0f}" if numbered else ""
    ink = "#fff" if share > 0.45 else "#1b2733"
    return f'<td style="background:rgb({colour});color:{ink}" title="{100 * share:.1f} %">{text}</td>'


def masked_picture(content: bytes, mask: Any) -> Image.Image:
    """A picture with the predicted mask laid over it, as large as the page shows it."""
    shown = overlay(open_image(content, Path()), open_mask(mask, Path(), empty=True))
    return _contained(shown, 2 * _SIDE)


def attention_picture(content: bytes, attention: Any, entry: InputConfig) -> Image.Image:
    """A picture, dark where the attention (rows, columns) is small.

    Args:
        content: the picture's file.
        attention: over its patches.
        entry: says which part of it the encoder sees.
    """
    from mope.insight.figures import glow, seen_part

    picture = seen_part(open_image(content, Path()), entry)
    return glow(_contained(picture, _SIDE), attention)


def _contained(picture: Image.Image, side: int) -> Image.Image:
    """A picture in a square, however flat or narrow it is."""
    scale = side / max(picture.size)
    width, height = (max(1, round(n * scale)) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def suffix_of(content: bytes, kind: str) -> str:
    """The end of a name for a file with this content, so that a browser knows what it is."""
    if kind == "image":
        with Image.open(io.BytesIO(content)) as image:
            return f".{(image.format or 'png').lower()}"
    return {"audio": ".wav", "video": ".mp4"}[kind]
