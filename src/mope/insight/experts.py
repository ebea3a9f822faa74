"""A report's experts: what each takes, how much each is used, and what that tells of rows."""

from html import escape

from mope.insight import figures
from mope.insight.explanation import Experts, Explanation
from mope.insight.pictures import Pictures
from mope.insight.report import Page, expert_html
from mope.predictor import Predictor


def add_experts(page: Page, predictor: Predictor, found: Explanation, pictures: Pictures) -> None:
    """Those that are easiest to describe, how they are used, and every layer's."""
    experts = found.experts
    page.heading("The experts")
    if experts is None:
        page.note("This run has no router, so there are no experts to look at.")
        return
    guided = "the main encoder" if len(predictor.model.fusion.guided) == 1 else "each guided encoder"
    page.note(
        f"In each layer of {guided} a router mixes experts, small learned hints, anew for each row. Below "
        "each are the rows that it takes most, with its part in their mixtures. Blue words are far more "
        "frequent in the texts of the rows that it takes than in the others, orange ones among their labels."
    )
    page.parts.append("<h3>The experts that are easiest to describe</h3>")
    for layer, expert in experts.clearest():
        page.parts.append(_expert(experts, layer, expert, pictures))
    _figures(page, found, experts)
    _by_layer(page, experts)
    page.parts.append("<h3>Every layer</h3>")
    for layer in range(len(experts.importance)):
        inner = "".join(_expert(experts, layer, e, pictures) for e in range(experts.importance.shape[1]))
        page.parts.append(
            f"<details><summary>Layer {escape(experts.names[layer])}</summary>{inner}</details>"
        )
    if pictures.image is not None:
        page.figures["gallery"] = _gallery(experts, pictures)


def _figures(page: Page, found: Explanation, experts: Experts) -> None:
    """How much each is used, at the end and over training, and how alike they are."""
    count = experts.importance.shape[1]
    page.figure(
        "importance",
        figures.importance_map(experts.importance, experts.names),
        f"How much each expert is used: its part of its layer's routing. {1 / count:.0%} each is even use.",
    )
    if (course := figures.training_course(found.history, experts.names)) is not None:
        caption = (
            f"Over training. Left: how many experts each layer uses, from 1 (one does everything) to {count} "
            "(all alike); well above the dashed line is good. Right: how much each of the last layer's is."
        )
        page.figure("training", course, caption)
    if len(experts.similarity):
        figure = figures.similarity(experts.similarity, experts.names)
        caption = (
            "How alike two experts of a layer are: 1 the same, 0 unrelated, -1 opposite; lower is better. "
            "Each is the same as itself."
        )
        page.figure("similarity", figure, caption)


def _by_layer(page: Page, experts: Experts) -> None:
    """A table of every layer, and what its columns mean."""
    count, told = experts.importance.shape[1], experts.told()
    columns = ["tells of the label" if name is None else f"tells of “{name}”" for name in told]
    page.table(
        ["layer", "experts used", "experts in a row's mixture", *columns],
        [
            (
                experts.names[layer],
                f"{experts.effective[layer]:.1f}",
                f"{experts.mixed[layer]:.1f}",
                *(f"{shares[layer]:.0%}" if shares[layer] else "-" for shares in told.values()),
            )
            for layer in range(len(experts.importance))
        ],
    )
    tells = (
        f" “Tells of” is how much of what {count} experts could tell of a column one knows from a row's "
        "expert alone: 0% is nothing, 100% all; a dash is no more than chance or next to nothing. Much isn't "
        "good in itself: whether answers depend on it is said at the top."
    )
    page.note(
        f"“Experts used” counts those that share the work over all rows, from 1 (one does everything) to "
        f"{count} (all alike): near {count} is good, below {count / 2:g} most were trained for nothing. "
        f"“In a row's mixture” counts those of one row, on average, also from 1 to {count}: as many as are "
        f"used means that all rows get the same mixture, fewer that rows differ.{tells if told else ''}"
    )


def _expert(experts: Experts, layer: int, expert: int, pictures: Pictures) -> str:
    places = experts.top[layer, expert]
    scored = [(int(place), float(experts.scores[place, layer, expert])) for place in places]
    samples = [(pictures.sample(place), score) for place, score in scored if score >= 0.005]
    stand_out = {"words": experts.words[layer][expert], "labels": experts.labels[layer][expert]}
    share = float(experts.importance[layer, expert])
    return expert_html(f"Layer {experts.names[layer]}, expert {expert + 1}", share, stand_out, samples)


def _gallery(experts: Experts, pictures: Pictures) -> figures.Figure:
    """The clearest experts' samples as one picture, as in the paper's Fig. 3."""
    strips, numbers = [], []
    for layer, expert in experts.clearest():
        places = [int(place) for place in experts.top[layer, expert]]
        shown = [(pictures.picture(p), pictures.text(p)) for p in places]
        there = [(picture, text) for picture, text in shown if picture is not None]
        if there:
            strips.append(figures.strip([p for p, _ in there], [t for _, t in there]))
            rows = [pictures.table.numbers[place] for place in places]
            numbers.append({"layer": experts.names[layer], "expert": expert + 1, "rows": rows})
    return (figures.stack(strips) if strips else b""), numbers
