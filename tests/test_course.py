"""Importance of experts within epochs (Fig. 7): windows of batches, checkpoints, the picture."""

import json

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mope.insight.routing import routing_course
from mope.studies.plot import plot
from mope.studies.study import Study, cells
from mope.training import train
from mope.training.progress import RoutingCourse

pytest_plugins = ["study_fixtures"]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150))
def test_windows_are_sums_of_equally_many_batches(count):
    generator = torch.Generator().manual_seed(count)
    batches = [torch.rand(2, 3, generator=generator) for _ in range(count)]
    course = RoutingCourse()
    for batch in batches:
        course.add(batch)
    found = course.shares()
    sizes = found["batches"]
    assert sum(sizes) == count
    assert len(sizes) <= RoutingCourse.MOST
    assert len(sizes) >= min(count, RoutingCourse.MOST // 2)
    assert len(set(sizes[:-1])) <= 1
    assert sizes[-1] <= sizes[0]
    begin = 0
    for size, shares in zip(sizes, found["importance"], strict=True):
        total = sum(batches[begin : begin + size])
        for layer in range(2):
            for expert in range(3):
                assert shares[layer][expert] == pytest.approx(
                    float(total[layer, expert] / total[layer].sum()), abs=6e-5
                )
        begin += size


def test_a_course_goes_on_from_its_state():
    batches = [torch.rand(2, 3) for _ in range(41)]
    whole, first = RoutingCourse(), RoutingCourse()
    for batch in batches:
        whole.add(batch)
    for batch in batches[:23]:
        first.add(batch)
    second = RoutingCourse.of(json.loads(json.dumps(first.state())), torch.device("cpu"))
    for batch in batches[23:]:
        second.add(batch)
    assert second.shares() == whole.shares()


def test_steps_are_those_of_the_training():
    def entry(step, batches):
        return {
            "step": step,
            "importance": [[1.0]],
            "course": {"batches": batches, "importance": [[[1.0]]] * 3},
        }

    steps, shares = routing_course([entry(10, [4, 4, 2]), entry(20, [4, 4, 2])])
    assert steps == pytest.approx([4, 8, 10, 14, 18, 20])
    assert shares.shape == (6, 1, 1)
    # A step of two batches each, and a run of an earlier version.
    assert routing_course([entry(5, [4, 4, 2])])[0] == pytest.approx([2, 4, 5])
    assert routing_course([{"step": 7, "importance": [[0.5, 0.5]]}])[0] == [7]


def test_the_picture_has_every_layer_and_its_numbers_beside_it(study, config, tmp_path):
    pytest.importorskip("matplotlib")
    result = train(config, report=lambda line: None)
    epochs = [torch.tensor(entry["importance"]) for entry in result["history"]]
    for entry, whole in zip(result["history"], epochs, strict=True):
        course = entry["course"]
        weights = torch.tensor(course["batches"]) / sum(course["batches"])
        mean = (torch.tensor(course["importance"]) * weights[:, None, None]).sum(dim=0)
        torch.testing.assert_close(mean, whole, atol=2e-4, rtol=0)  # batches of one size
    content = Study.load(study)
    content.plot.kind = "importance"
    cell = cells(content)[0]
    file = tmp_path / "plot.png"
    table = {"rows": [{"name": cell.row.label}], "metrics": ["accuracy"], "reference": None}
    plot(content, table, [(cell, result)], file)
    assert file.read_bytes()[:4] == b"\x89PNG"
    numbers = json.loads((tmp_path / "importance.json").read_text())["MoPE"]
    assert numbers["steps"][-1] == result["history"][-1]["step"]
    assert numpy.array(numbers["importance"]).shape == (len(numbers["steps"]), 2, 3)
    used = numpy.array(numbers["effective_experts"])
    assert ((used >= 1) & (used <= 3 + 1e-3)).all()
