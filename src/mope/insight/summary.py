"""What a report says first, in plain words."""

import math

from mope.config import Config
from mope.insight.explanation import LITTLE, Experts, Explanation
from mope.insight.mixture import ROWS
from mope.insight.shuffle import Loss
from mope.tasks.meaning import MEANINGS

LIKELY = "“Likely” is where the change over very many such rows would be: 95 of 100 such ranges hold it."
"""What the sentences mean by it."""

_PARTS = {
    "a twentieth": 0.05,
    "a tenth": 0.1,
    "a fifth": 0.2,
    "a quarter": 0.25,
    "a third": 1 / 3,
    "half": 0.5,
    "two thirds": 2 / 3,
    "three quarters": 0.75,
    "nine tenths": 0.9,
    "all": 1.0,
}


def in_words(found: Explanation, metric: str, config: Config) -> list[str]:
    """How good a run is, what its inputs bring, and what its experts do, a paragraph each.

    Args:
        found: what was looked at.
        metric: the one that decides.
        config: the run's settings.
    """
    greater = MEANINGS[config.task][metric].greater_is_better
    sentences = []
    if metric in found.metrics:
        sentences.append(_of_metric(found, metric, config))
    if found.losses:
        sentences += [_of_input(loss, greater) for loss in found.losses if len(loss.inputs) == 1]
    elif found.targets is None:
        sentences.append(
            f"These rows have no column “{config.data.label}” with the right answers, so neither how often "
            "the run is right can be said nor what each input brings: both are found by comparing with those."
        )
    elif len(found.table) == 1:
        sentences.append(
            "What each input brings can't be said of one row: there is no other to take it from."
        )
    if found.experts is None:
        sentences.append("This run has no experts to look at.")
    else:
        sentences += _of_experts(found, found.experts, greater)
    return sentences


def number(value: float) -> str:
    """A metric or a difference of it, to three places or digits."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3f}" if size >= 0.01 or not size else f"{value:.2g}"


def _of_metric(found: Explanation, metric: str, config: Config) -> str:
    value, rows, meaning = found.metrics[metric], len(found.table), MEANINGS[config.task][metric]
    if metric != "accuracy" or config.task != "classification":
        return f"On {rows} rows {metric} is {number(value)}: {meaning.text}. {meaning.best} is best."
    said = f"It is right on {value:.1%} of {rows} rows (accuracy {number(value)}; {meaning.best} is best)."
    if found.confusion is None:
        return said
    most = found.confusion.sum(axis=1).max() / found.confusion.sum()
    return f"{said} Always to answer the most frequent label would be right on {most:.1%}."


def _change(loss: Loss) -> str:
    """That a metric rises or falls, of one of which that is more than chance."""
    verb = "rises" if loss.difference > 0 else "falls"
    ends = sorted(map(abs, (loss.low, loss.high)))
    return (
        f"{loss.metric} {verb} from {number(loss.value - loss.difference)} to {number(loss.value)} "
        f"(likely by {number(ends[0])} to {number(ends[1])})"
    )


def _is_seen(loss: Loss) -> bool:
    """Whether a change is more than chance. One that is no number isn't."""
    return loss.low > 0 or loss.high < 0


def _no_change(loss: Loss) -> str:
    if math.isnan(loss.difference):
        return f"{loss.metric} can't be taken"
    if not loss.low and not loss.high:
        return f"{loss.metric} stays at {number(loss.value)}"
    change, low, high = (
        f"{'+' if one > 0 else ''}{number(one)}" for one in (loss.difference, loss.low, loss.high)
    )
    return f"{loss.metric} changes by {change} (likely between {low} and {high})"


def _is_worse(loss: Loss, greater: bool) -> bool:
    return loss.difference < 0 if greater else loss.difference > 0


def _of_input(loss: Loss, greater: bool) -> str:
    swapped = f"With another row's {loss.inputs[0]}"
    if not _is_seen(loss):
        return f"{swapped} {_no_change(loss)}: it isn't used, or these rows are too few to tell."
    if _is_worse(loss, greater):
        return f"{swapped} {_change(loss)}, so it is used."
    return f"{swapped} {_change(loss)}: it is used, but misleads on these rows."


def _of_experts(found: Explanation, experts: Experts, greater: bool) -> list[str]:
    """What they are, whether they matter, how many are used, and what they split rows by."""
    count, layers = experts.importance.shape[1], len(experts.effective)
    intro = (
        "An expert is a small learned hint to the encoder, which is what reads an input. In each layer, a "
        f"step of the encoder, a router mixes {count} of them anew for each row."
    )
    used = float(experts.effective.mean())
    usage = f"{used:.1f} of {count} are used on average ({count} is even use, 1 means one does everything)"
    usage += f"; in {experts.few} of {layers} layers fewer than half." if experts.few else "."
    if experts.alike_layers == layers:
        usage += " In every layer all rows get nearly the same mixture."
    elif experts.alike_layers:
        usage += f" In {experts.alike_layers} of {layers} layers all rows get nearly the same mixture."
    else:
        usage += " In every layer rows differ in their mixtures."
    split = "" if experts.alike_layers == layers else _of_split(experts)
    return [intro, _verdict(found, experts, greater), f"{usage} {split}".rstrip()]


def _verdict(found: Explanation, experts: Experts, greater: bool) -> str:
    """Whether answers depend on the routing; that it differs between rows doesn't say so."""
    loss, layers = found.same_mixture, len(experts.effective)
    if loss is None and experts.alike_layers == layers:
        return "The experts do nothing that one prompt wouldn't: all rows get nearly the same mixture."
    if loss is None:
        why = "takes rows with the right answers" if found.targets is None else "wasn't asked here"
        return f"Rows are routed differently; whether answers depend on it is another question, which {why}."
    same = "With the same mixture for every row"
    if len(found.table) > ROWS:
        same = f"On {ROWS} of these rows, with the same mixture for every row,"
    if not _is_seen(loss):
        hedge = ", or these rows are too few to tell" if loss.low or loss.high else ""
        return f"{same} {_no_change(loss)}: the experts do nothing that one prompt wouldn't{hedge}."
    if _is_worse(loss, greater):
        return f"{same} {_change(loss)}: its answers depend on the experts."
    return f"{same} {_change(loss)}: one prompt would do better on these rows."


def _of_split(experts: Experts) -> str:
    """What a row's expert tells of its label and other columns."""
    known, told, layers = experts.known, experts.told(), len(experts.effective)
    if not known:
        return ""
    column = max(known, key=lambda name: float(told[name].max()))
    if not told[column].any():
        most = max(float(one.shares.max()) for one in known.values())
        chance = ", which so few rows may have by chance" if most >= LITTLE else ""
        names = " or ".join(map(_named, known))
        return (
            f"Knowing a row's expert tells next to nothing of its {names} ({most:.0%} of what could be told, "
            f"at most{chance})."
        )
    layer = int(told[column].argmax())
    one, share = known[column], float(told[column][layer])
    part = min(_PARTS, key=lambda name: abs(_PARTS[name] - share))
    text = (
        f"Knowing a row's expert tells about {part} of what could be told of its {_named(column)} "
        f"({one.bits[layer]:.2f} of {one.most[layer]:.2f} bits) in layer {experts.names[layer]}, where it "
        "tells most."
    )
    counts = [
        f"of its {_named(name)} in {int((shares > 0).sum())}" for name, shares in told.items() if shares.any()
    ]
    return f"{text} It tells more than chance {', '.join(counts)} of {layers} layers."


def _named(column: str | None) -> str:
    """A column of a row, or its label."""
    return "label" if column is None else f"“{column}”"
