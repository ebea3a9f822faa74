"""Training by minutes: the schedule over time, and when it ends."""

import math
from types import SimpleNamespace

import pytest

from mope.training import budget
from mope.training.budget import Budget


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(budget.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
@pytest.mark.parametrize("step", [0.5, 7.0])
def test_it_ends_in_time_whatever_a_step_takes(monkeypatch, schedule, step):
    clock = Clock(monkeypatch)
    made = Budget(100, clock.now - 5, warmup=0.1, schedule=schedule, evaluation=4)
    control = SimpleNamespace(should_training_stop=False)
    made.on_train_begin()
    factors = []
    while not control.should_training_stop:
        clock.now += step
        made.on_step_end(None, None, control)
        factors.append(made.factor(0))
        if len(factors) == 5:  # an epoch's end, with an evaluation of three seconds
            made.on_epoch_end()
            clock.now += 3
            made.on_evaluate(None, None, control)
    left = 1095 - clock.now
    assert 3 <= left < 3 * 1.1 + 2 + 2 * step + 1e-6  # the last evaluation and what is written fit in
    assert max(factors) == pytest.approx(1.0, abs=0.2)
    assert factors[0] < max(factors) or step > 5  # a step may be longer than the warm-up
    if schedule == "constant_with_warmup":
        assert factors[-1] == 1
    else:
        assert factors[-1] == pytest.approx(0, abs=1e-6)
        assert factors.index(max(factors)) <= math.ceil(0.2 * len(factors))


def test_a_machine_that_slows_down_gets_fewer_steps(monkeypatch):
    def steps(slow: bool) -> int:
        clock = Clock(monkeypatch)
        made = Budget(60, clock.now, warmup=0.1, schedule="cosine", evaluation=1)
        control = SimpleNamespace(should_training_stop=False)
        made.on_train_begin()
        count = 0
        while not control.should_training_stop:
            clock.now += 3.0 if slow and count > 10 else 1.0
            made.on_step_end(None, None, control)
            count += 1
        assert clock.now < 1060
        return count

    assert steps(True) < steps(False)
