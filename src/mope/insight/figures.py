"""The pictures of a report, by matplotlib and Pillow: each a PNG, with the numbers it was drawn from."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from mope.config import InputConfig
from mope.errors import UserError
from mope.insight.routing import Floats, effective_experts, routing_course
from mope.insight.shuffle import Loss

Figure = tuple[bytes, Any]
"""A PNG, and the numbers it was drawn from."""

_SCORED = 120
CONFUSED = 25
"""Labels that a confusion matrix has at most."""

_BLUE, _RED = "#30638e", "#d1495b"


def canvas(width: float, height: float) -> Any:
    """An empty figure, in inches.

    Raises:
        UserError: matplotlib isn't installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Plot
    except ImportError:
        raise UserError("Pictures of a run take matplotlib: pip install 'mope-fusion[studies]'.") from None
    plot = Plot(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(plot)
    return plot


def png(plot: Any) -> bytes:
    """A figure's bytes."""
    stream = io.BytesIO()
    plot.savefig(stream, dpi=110, format="png")
    return stream.getvalue()


def importance_map(importance: Floats, names: Sequence[str]) -> Figure:
    """Share of the routing by layer, which have names, and expert, (L, k)."""
    layers, experts = importance.shape
    plot = canvas(max(4.5, 0.55 * experts + 1.6), max(2.4, 0.32 * layers + 0.9))
    axes = plot.add_subplot()
    shown = axes.imshow(importance, cmap="viridis", vmin=0, vmax=max(importance.max(), 1e-9), aspect="auto")
    axes.set(xlabel="expert", ylabel="layer")
    axes.set_xticks(range(experts), [str(n + 1) for n in range(experts)])
    axes.set_yticks(range(layers), names)
    if experts <= 16:
        for layer in range(layers):
            for expert in range(experts):
                share = importance[layer, expert]
                colour = "black" if share > 0.6 * importance.max() else "white"
                axes.text(expert, layer, f"{100 * share:.0f}", ha="center", va="center", color=colour, size=7)
    plot.colorbar(shown, label="part of its layer's routing (numbers in %)")
    return png(plot), {"importance": importance.tolist()}


def training_course(history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure | None:
    """How many experts each layer uses over training, beside half of them; the last layer's shares.

    The paper has such a figure of one layer's shares (Fig. 7).

    Args:
        history: a run's, an entry per epoch; shares are of windows of batches within it, where it has them.
        names: of the layers.
    """
    entries = [entry for entry in history if "importance" in entry]
    if not entries:
        return None
    steps, shares = routing_course(entries)
    used = effective_experts(shares)
    count = shares.shape[2]
    plot = canvas(9, 3.2)
    left, right = plot.subplots(1, 2)
    for layer in range(used.shape[1]):
        shade = 0.25 + 0.7 * layer / used.shape[1]
        left.plot(steps, used[:, layer], color=_BLUE, alpha=shade, marker=".")
    left.axhline(count / 2, color=_RED, linestyle="--", label="half of them")
    left.set(
        xlabel="step",
        ylabel=f"experts used, of {count}",
        title="each layer; later ones darker",
        ylim=(0.9, count * 1.03),
    )
    left.legend(fontsize=8)
    for expert in range(count):
        right.plot(steps, shares[:, -1, expert], marker=".", label=f"expert {expert + 1}")
    right.set(
        xlabel="step",
        ylabel="part of the layer's routing",
        title=f"the experts of layer {names[-1]}",
        ylim=(0, 1),
    )
    if count <= 8:
        right.legend(fontsize=8)
    return png(plot), {"steps": steps, "importance": shares.tolist(), "effective_experts": used.tolist()}


def confusion(found: NDArray[numpy.integer], labels: Sequence[str]) -> Figure:
    """How often each label (rows) got each answer (columns); beyond 25 labels, the rarest are one."""
    names, counts = list(labels), found
    if len(labels) > CONFUSED:
        order = numpy.argsort(-found.sum(axis=1), kind="stable")
        kept, rest = numpy.sort(order[: CONFUSED - 1]), order[CONFUSED - 1 :]
        names = [labels[place] for place in kept] + [f"{len(rest)} others"]
        groups = [*([place] for place in kept), rest]
        counts = numpy.array([[found[numpy.ix_(a, b)].sum() for b in groups] for a in groups])
    side = max(3.6, 0.3 * len(names) + 1.6)
    plot = canvas(side + 0.8, side)
    axes = plot.add_subplot()
    shares = counts / numpy.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="answer", ylabel="label")
    for row, column in zip(*numpy.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, size=7)
    return png(plot), {"labels": names, "counts": counts.tolist()}


def label_f1(found: Mapping[str, float], counts: Sequence[int] | None = None) -> Figure:
    """F1 of each label; of more than 120, which no picture has room for, those that come most often.

    Args:
        found: by label.
        counts: rows of each, in the same order; None where they aren't known.
    """
    counted = zip(counts or [0] * len(found), found.items(), strict=True)
    often = sorted(counted, key=lambda pair: -pair[0])[:_SCORED]
    ordered = sorted((item for _, item in often), key=lambda pair: pair[1])
    plot = canvas(5.5, max(2.2, 0.24 * len(ordered) + 0.8))
    axes = plot.add_subplot()
    axes.barh([name for name, _ in ordered], [value for _, value in ordered], color=_BLUE)
    axes.set(xlabel="F1", xlim=(0, 1))
    return png(plot), {"f1": dict(found)}


def scatter(targets: Sequence[float], answers: Sequence[float]) -> Figure:
    """Answers of a regression against its labels."""
    plot = canvas(4.2, 4)
    axes = plot.add_subplot()
    axes.plot(targets, answers, ".", color=_BLUE, alpha=0.5)
    ends = [min(targets), max(targets)]
    axes.plot(ends, ends, color=_RED, linewidth=1)
    axes.set(xlabel="label", ylabel="answer")
    return png(plot), {"targets": list(map(float, targets)), "answers": list(map(float, answers))}


def shuffled(losses: Sequence[Loss]) -> Figure:
    """What shuffling inputs costs, with 95 % intervals."""
    plot = canvas(6.5, 0.5 * len(losses) + 1.2)
    axes = plot.add_subplot()
    names = [" + ".join(loss.inputs) for loss in losses][::-1]
    values = [loss.difference for loss in losses][::-1]
    errors = numpy.array(
        [[max(0.0, e.difference - e.low), max(0.0, e.high - e.difference)] for e in losses][::-1]
    )
    axes.barh(names, values, xerr=errors.T, color=_BLUE, capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"change of {losses[0].metric} with another row's")
    return png(plot), {"shuffled": [vars(loss) for loss in losses]}


def similarity(found: Floats, names: Sequence[str]) -> Figure:
    """Cosine similarity of the experts of the first, middle and last layer, (L, k, k)."""
    chosen = sorted({0, len(found) // 2, len(found) - 1})
    plot = canvas(2.6 * len(chosen) + 0.8, 2.8)
    shown: Any = None
    panels = plot.subplots(1, len(chosen), squeeze=False)[0]
    for axes, layer in zip(panels, chosen, strict=True):
        shown = axes.imshow(found[layer], cmap="coolwarm", vmin=-1, vmax=1)
        axes.set_title(f"layer {names[layer]}", fontsize=9)
        ticks = range(found.shape[1]) if found.shape[1] <= 16 else []
        axes.set_xticks(ticks, [str(n + 1) for n in ticks], fontsize=7)
        axes.set_yticks(ticks, [str(n + 1) for n in ticks], fontsize=7)
    plot.colorbar(shown, ax=list(panels), label="how alike (1: the same)")
    return png(plot), {"similarity": found.tolist()}


def seen_part(picture: Image.Image, entry: InputConfig) -> Image.Image:
    """What the encoder sees of a picture: all of it, or with `resize` the middle of it."""
    if not entry.resize or not isinstance(entry.size, int):
        return picture
    # The whole is squeezed into a square of one size, of which the middle is cut out.
    part = min(entry.size / entry.resize, 1.0)
    left, top = (round(n * (1 - part) / 2) for n in picture.size)
    return picture.crop((left, top, picture.width - left, picture.height - top))


def glow(picture: Image.Image, attention: Floats) -> Image.Image:
    """A picture, dark where attention (rows, columns) is small."""
    spread = attention - attention.min()
    spread = spread / max(float(spread.max()), 1e-12)
    mask = Image.fromarray((255 * spread).astype(numpy.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    dark = Image.blend(picture, Image.new("RGB", picture.size, (10, 10, 40)), 0.8)
    return Image.composite(picture, dark, mask)


def strip(pictures: Sequence[Image.Image], captions: Sequence[str], side: int = 150) -> Image.Image:
    """Pictures in a row, each with a caption under it."""
    room = 48
    whole = Image.new("RGB", ((side + 8) * len(pictures), side + room), "white")
    draw = ImageDraw.Draw(whole)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        shown = ImageOps.contain(picture.convert("RGB"), (side, side))
        whole.paste(shown, (place * (side + 8), 0))
        lines = textwrap.wrap(caption, 26, max_lines=3, placeholder=" ...")
        draw.multiline_text((place * (side + 8), side + 4), "\n".join(lines), fill="black", font_size=10)
    return whole


def stack(strips: Sequence[Image.Image]) -> bytes:
    """Strips under one another, as a PNG."""
    whole = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for found in strips:
        whole.paste(found, (0, top))
        top += found.height
    stream = io.BytesIO()
    whole.save(stream, "PNG")
    return stream.getvalue()
