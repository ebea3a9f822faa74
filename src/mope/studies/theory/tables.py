"""What the theorems' study found, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

Table = tuple[list[str], list[list[str]]]


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Headers and rows: Theorem 1, Theorem 2, and of a run its layers and Theorem 1 on some of them."""
    found = [_pairs("optimal maps", {"": result["theorem_1"]}), _experts(result["theorem_2"])]
    if "layers" in result:
        losses = [[f"{result[name]:.3f}" for name in ("loss", "loss_with_mean_prompts")]]
        found.append((["loss", "with one dynamic prompt for all"], losses))
        found += [_layers(result["layers"]), _pairs("optimal maps, of the run", result["theorem_1_of_run"])]
    return found


def as_markdown(result: Mapping[str, Any]) -> str:
    """The tables in Markdown, under a heading."""
    parts = ["## Appendix C in numbers"]
    for header, rows in tables(result):
        lines = [header, ["---"] * len(header), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _pairs(what: str, by_place: Mapping[Any, Mapping[str, Mapping[str, float]]]) -> Table:
    names = ("separation", "bare", "floor", "own", "shared", "gap", "least_gap")
    header = [
        what,
        "delta",
        "no prompt",
        "no prompts go below",
        "own prompts",
        "one global",
        "gap",
        "least gap",
    ]
    rows = []
    for place, kinds in by_place.items():
        for kind, entry in kinds.items():
            name = f"layer {place}: {kind}" if place else kind
            rows.append([name, *(f"{entry[key]:.3f}" for key in names)])
    return header, rows


def _experts(by_dimension: Mapping[Any, Sequence[Mapping[str, float]]]) -> Table:
    names = ("global", "prompts", "maps", "router", "router, new instances")
    header = ["m", "k", "one global", "prompts mixed", "maps mixed", "by a router", "on new instances"]
    rows = [
        [str(m), str(entry["k"]), *(f"{entry[name]:.3f}" if name in entry else "-" for name in names)]
        for m, entries in by_dimension.items()
        for entry in entries
    ]
    return header, rows


def _layers(layers: Sequence[Mapping[str, Any]]) -> Table:
    columns = {
        "attention to prompts": ("mixing", "taken"),
        "experts' maps apart": ("mixing", "apart"),
        "mixed prompts from mixed maps": ("mixing", "error"),
        "directions of P_d": ("prompts", "directions"),
        "P_d varies by": ("prompts", "relative"),
        "wanted: one for all": ("wishes", "one"),
        "k groups": ("wishes", "k groups"),
        "router": ("wishes", "router"),
        "chance": ("wishes", "chance"),
    }
    rows = [
        [str(entry["layer"]), *(f"{entry[part][name]:.3g}" for part, name in columns.values())]
        for entry in layers
    ]
    return ["layer", *columns], rows
