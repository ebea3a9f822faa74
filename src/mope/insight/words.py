"""The words, or labels, that stand out among the samples of an expert."""

import re
from collections.abc import Sequence
from statistics import NormalDist

import numpy

from mope.insight.routing import Floats

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def standing_out(
    counts: Floats, weights: Floats, names: Sequence[str], top: int = 8, least: float | None = None
) -> list[tuple[str, float]]:
    """Names that stand out in samples of great weight, with how far: weighted log-odds (Monroe et al. 2008).

    The log-odds of a name among the weighted samples against those among the others, each with all counts as
    the prior, over their standard deviation.

    Args:
        counts: of each name in each sample (N, V).
        weights: of each sample, from 0 to 1, (N,).
        names: V of them.
        top: so many at most.
        least: leave out what stands out less; None for what one of all names would exceed by chance in one
            case of twenty (Bonferroni's correction).

    Returns:
        (name, z), greatest first.
    """
    total = counts.sum(axis=0)
    if len(names) < 2 or not total.sum():
        return []
    if least is None:
        least = NormalDist().inv_cdf(1 - 0.05 / len(names))
    inside = weights @ counts
    outside = total - inside
    prior = total * min(1.0, 500 / total.sum())
    odds = []
    for part in (inside, outside):
        of = part + prior
        odds.append((numpy.log(of / (of.sum() - of + 1e-12)), 1 / of))
    z = (odds[0][0] - odds[1][0]) / numpy.sqrt(odds[0][1] + odds[1][1])
    order = [int(place) for place in numpy.argsort(-z)[:top]]
    return [(names[place], float(z[place])) for place in order if z[place] >= least]


def count_names(samples: Sequence[Sequence[str]], at_least: int = 3) -> tuple[Floats, list[str]]:
    """How often each name comes in each sample: (N, V) and the names, in order.

    Args:
        samples: the names of each.
        at_least: names in fewer samples are left out.
    """
    seen: dict[str, int] = {}
    for sample in samples:
        for name in set(sample):
            seen[name] = seen.get(name, 0) + 1
    names = sorted(name for name, times in seen.items() if times >= at_least)
    index = {name: place for place, name in enumerate(names)}
    counts = numpy.zeros((len(samples), len(names)))
    for row, sample in enumerate(samples):
        for name in sample:
            if name in index:
                counts[row, index[name]] += 1
    return counts, names
