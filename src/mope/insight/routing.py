"""How experts share the work, from routing scores (section V-D): plain arrays in, plain arrays out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.floating]

_SHUFFLES = 20
_CHANCE = 0.95  # of shuffled columns have less than what counts as more than chance


class Information(NamedTuple):
    """What the expert that a sample is routed to says of its label.

    Attributes:
        bits: mutual information of each layer (L,), without what so few samples have by chance.
        most: what no routing is above (L,): the labels' entropy, or log2 k if that is less; in bits.
        chance: the largest of all layers where labels are shuffled, likewise; one for each shuffle.
    """

    bits: Floats
    most: Floats
    chance: Floats

    @property
    def shares(self) -> Floats:
        """`bits` of what no routing is above, from 0 to 1 (L,)."""
        shares = numpy.divide(self.bits, self.most, out=numpy.zeros_like(self.bits), where=self.most > 0)
        return numpy.minimum(shares, 1.0)


def importance(scores: Floats) -> Floats:
    """Share of the routing that each expert gets (Eq. 5, divided by its sum): (N, L, k) -> (L, k)."""
    total = scores.sum(axis=0)
    return total / total.sum(axis=1, keepdims=True)


def effective_experts(shares: Floats) -> Floats:
    """Exponential of the entropy of importance: k if all are used alike, 1 if one is; (..., k) -> (...)."""
    return numpy.exp(_entropy(shares))


def routing_course(history: Sequence[Mapping[str, Any]]) -> tuple[list[float], Floats]:
    """Steps, at the ends of windows, and the experts' shares of the routing in them (W, L, k).

    Of a run that kept nothing within its epochs these are the epochs' ends and shares.

    Args:
        history: a run's, an entry per epoch.
    """
    steps: list[float] = []
    shares: list[Any] = []
    before = 0.0
    for entry in history:
        course = entry.get("course") or {"batches": [1], "importance": [entry["importance"]]}
        ends = numpy.cumsum(course["batches"]) / sum(course["batches"])
        steps += [before + float(end) * (entry["step"] - before) for end in ends]
        shares += course["importance"]
        before = entry["step"]
    return steps, numpy.array(shares)


def score_entropy(scores: Floats) -> Floats:
    """Mean entropy in nats of a sample's scores: 0 if each sample has one expert; (N, L, k) -> (L,)."""
    return _entropy(scores / scores.sum(axis=2, keepdims=True)).mean(axis=0)


def _entropy(shares: Floats) -> Floats:
    safe = numpy.where(shares > 0, shares, 1.0)
    return -(shares * numpy.log(safe)).sum(axis=-1)


def mutual_information(scores: Floats, labels: Sequence[str]) -> Information:
    """Mutual information of routing (N, L, k) and labels.

    A sample is routed to each expert with its score as the probability. It is 0 where routing says nothing
    of the label. Few samples make it too large: the mean over shuffled labels (by seed) is taken off.
    """
    names, places = numpy.unique(numpy.asarray(labels), return_inverse=True)
    shares = scores / scores.sum(axis=2, keepdims=True)
    generator = numpy.random.default_rng(0)
    shuffled = numpy.stack(
        [_information(shares, generator.permutation(places), len(names)) for _ in range(_SHUFFLES)]
    )
    mean = shuffled.mean(axis=0)
    entropy = float(_entropy(numpy.bincount(places) / len(places)) / numpy.log(2))
    return Information(
        numpy.maximum(_information(shares, places, len(names)) - mean, 0.0),
        numpy.full(scores.shape[1], min(entropy, float(numpy.log2(scores.shape[2])))),
        (shuffled - mean).max(axis=1),
    )


def largest(found: Sequence[Information]) -> Information:
    """Of several labels to a sample: what routing says of the one that it says most of, layer by layer."""
    bits, most = (numpy.stack([getattr(one, name) for one in found]) for name in ("bits", "most"))
    chosen = bits.argmax(axis=0), numpy.arange(bits.shape[1])
    return Information(bits[chosen], most[chosen], numpy.stack([one.chance for one in found]).max(axis=0))


def by_chance(found: Sequence[Information]) -> float:
    """Bits that shuffled columns have in some layer of some of these, but for one case in twenty.

    The largest of all layers and columns is what is looked at, so it is held against the largest by chance.
    """
    return float(numpy.quantile(numpy.max([one.chance for one in found], axis=0), _CHANCE))


def _information(shares: Floats, places: NDArray[numpy.integer], count: int) -> Floats:
    joint = numpy.zeros((shares.shape[1], count, shares.shape[2]))
    for place in range(count):
        joint[:, place] = shares[places == place].sum(axis=0)
    joint /= joint.sum(axis=(1, 2), keepdims=True)
    apart = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
    ratio = numpy.divide(joint, apart, out=numpy.ones_like(joint), where=joint > 0)
    return (joint * numpy.log2(ratio)).sum(axis=(1, 2))


def top_samples(scores: Floats, count: int) -> NDArray[numpy.integer]:
    """Places of the samples that each expert scores highest, best first: (N, L, k) -> (L, k, count)."""
    count = min(count, len(scores))
    order = numpy.argsort(-scores, axis=0, kind="stable")[:count]
    return order.transpose(1, 2, 0)


def similarity(experts: Sequence[Floats]) -> Floats:
    """Cosine similarity of each layer's experts, (k, l, d) each -> (L, k, k); (0, 0, 0) of none."""
    found = []
    for layer in experts:
        flat = layer.reshape(len(layer), -1)
        unit = flat / numpy.maximum(numpy.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        found.append(unit @ unit.T)
    return numpy.stack(found) if found else numpy.zeros((0, 0, 0))
