"""What a run does with rows, as arrays: predictions, routing, attention, and what stands out."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy
from numpy.typing import NDArray

from mope.data.splits import cells_of
from mope.data.table import MemoryTable, Table
from mope.errors import UserError
from mope.insight import routing, words
from mope.insight.answers import confusion_counts, label_scores
from mope.insight.attention import attention_of
from mope.insight.mixture import mix_alike
from mope.insight.routing import Floats
from mope.insight.seen import see
from mope.insight.shuffle import Loss, shuffle_inputs
from mope.predictions import Prediction
from mope.predictor import Predictor
from mope.run import read_metrics
from mope.tasks import label_text, split_labels
from mope.tasks.metrics import compute_metrics

TOP = 8
"""Samples shown of each expert."""

LITTLE = 0.05
"""Of what routing could tell of a column, below which it tells next to nothing."""

_FEW = 30  # values of a column that experts may split rows by
_ALIKE = 0.95  # of the experts that all rows use, from which on each row uses nearly all of them


@dataclass
class Experts:
    """How the experts share the work. Empty arrays for a run without a router.

    Attributes:
        scores: routing scores (N, L, k).
        importance: share of the routing that each gets (L, k).
        effective: effective number of experts (L,).
        entropy: mean entropy of a sample's scores in nats (L,).
        information: what the expert says of the label, for several labels to a row of having the one that it
            says most of; None where rows have no labels by name.
        columns: what it says of other columns of the table, by name; of columns with a few values.
        similarity: cosine similarity of the experts (L, k, k); of no layer where they aren't known.
        top: places of the samples scored highest (L, k, n).
        words: what stands out in their texts, by layer and expert: (word, z).
        labels: likewise of their labels.
        names: what each layer is called, see `Fusion.routed_layers`.
    """

    scores: Floats
    importance: Floats
    effective: Floats
    entropy: Floats
    information: routing.Information | None
    columns: dict[str, routing.Information]
    similarity: Floats
    top: NDArray[numpy.integer]
    words: list[list[list[tuple[str, float]]]] = field(default_factory=list)
    labels: list[list[list[tuple[str, float]]]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def few(self) -> int:
        """In how many layers fewer than half of the experts are used."""
        return int((self.effective < self.importance.shape[1] / 2).sum())

    @property
    def mixed(self) -> Floats:
        """Effective number of experts in a row's own mixture (L,), as `effective` is over all rows."""
        return numpy.exp(self.entropy)

    @property
    def alike_layers(self) -> int:
        """In how many layers all rows get nearly the same mixture: each row's has as many as all together."""
        return int((self.mixed / self.effective > _ALIKE).sum())

    @property
    def known(self) -> dict[str | None, routing.Information]:
        """What the expert says of the label (None), if rows have any by name, and of other columns."""
        label = {} if self.information is None else {None: self.information}
        return {**label, **self.columns}

    def told(self) -> dict[str | None, Floats]:
        """Of each of `known`, what the expert tells of all it could, from 0 to 1 (L,).

        It is 0 in layers where it isn't more than shuffled columns show by chance, or next to nothing.
        """
        known = self.known
        least = routing.by_chance(list(known.values())) if known else 0.0
        return {
            name: numpy.where((one.bits > least) & (one.shares >= LITTLE), one.shares, 0.0)
            for name, one in known.items()
        }

    def clearest(self, count: int = 4) -> list[tuple[int, int]]:
        """(layer, expert) of those that can be described best: whose words or labels stand out most.

        An expert that takes less than 5 % of a layer's routing isn't named.
        """
        found = []
        for layer, row in enumerate(self.words):
            for expert, stand_out in enumerate(row):
                if self.importance[layer, expert] < 0.05:
                    continue
                both = sorted((z for _, z in [*stand_out, *self.labels[layer][expert]]), reverse=True)
                found.append((sum(both[:3]), layer, expert))
        return [(layer, expert) for _, layer, expert in sorted(found, reverse=True)[:count]]


@dataclass
class Explanation:
    """What a run does with rows.

    Attributes:
        table: the rows that could be used, N of them.
        predictions: one for each.
        targets: their labels as in the table; None without labels.
        experts: how routing goes; None for a run without a router.
        metrics: by name; empty without labels.
        confusion: how often each label (rows) got each answer (columns), in the order of the model's labels;
            None for another task than classification, and without labels.
        label_f1: F1 of each label; None where rows have no labels by name.
        history: what training kept of each epoch: losses, validation metrics, `importance` (L, k) and
            `imbalance` (L,), which is the mean over batches of what the importance loss takes (Eq. 6).
        losses: what shuffling inputs costs; empty without labels.
        same_mixture: what it costs to give all rows one mixture of experts, see `mix_alike`; None without
            labels or experts.
        attention: attention over the main input's picture (N or fewer, rows, columns), for the first rows;
            None where it can't be had.
        no_attention: why it can't be had.
        left_out: rows that couldn't be used.
    """

    table: Table
    predictions: "list[Prediction]"
    targets: list[Any] | None
    experts: Experts | None
    metrics: dict[str, float]
    confusion: NDArray[numpy.integer] | None
    label_f1: dict[str, float] | None
    history: list[dict[str, Any]]
    losses: list[Loss]
    attention: Floats | None
    no_attention: str = ""
    left_out: int = 0
    same_mixture: Loss | None = None

    def as_json(self) -> dict[str, Any]:
        """The numbers as plain values; scores and attention are left out, `predict --routing` gives them."""
        experts = None
        if self.experts is not None:
            arrays = ("importance", "effective", "entropy", "similarity")
            experts = {name: getattr(self.experts, name).tolist() for name in arrays}
            information = self.experts.information
            experts["information"] = None if information is None else information.bits.tolist()
            experts["columns"] = {name: one.bits.tolist() for name, one in self.experts.columns.items()}
            experts["top_rows"] = numpy.asarray(self.table.numbers)[self.experts.top].tolist()
            experts["words"], experts["labels"] = self.experts.words, self.experts.labels
            experts["layers"] = self.experts.names
        return {
            "rows": len(self.table),
            "left_out": self.left_out,
            "metrics": self.metrics,
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "label_f1": self.label_f1,
            "history": self.history,
            "experts": experts,
            "shuffled": [vars(loss) for loss in self.losses],
            "same_mixture": None if self.same_mixture is None else vars(self.same_mixture),
        }


def explain_rows(
    predictor: "Predictor",
    rows: Table | Sequence[Mapping[str, Any]],
    *,
    shuffle: bool = True,
    attention: int = 16,
) -> Explanation:
    """Look at what a run does with rows.

    Args:
        predictor: the run.
        rows: a table, or mappings with the run's columns; with the label's column there is more to see.
        shuffle: whether to find out what shuffling inputs costs, and giving all rows one mixture of experts:
            a pass more for two inputs, several for more, and one over 200 rows for experts.
        attention: for how many of the first rows to keep attention.

    Raises:
        UserError: a column is missing, or no row can be used.
    """
    table = rows if isinstance(rows, Table) else MemoryTable(list(rows))
    label = predictor.settings.data.label
    has_labels = len(table) > 0 and label in table.columns
    with predictor.model.fusion.remembering() if predictor.compile == "none" else nullcontext():
        return _explain(predictor, table, has_labels, shuffle, attention)


def _explain(
    predictor: "Predictor", table: Table, has_labels: bool, shuffle: bool, attention: int
) -> Explanation:
    label = predictor.settings.data.label
    seen = see(predictor, table, has_labels)
    kept = [place for place, prediction in enumerate(seen.predictions) if prediction.error is None]
    if not kept:
        reason = next((p.error for p in seen.predictions), "it has none")
        raise UserError(
            f"None of the {len(table)} rows of {table.name} can be used; the first reason is: {reason}."
        )
    left_out = len(table) - len(kept)
    table = table.select(kept) if left_out else table
    predictions = [seen.predictions[place] for place in kept]
    targets = [row[label] for row in table] if has_labels else None
    names = label_names_of(predictor, targets)
    metrics: dict[str, float] = {}
    losses: list[Loss] = []
    if seen.outcome is not None:
        metrics = compute_metrics(predictor.model.task, *seen.outcome)
        if shuffle and len(table) > 1:
            losses = shuffle_inputs(predictor, table, seen.outcome)
    experts = _experts(predictor, table, predictions, names) if predictions[0].routing else None
    alike = None
    if experts is not None and seen.outcome is not None and shuffle and len(table) > 1:
        alike = mix_alike(predictor, table, seen.outcome, experts.scores)
    maps, reason = _attention(predictor, table.select(range(min(attention, len(table)))))
    return Explanation(
        table,
        predictions,
        targets,
        experts,
        metrics,
        *_answers(predictor, predictions, names),
        read_metrics(predictor.run).get("history", []),
        losses,
        maps,
        reason,
        left_out,
        alike,
    )


def _answers(
    predictor: "Predictor", predictions: "Sequence[Prediction]", names: list[list[str]] | None
) -> tuple[NDArray[numpy.integer] | None, dict[str, float] | None]:
    """The counts of a confusion matrix, and each label's F1."""
    if names is None:
        return None, None
    labels, answers = predictor.model.task.labels, [prediction.label for prediction in predictions]
    if predictor.settings.task == "multilabel":
        return None, label_scores(names, answers, labels)
    confusion = confusion_counts([own[0] for own in names], answers, labels)
    return confusion, label_scores(names, [[answer] for answer in answers], labels)


def _experts(
    predictor: "Predictor",
    table: Table,
    predictions: "Sequence[Prediction]",
    named: list[list[str]] | None,
) -> Experts:
    scores = numpy.array([prediction.routing for prediction in predictions])
    shares = routing.importance(scores)
    texts = [entry.column for entry in predictor.settings.inputs.values() if entry.kind == "text"]
    said = [[w for text in texts for w in words.words_of(str(row.get(text) or ""))] for row in table]
    fusion = predictor.model.fusion
    mixed = [own.experts for own in fusion.guided.values() if own.router is not None]
    prompts = [layer for one in mixed if one is not None for layer in one.prompts]
    return Experts(
        scores,
        shares,
        routing.effective_experts(shares),
        routing.score_entropy(scores),
        None if named is None else _information(scores, named, predictor.settings.task == "multilabel"),
        _by_column(scores, table, predictor),
        routing.similarity([layer.detach().float().cpu().numpy() for layer in prompts]),
        routing.top_samples(scores, TOP),
        _stand_out(scores, said),
        _stand_out(scores, named or [[] for _ in said]),
        fusion.routed_layers(scores.shape[1]),
    )


def _by_column(scores: Floats, table: Table, predictor: "Predictor") -> dict[str, routing.Information]:
    """Information on each column that is neither an input nor the label, and has a few values."""
    settings = predictor.settings
    known = {settings.data.label, *cells_of(settings.inputs.values())}
    found = {}
    for name in table.columns:
        if name in known:
            continue
        values = [str(value) for value in table.column(name)]
        if 1 < len(set(values)) <= min(_FEW, len(values) // 2):
            found[name] = routing.mutual_information(scores, values)
    return found


def _information(scores: Floats, named: Sequence[Sequence[str]], several: bool) -> routing.Information | None:
    if not several:
        return routing.mutual_information(scores, [names[0] for names in named])
    found = [
        routing.mutual_information(scores, [str(label in names) for names in named])
        for label in sorted({name for names in named for name in names})
    ]
    return routing.largest(found) if found else None


def label_names_of(predictor: "Predictor", targets: list[Any] | None) -> list[list[str]] | None:
    """The names of each row's labels; None where labels have no names."""
    if targets is None or not predictor.settings.has_classes:
        return None
    if predictor.settings.task == "multilabel":
        return [split_labels(value, predictor.settings.data.separator) for value in targets]
    return [[label_text(value)] for value in targets]


def _stand_out(scores: Floats, samples: Sequence[Sequence[str]]) -> list[list[list[tuple[str, float]]]]:
    """Of every layer and expert."""
    counts, names = words.count_names(samples)
    _, layers, experts = scores.shape
    return [
        [words.standing_out(counts, scores[:, layer, expert], names) for expert in range(experts)]
        for layer in range(layers)
    ]


def _attention(predictor: "Predictor", table: Table) -> tuple[Floats | None, str]:
    """Attention, or why there is none."""
    if len(table) == 0:
        return None, "no rows were asked for"
    try:
        return attention_of(predictor, table), ""
    except UserError as error:
        return None, str(error)
