"""Runs that are continued, or refused to be."""

from pathlib import Path

import pytest
import torch
from run_tester import changed, losses, quiet
from safetensors.torch import load_file

from mope.errors import UserError
from mope.training import train


def test_a_resumed_run_ends_where_an_unbroken_one_does(config, tmp_path):
    steady = {"schedule": "constant_with_warmup", "warmup": 0.0, "patience": 9}
    whole = changed(config, output=str(tmp_path / "whole"), training={**steady, "epochs": 4})
    broken = changed(config, output=str(tmp_path / "broken"), training={**steady, "epochs": 2})
    full = train(whole, report=quiet)
    train(broken, report=quiet)
    (tmp_path / "broken" / "metrics.json").unlink()  # as if it had been killed, while it wrote a checkpoint
    (tmp_path / "broken" / "checkpoints" / "checkpoint-999").mkdir()
    continued = train(changed(broken, training={"epochs": 4}), resume=True, report=quiet)
    assert [entry["epoch"] for entry in continued["history"]] == [1, 2, 3, 4]
    assert losses(continued) == pytest.approx(losses(full), rel=1e-6)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_left_as_it_is_and_another_is_refused(config):
    first = train(config, report=quiet)
    stamp = (Path(config.output) / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"holds a finished run: add --resume .* to keep it"):
        train(config, report=quiet)
    lines = []
    assert train(config, resume=True, report=lines.append) == first
    assert "is finished" in lines[0]
    assert (Path(config.output) / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match=r"trained with another fusion\.experts"):
        train(changed(config, fusion={"experts": 5}), resume=True, report=quiet)
    (Path(config.output) / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"holds an unfinished run: add --resume .* to continue it"):
        train(config, report=quiet)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
def test_another_number_of_epochs_is_refused_where_the_rate_would_jump(config, schedule):
    config = changed(config, training={"schedule": schedule, "warmup": 0.5})
    train(config, report=quiet)
    weights = (Path(config.output) / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"begun for 2 epochs, not 6, .*resume it with --training\.epochs 2"):
        train(changed(config, training={"epochs": 6}), resume=True, report=quiet)
    assert (Path(config.output) / "model.safetensors").read_bytes() == weights


def test_a_run_that_stopped_early_goes_on_with_more_patience(config, tmp_path):
    """It ends as one that had the patience from the beginning."""
    hopeless = {"epochs": 6, "learning_rate": 1e-9, "complementary_learning_rate": 1e-9}
    config = changed(config, training={**hopeless, "head_start": "random", "patience": 1})
    first = train(config, report=quiet)
    assert len(first["history"]) == 2
    lines = []
    assert train(config, resume=True, report=lines.append) == first
    assert "is finished" in lines[0]
    patient = changed(config, training={"patience": 3})
    resumed = train(patient, resume=True, report=quiet)
    unbroken = train(changed(patient, output=str(tmp_path / "unbroken")), report=quiet)
    assert len(resumed["history"]) == len(unbroken["history"]) == 4
    assert losses(resumed) == losses(unbroken)
    one, other = (load_file(f"{run}/model.safetensors") for run in (config.output, tmp_path / "unbroken"))
    assert all(torch.equal(one[name], other[name]) for name in one)
