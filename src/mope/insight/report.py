"""One HTML file about a run: no network, opens from disk."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from PIL import Image

from mope.insight.figures import Figure

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.7em}h2{margin-top:2em;border-bottom:1px solid #ccc}h3{margin-bottom:.3em}
table{border-collapse:collapse}td,th{padding:.2em .7em;text-align:left;border-bottom:1px solid #eee}
figure{margin:1em 0}figure img{max-width:100%}figcaption,.note{color:#555;font-size:.9em}
.gallery{display:flex;flex-wrap:wrap;gap:6px}.gallery div{width:104px;font-size:11px;line-height:1.25}
.gallery span{display:block;width:100px;height:100px;background:#f4f4f4 center/contain no-repeat}
.gallery small{color:#777}
.words{margin:.2em 0}.words b{background:#e4eefa;padding:.05em .4em;margin-right:.3em;font-weight:600}
.words i{background:#fbe9e2;padding:.05em .4em;margin-right:.3em;font-style:normal}
details{margin:.4em 0}summary{cursor:pointer;font-weight:600}
.expert{border:1px solid #ddd;border-radius:6px;padding:.6em .8em;margin:.6em 0}
"""


@dataclass
class Page:
    """The parts of a report, in order, and the figures that are also written as files.

    Attributes:
        title: its heading.
        parts: HTML.
        figures: PNG and numbers by name.
        pictures: addresses of small pictures by name; however often one is shown, the file has it once.
    """

    title: str
    parts: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)

    def heading(self, text: str, note: str = "") -> None:
        """Begin a section."""
        self.parts.append(f"<h2>{escape(text)}</h2>")
        if note:
            self.note(note)

    def note(self, text: str) -> None:
        """Add a paragraph of explanation."""
        self.parts.append(f'<p class="note">{escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table."""
        head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
        )
        self.parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Add a picture."""
        self.figures[name] = figure
        self.parts.append(
            f'<figure><img alt="{escape(caption)}" src="{data_uri(figure[0], "png")}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def picture(self, name: str, address: str) -> str:
        """Keep a small picture under a name, which is also returned."""
        self.pictures[name] = address
        return name

    def html(self) -> str:
        """The whole page."""
        small = "".join(
            f".{name}{{background-image:url({address})!important}}\n"
            for name, address in self.pictures.items()
        )
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f"<style>{_STYLE}{small}</style></head><body><h1>{escape(self.title)}</h1>"
            + "\n".join(self.parts)
            + "</body></html>\n"
        )


def data_uri(content: bytes, kind: str) -> str:
    """A picture's bytes as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(picture: Image.Image, side: int = 100) -> str:
    """A small JPEG of a picture, as an address."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return data_uri(stream.getvalue(), "jpeg")


@dataclass(frozen=True)
class Sample:
    """A row as a gallery shows it.

    Attributes:
        picture: name of its picture in the page; None for a row without one.
        text: its texts.
        label: its label; empty without one.
    """

    picture: str | None
    text: str
    label: str = ""

    def html(self, score: float) -> str:
        """The row, with its routing score."""
        image = f'<span class="{self.picture}" role="img"></span>' if self.picture else ""
        label = f"<br><b>{escape(self.label)}</b>" if self.label else ""
        return f"<div>{image}{escape(self.text[:140])}{label} <small>{score:.0%}</small></div>"


def expert_html(
    name: str,
    share: float,
    stand_out: Mapping[str, Sequence[tuple[str, float]]],
    samples: Sequence[tuple[Sample, float]],
) -> str:
    """One expert: what it takes, in a sentence, the words and labels that stand out, and its samples.

    Args:
        name: what it is called.
        share: of its layer's routing.
        stand_out: "words" and "labels" that are more frequent in the rows it takes, (name, z) each.
        samples: with their scores, best first.
    """
    tags = "".join(
        f'<{tag} title="{z:.1f} standard deviations above chance">{escape(word)}</{tag}>'
        for tag, kind in (("b", "words"), ("i", "labels"))
        for word, z in stand_out[kind]
    )
    shown = "".join(sample.html(score) for sample, score in samples)
    return (
        f'<div class="expert"><h3>{escape(name)}: {describe(share, stand_out)}</h3>'
        f'<p class="words">{tags or "no word or label is more frequent than in other rows"}</p>'
        f'<div class="gallery">{shown}</div></div>'
    )


def describe(share: float, stand_out: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """What an expert does, in a few words."""
    if share < 0.005:
        return "hardly ever used"
    used = f"takes {share:.0%} of its layer's routing"
    parts = [
        f"{kind} {', '.join(f'“{escape(word)}”' for word, _ in stand_out[kind][:most])}"
        for kind, most in (("words", 4), ("labels", 3))
        if stand_out[kind]
    ]
    return f"{used}, above all {' and '.join(parts)}" if parts else f"{used}, of every sort of rows"
