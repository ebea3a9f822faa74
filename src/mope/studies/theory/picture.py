"""The picture of Appendix C's theorems in numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mope.files import replacing

_COLOURS = ("#30638e", "#d1495b", "#edae49", "#66a182", "#8d6a9f")


def draw_theory(result: Mapping[str, Any], file: Path) -> None:
    """Draw what `study_theory` found as a PNG: pairs of Theorem 1, error against k, a run's layers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = 3 if "layers" in result else 2
    figure = Figure(figsize=(4.6 * count, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count)
    _pairs(axes[0], result["theorem_1"])
    _experts(axes[1], result["theorem_2"])
    if count == 3:
        _wishes(axes[2], result["layers"])
    figure.suptitle("Appendix C in numbers")
    with replacing(file) as draft:
        figure.savefig(draft, dpi=100, format="png")


def _pairs(axes: Any, found: Mapping[str, Mapping[str, float]]) -> None:
    """Errors of pairs of instances, by the kind of optimal maps."""
    for place, (name, label) in enumerate(
        (("bare", "no prompt"), ("shared", "a global prompt"), ("own", "one of each's own"))
    ):
        at = [number + 0.25 * (place - 1) for number in range(len(found))]
        values = [entry[name] for entry in found.values()]
        axes.bar(at, values, width=0.25, color=_COLOURS[place], label=label)
    axes.set_xticks(range(len(found)), [kind.replace(" ", "\n", 1) for kind in found], fontsize=8)
    axes.set_ylabel("error of a pair of instances")
    axes.set_title("Theorem 1, optimal maps are ...", fontsize=10)
    axes.legend(fontsize=8)


def _experts(axes: Any, found: Mapping[Any, Any]) -> None:
    """Errors of k experts beside a global prompt's, by the dimension of the optimal prompts."""
    styles = {"prompts": "o-", "maps": "s--", "router, new instances": "x:"}
    for colour, (dimension, entries) in zip(_COLOURS, found.items(), strict=False):
        for mixing, style in styles.items():
            chosen = [entry for entry in entries if mixing in entry]
            errors = [entry[mixing] / entry["global"] for entry in chosen]
            label = f"m={dimension}, {mixing}"
            axes.plot([entry["k"] for entry in chosen], errors, style, color=colour, label=label)
    axes.set_xlabel("experts k")
    axes.set_ylabel("error over that of one global prompt")
    axes.set_title("Theorem 2, own prompts in m dimensions", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3)


def _wishes(axes: Any, layers: Any) -> None:
    """Which part of the rows' own gradients few directions hold, by layer of a run."""
    names = {"one": "one for all", "k groups": "k groups", "router": "the run's router", "chance": "chance"}
    at = [entry["layer"] for entry in layers]
    for colour, (name, label) in zip(_COLOURS, names.items(), strict=False):
        axes.plot(at, [entry["wishes"][name] for entry in layers], "o-", color=colour, label=label)
    axes.set_xlabel("layer of the run")
    axes.set_ylabel("part of rows' gradients")
    axes.set_title("What rows want of the prompts", fontsize=10)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
