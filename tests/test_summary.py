"""What a report says in plain words, of what was measured."""

import numpy
import pytest

from mope.config import Config
from mope.data.table import MemoryTable
from mope.insight import routing
from mope.insight.explanation import Experts, Explanation
from mope.insight.report import describe, expert_html
from mope.insight.shuffle import Loss
from mope.insight.summary import in_words, number
from mope.tasks import any_task
from mope.tasks.meaning import MEANINGS

ABOVE, BELOW, AROUND = (0.04, 0.06), (-0.06, -0.04), (-0.01, 0.02)
"""Intervals of a difference."""


def settings_of(task: str = "classification") -> Config:
    inputs = {name: {"kind": name, "column": name, "encoder": {}} for name in ("image", "text")}
    return Config.parse({"task": task, "inputs": inputs, "fusion": {"main": "image"}, "data": {"label": "y"}})


def explanation(rows: int = 40, experts: Experts | None = None, **more) -> Explanation:
    """Of so many rows with labels, with what is given instead of nothing."""
    table = MemoryTable([{"a": 1}] * rows)
    given = {"targets": ["x"] * rows, "metrics": {}, "confusion": None, "losses": [], **more}
    return Explanation(
        table, [], given["targets"], experts, given["metrics"], given["confusion"], None, [],
        given["losses"], None, same_mixture=given.get("alike"),
    )  # fmt: skip


def experts_of(scores: numpy.ndarray, labels: list[str], **columns: list[str]) -> Experts:
    """Experts with these scores (N, L, k); other columns by name."""
    shares = routing.importance(scores)
    return Experts(
        scores,
        shares,
        routing.effective_experts(shares),
        routing.score_entropy(scores),
        routing.mutual_information(scores, labels) if labels else None,
        {name: routing.mutual_information(scores, values) for name, values in columns.items()},
        numpy.zeros((scores.shape[1], scores.shape[2], scores.shape[2])),
        routing.top_samples(scores, 1),
        names=[str(layer + 1) for layer in range(scores.shape[1])],
    )


def summary_of(scores: numpy.ndarray, labels: list[str], alike: Loss | None = None, **columns) -> list[str]:
    """What is said of experts: what they are, the verdict, and how they are used."""
    found = explanation(len(scores), experts_of(scores, labels, **columns), alike=alike)
    sentences = in_words(found, "accuracy", settings_of())
    assert len(sentences) == 3
    return sentences


def of_mixture(interval: tuple[float, float], metric: str = "accuracy") -> Loss:
    """What one mixture for all rows changes."""
    difference = sum(interval) / 2
    return Loss((), metric, 0.9 + difference, difference, *interval)


def random_choices(rows: int = 40, layers: int = 3, seed: int = 0) -> numpy.ndarray:
    """Each row has one of four experts in each layer, whichever."""
    return numpy.eye(4)[numpy.random.default_rng(seed).integers(0, 4, (rows, layers))]


def flat(rows: int = 40, layers: int = 3) -> numpy.ndarray:
    """Every row has all four experts alike."""
    return numpy.full((rows, layers, 4), 0.25)


def test_each_metric_of_each_task_is_explained_with_where_good_ends():
    for task, meanings in MEANINGS.items():
        known = any_task(settings_of(task))
        assert set(meanings) == {str(name) for name in known.metrics()} | set(known.evaluated)
        for name, meaning in meanings.items():
            assert meaning.greater_is_better == (name not in known.lower_is_better)
            assert meaning.best == (1 if meaning.greater_is_better else 0)


def test_the_metric_is_said_in_words():
    confusion = numpy.array([[27, 3], [1, 9]])
    found = explanation(metrics={"accuracy": 0.9}, confusion=confusion)
    (said, _) = in_words(found, "accuracy", settings_of())
    assert said == (
        "It is right on 90.0% of 40 rows (accuracy 0.900; 1 is best). Always to answer the most frequent "
        "label would be right on 75.0%."
    )
    said = in_words(explanation(metrics={"f1_macro": 0.512}), "f1_macro", settings_of())[0]
    assert said.startswith("On 40 rows f1_macro is 0.512: how well labels are found, without false alarms")
    assert said.endswith("1 is best.")
    said = in_words(explanation(metrics={"rmse": 1234.5}), "rmse", settings_of("regression"))[0]
    assert said.startswith("On 40 rows rmse is 1,234: usual error in the label's own units")
    assert said.endswith("0 is best.")
    said = in_words(explanation(metrics={"accuracy": 0.9}), "accuracy", settings_of("multilabel"))[0]
    assert said.startswith(
        "On 40 rows accuracy is 0.900: share of right ones among all decisions"
    )  # not rows


USED, MISLEADS = ", so it is used.", ": it is used, but misleads on these rows."
UNSEEN = ": it isn't used, or these rows are too few to tell."
FALLS, RISES = (f"from 0.900 to {value} (likely by 0.040 to 0.060)" for value in ("0.850", "0.950"))


@pytest.mark.parametrize(
    ("task", "metric", "interval", "said"),
    [
        ("classification", "accuracy", BELOW, f"accuracy falls {FALLS}{USED}"),
        ("classification", "accuracy", ABOVE, f"accuracy rises {RISES}{MISLEADS}"),
        ("classification", "calibration_error", ABOVE, f"calibration_error rises {RISES}{USED}"),
        ("regression", "rmse", ABOVE, f"rmse rises {RISES}{USED}"),
        ("regression", "rmse", BELOW, f"rmse falls {FALLS}{MISLEADS}"),
        ("regression", "r2", BELOW, f"r2 falls {FALLS}{USED}"),
        ("regression", "r2", (float("nan"), float("nan")), f"r2 can't be taken{UNSEEN}"),
        ("classification", "accuracy", (0.0, 0.0), f"accuracy stays at 0.900{UNSEEN}"),
        ("classification", "accuracy", AROUND,
         f"accuracy changes by +0.005 (likely between -0.010 and +0.020){UNSEEN}"),
    ],
)  # fmt: skip
def test_what_an_input_brings_follows_the_sign_and_which_way_is_better(task, metric, interval, said):
    loss = of_mixture(interval, metric)
    losses = [
        Loss(("text",), metric, loss.value, loss.difference, *interval),
        Loss(("image", "text"), metric, 0.1, -0.8, -0.9, -0.7),
    ]
    sentences = in_words(explanation(losses=losses), metric, settings_of(task))
    assert sentences == [f"With another row's text {said}", "This run has no experts to look at."]


def test_what_cannot_be_said_without_labels_or_other_rows():
    (said, _) = in_words(explanation(targets=None), "accuracy", settings_of())
    assert said.startswith(
        "These rows have no column “y” with the right answers, so neither how often the run"
    )
    assert "nor what each input brings" in said
    (said, _) = in_words(explanation(rows=1), "accuracy", settings_of())
    assert "there is no other to take it from" in said


def test_numbers_have_three_places_or_digits():
    assert [number(x) for x in (0.98765, 12345.6, -0.00123, 0.0)] == ["0.988", "12,346", "-0.0012", "0.000"]


def test_whether_experts_matter_is_what_one_mixture_for_all_rows_changes():
    labels = ["left", "right"] * 20
    same = "With the same mixture for every row accuracy"
    split = numpy.eye(4)[[0, 1] * 20][:, None].repeat(3, axis=1)
    intro, verdict, use = summary_of(split, labels, of_mixture(BELOW))
    assert intro.startswith("An expert is a small learned hint")
    assert "a router mixes 4 of them anew for each row" in intro
    assert (
        verdict
        == f"{same} falls from 0.900 to 0.850 (likely by 0.040 to 0.060): its answers depend on the experts."
    )
    assert "what could be told of its label" in use
    nothing, few = "the experts do nothing that one prompt wouldn't", "or these rows are too few to tell."
    for interval, begins, ends in (
        ((0.0, 0.0), "stays at 0.900:", f"{nothing}."),
        (AROUND, "changes by +0.005 (likely between -0.010 and +0.020):", f"{nothing}, {few}"),
        (ABOVE, "rises from 0.900 to 0.950 (likely", "one prompt would do better on these rows."),
    ):
        verdict = summary_of(split, labels, of_mixture(interval))[1]
        assert verdict.startswith(f"{same} {begins}")
        assert verdict.endswith(ends)
        assert "depend on the experts" not in verdict


def test_a_split_alone_is_no_success():
    split = numpy.eye(4)[[0, 1] * 20][:, None].repeat(3, axis=1)
    verdict = summary_of(split, ["left", "right"] * 20)[1]
    assert verdict.startswith("Rows are routed differently; whether answers depend on it is another question")
    assert verdict.endswith("question, which wasn't asked here.")
    found = explanation(experts=experts_of(split, []), targets=None)
    assert in_words(found, "accuracy", settings_of())[2].endswith(
        "question, which takes rows with the right answers."
    )
    verdict, use = summary_of(flat(), ["left", "right"] * 20)[1:]
    assert verdict.startswith("The experts do nothing that one prompt wouldn't")
    assert "In every layer all rows get nearly the same mixture." in use
    assert "Knowing" not in use


def test_layers_are_counted_of_which_a_mean_or_a_minimum_says_nothing():
    labels = ["left", "right"] * 20
    mixed = random_choices(layers=4)
    assert "In every layer rows differ in their mixtures." in summary_of(mixed, labels)[2]
    mixed[:, :3] = flat()  # one odd layer is no reason to keep silent of the others
    assert "In 3 of 4 layers all rows get nearly the same mixture." in summary_of(mixed, labels)[2]
    use = summary_of(flat(), labels)[2]
    assert use.startswith("4.0 of 4 are used on average (4 is even use, 1 means one does everything). In")
    one = random_choices(layers=4)
    one[:, 0] = numpy.eye(4)[0]
    assert "everything); in 1 of 4 layers fewer than half." in summary_of(one, labels)[2]


def test_what_a_rows_expert_tells_is_said_as_a_part_and_in_how_many_layers():
    labels, other = ["left", "right"] * 100, ["a", "b", "c", "d"] * 50
    scores = random_choices(200, 4)
    assert "tells next to nothing of its label (" in summary_of(scores, ["same"] * 200)[2]
    scores[:, 1] = numpy.eye(4)[[0, 1] * 100]
    use = summary_of(scores, labels)[2]
    assert "Knowing a row's expert tells about all of what could be told of its label (1.00" in use
    assert "of 1.00 bits) in layer 2, where it tells most." in use
    assert use.endswith("It tells more than chance of its label in 1 of 4 layers.")
    scores[:, 2] = 0.5 * numpy.eye(4)[[0, 1, 2, 3] * 50] + 0.125
    use = summary_of(scores, ["same"] * 200, asks=other)[2]
    assert (
        "tells about half of what could be told of its “asks” (0.99 of 2.00 bits)" in use
    )  # by pairs, in layer 2
    assert use.endswith("It tells more than chance of its “asks” in 2 of 4 layers.")
    use = summary_of(scores, labels, asks=other)[2]
    assert use.endswith("chance of its label in 2, of its “asks” in 2 of 4 layers.")
    assert "nothing of its label or “asks” (0%" in summary_of(scores, ["s"] * 200, asks=["s"] * 200)[2]


def test_a_split_that_so_few_rows_have_by_chance_is_none():
    """The largest of many layers and columns is above any fixed bound somewhere."""
    split = may_be_chance = 0
    for seed in range(20):
        values = [str(value) for value in numpy.random.default_rng(100 + seed).integers(0, 10, 40)]
        found = summary_of(random_choices(40, 12, seed), values)[2]
        split += "where it tells most" in found
        may_be_chance += "which so few rows may have by chance" in found
    assert split <= 4  # one in twenty
    assert may_be_chance > 10  # more than a fixed bound, most times


def test_what_is_more_than_chance_may_be_next_to_nothing():
    generator, labels = numpy.random.default_rng(0), ["left", "right"] * 2000
    chances = {"left": [0.33, 0.17, 0.25, 0.25], "right": [0.17, 0.33, 0.25, 0.25]}
    chosen = [generator.choice(4, p=chances[label]) for label in labels]
    use = summary_of(numpy.eye(4)[chosen][:, None], labels)[2]
    assert use.endswith("tells next to nothing of its label (4% of what could be told, at most).")


def test_an_expert_is_described_by_what_is_frequent_in_its_rows():
    stand_out = {"words": [("cat", 5.21)], "labels": [("pet", 4.0)]}
    assert (
        describe(0.19, stand_out)
        == "takes 19% of its layer's routing, above all words “cat” and labels “pet”"
    )
    assert (
        describe(0.19, {"words": [], "labels": []})
        == "takes 19% of its layer's routing, of every sort of rows"
    )
    shown = expert_html("Layer 1, expert 1", 0.19, stand_out, [])
    assert '<b title="5.2 standard deviations above chance">cat</b>' in shown
    assert '<i title="4.0 standard deviations above chance">pet</i>' in shown
    nothing = expert_html("Layer 1, expert 1", 0.19, {"words": [], "labels": []}, [])
    assert "no word or label is more frequent than in other rows" in nothing
