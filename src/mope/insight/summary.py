"""What a report says first, in plain words."""

import numpy

from mope.insight.explanation import Experts, Explanation
from mope.insight.shuffle import Loss

_BITS = 0.1  # of information on a column, below which routing says next to nothing of it
_CHANCE = 0.95  # of shuffled columns have less than what counts as more than chance
_ALIKE = 0.95  # of the experts that all rows use, from which on each row uses nearly all of them


def in_words(found: Explanation, metric: str) -> list[str]:
    """What a run's inputs bring, and what its experts do, a sentence or two each.

    Args:
        found: what was looked at.
        metric: the one to name.
    """
    sentences = []
    if metric in found.metrics:
        value, rows = found.metrics[metric], len(found.table)
        right = f"It is right on {value:.1%} of {rows} rows."
        sentences.append(right if metric == "accuracy" else f"On {rows} rows {metric} is {value:.3f}.")
    sentences += [_of_input(loss) for loss in found.losses if len(loss.inputs) == 1]
    if found.experts is not None:
        sentences.append(_of_experts(found.experts))
    return sentences


def _of_input(loss: Loss) -> str:
    name = loss.inputs[0]
    how = f"{loss.metric} {loss.difference:+.3f}, 95 % interval {loss.low:+.3f} to {loss.high:+.3f}"
    if loss.low <= 0 <= loss.high:
        return f"It makes no difference that can be seen whose {name} a row has ({how})."
    return f"It uses {name}: with another row's, its answers change ({how})."


def _of_experts(experts: Experts) -> str:
    count, used = experts.importance.shape[1], float(experts.effective.mean())
    layers = int((experts.effective >= count / 2).sum())
    # A row's own mixture has as many experts as all rows together: then all have the same one.
    alike = float((numpy.exp(experts.entropy) / experts.effective).min()) > _ALIKE
    if layers == 0 and alike:
        return (
            f"The experts do nothing that one prompt wouldn't: in every layer fewer than half of the {count} "
            f"are used ({used:.1f} on average), nearly the same ones for every row."
        )
    text = (
        f"Of {count} experts {used:.1f} are used on average; half or more in {layers} of "
        f"{len(experts.effective)} layers."
    )
    if alike:
        return f"{text} But every row gets nearly the same mixture, so they don't specialise."
    known = dict(experts.columns) if experts.information is None else {"label": experts.information}
    known |= experts.columns
    if not known:
        return text
    column = max(known, key=lambda name: float(known[name].bits.max()))
    told, most, _ = known[column]
    layer, bits = int(told.argmax()), float(told.max())
    # The largest of all layers and columns is looked at, so it is held against the largest by chance.
    chance = float(numpy.quantile(numpy.max([one.chance for one in known.values()], axis=0), _CHANCE))
    if bits < max(_BITS, chance):
        by_chance = "" if bits < _BITS else ", which so few rows may have by chance"
        said = f"says next to nothing of its {' or '.join(known)} ({bits:.2f} bits at most{by_chance})"
        return f"{text} Which expert a row gets {said}."
    where = experts.names[layer]
    return (
        f"{text} They split the rows by {column} most in layer {where}: knowing the expert says "
        f"{bits:.2f} bits of it, of {most:.2f} that {count} experts could."
    )
