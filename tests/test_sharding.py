"""Trainings that can't share out weights, and say so; those that can are in test_processes.py."""

import pytest
import torch
from run_tester import quiet

from mope.errors import UserError
from mope.methods import METHODS
from mope.training import train


def refused(config, **settings) -> str:
    """What is said of a config that is to share out weights."""
    settings = {name.replace("__", "."): value for name, value in settings.items()}
    with pytest.raises(UserError) as error:
        train(config.with_settings({"training.fsdp": True, **settings}), report=quiet)
    assert str(error.value).count(".  ") == 0
    return str(error.value)


def test_one_process_has_nobody_to_share_with(config):
    assert "there is one: start more by torchrun" in refused(METHODS["SeqFuse"].apply(config))


def test_what_does_not_go_together_is_said(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    tuned = METHODS["SeqFuse"].apply(config)
    assert "doesn't go with training.compile" in refused(tuned, training__compile=True)
    assert "doesn't go with fp16" in refused(tuned, training__precision="fp16")
    assert "tuned in full, and none is" in refused(METHODS["MoPE"].apply(config))
    assert "tuned in full, and none is" in refused(METHODS["Probe"].apply(config))
    pmf = METHODS["PMF"].apply(config).with_settings({"inputs.image.encoder.tuning": "full"})
    assert "doesn't go with PMF" in refused(pmf)
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    assert "needs torch 2.7 or later; this is 2.6.0" in refused(tuned)


def test_accelerates_own_way_is_refused(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="accelerate's own FSDP can't be used"):
        train(config, report=quiet)
