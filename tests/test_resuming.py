"""Runs that are continued, or refused to be; and what is never lost."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_tester import changed, losses, quiet
from safetensors.torch import load_file
from transformers import TrainerCallback

from mope import weights as weights_module
from mope.errors import Interrupted, UserError
from mope.lock import writing
from mope.model import FusionModel
from mope.predictor import Predictor
from mope.run import CHECKPOINTS
from mope.training import train
from mope.training.checkpoints import begin_draft, finish_draft, last_checkpoint

EVERY_STEP = {"training.save_minutes": 1e-9}
"""A checkpoint after each step."""


class Killed(Exception):
    """As if the process had been killed: nothing is cleaned up by the library because of it."""


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.do()


def kill():
    """End at once."""
    raise Killed


def same_weights(one: str | Path, other: str | Path) -> bool:
    first, second = (load_file(Path(run) / "model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


VARIANTS = {
    "plain": {},
    "augmented": {
        "inputs.image.augment": "randaugment",
        "inputs.text.missing": "learn",
        "inputs.text.drop": 0.3,
    },
    "accumulated": {"training.accumulate": 2},
    "streamed": {
        "data.streaming": True,
        "data.labels": ["blue", "green", "red"],
        "data.train_rows": 48,
        "data.shuffle_buffer": 5,
    },
    "workers": {"data.workers": 2, "inputs.image.augment": "randaugment"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_goes_on_within_an_epoch_as_if_nothing_had_happened(config, tmp_path, variant):
    """48 rows in batches of 5: ten steps an epoch, the last one smaller. Killed twice."""
    config = changed(config, training={"batch_size": 5}).with_settings({**VARIANTS[variant], **EVERY_STEP})
    whole = config.with_settings({"output": str(tmp_path / "whole")})
    full = train(whole, report=quiet)
    steps = full["history"][-1]["step"]
    for step in (3, steps - 2):
        with pytest.raises(Killed):
            train(config, resume=True, report=quiet, callbacks=[At(step, kill)])
        newest = last_checkpoint(Path(config.output) / CHECKPOINTS)
        assert newest is not None
        assert newest.endswith(f"-{step}")
    broken = train(config, resume=True, report=quiet)
    assert same_weights(config.output, whole.output)
    times = {"seconds", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    for entry, expected in zip(broken["history"], full["history"], strict=True):
        assert {k: v for k, v in entry.items() if k not in times} == {
            k: v for k, v in expected.items() if k not in times
        }
    assert broken["validation"] == full["validation"]


class KilledBehind(TrainerCallback):
    """Ends at once when the checkpoint of a step is there."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            kill()


HOPELESS = {"learning_rate": 1e-9, "complementary_learning_rate": 1e-9, "head_start": "random"}
"""No epoch is better than the first."""


@pytest.mark.parametrize(
    "training",
    [
        {**HOPELESS, "epochs": 6, "patience": 1},
        {"epochs": 1.5, "accumulate": 2},
        {"epochs": 1.3},
        {"epochs": 2},
    ],
    ids=["stopped early", "fractional, accumulated", "fractional", "whole epochs"],
)
def test_a_run_that_was_over_when_it_was_killed_ends_as_it_was(config, tmp_path, training):
    """Killed behind its last evaluation, and moved to another place before it is resumed."""
    config = changed(config, training=training)
    whole = config.with_settings({"output": str(tmp_path / "whole")})
    full = train(whole, report=quiet)
    with pytest.raises(Killed):
        train(config, report=quiet, callbacks=[KilledBehind(full["history"][-1]["step"])])
    moved = config.with_settings({"output": str(tmp_path / "moved")})
    Path(config.output).rename(moved.output)
    resumed = train(moved, resume=True, report=quiet)
    assert [entry["step"] for entry in resumed["history"]] == [entry["step"] for entry in full["history"]]
    assert losses(resumed) == losses(full)
    assert resumed["validation"] == full["validation"]
    assert same_weights(moved.output, whole.output)


def test_a_checkpoint_that_was_to_be_replaced_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    def write(step, content):
        draft = begin_draft(tmp_path) / f"checkpoint-{step}"
        draft.mkdir()
        (draft / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        (draft / "weights").write_text(content)
        finish_draft(tmp_path, draft.name, None)

    write(3, "before")
    rename = Path.rename

    def killed(path, target):
        if path.parent.name == ".draft":
            kill()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(Killed):
        write(3, "behind")
    monkeypatch.undo()
    found = last_checkpoint(tmp_path, quiet)
    assert found == str(tmp_path / "checkpoint-3")
    assert (Path(found) / "weights").read_text() == "before"
    write(3, "behind")
    assert (Path(found) / "weights").read_text() == "behind"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    # One that is half removed doesn't come back.
    Path(found).rename(tmp_path / ".old")
    (tmp_path / ".old" / "files.json").unlink()
    assert last_checkpoint(tmp_path, quiet) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_it_and_says_so(config, tmp_path, number):
    whole = config.with_settings({"output": str(tmp_path / "whole")})
    train(whole, report=quiet)
    before, lines = signal.getsignal(number), []
    with pytest.raises(
        Interrupted, match=rf"stopped by {number.name} after step 5 of 12.* --resume"
    ) as error:
        train(config, report=lines.append, callbacks=[At(4, lambda: os.kill(os.getpid(), number))])
    assert error.value.code == 128 + number
    assert any(line.startswith(f"{number.name}: the step under way is finished") for line in lines)
    assert signal.getsignal(number) is before
    train(config, resume=True, report=quiet)
    assert same_weights(config.output, whole.output)


def test_a_second_interrupt_ends_at_once(config):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, report=quiet, callbacks=[At(2, twice)])


def test_a_damaged_checkpoint_is_passed_over(config, tmp_path):
    config = config.with_settings(EVERY_STEP)
    whole = config.with_settings({"output": str(tmp_path / "whole")})
    train(whole, report=quiet)
    with pytest.raises(Killed):
        train(config, report=quiet, callbacks=[At(4, kill)])
    newest = Path(last_checkpoint(Path(config.output) / CHECKPOINTS) or "")
    flip(newest / "optimizer.pt", 1000)
    lines = []
    train(config, resume=True, report=lines.append)
    assert any(
        "checkpoint-4 is damaged (optimizer.pt isn't what was written): it is passed" in one for one in lines
    )
    assert same_weights(config.output, whole.output)


def flip(file: Path, place: int) -> None:
    """Turn a bit around."""
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1
    file.write_bytes(bytes(content))


def test_a_flipped_bit_in_the_weights_is_never_predicted_with(config):
    train(changed(config, training={"epochs": 1}), report=quiet)
    file = Path(config.output) / "model.safetensors"
    content = file.read_bytes()
    for place in (5, 60, 400, len(content) // 3, len(content) // 2, len(content) - 1):
        flip(file, place)
        with pytest.raises(UserError, match=r"model\.safetensors (is damaged|can't be read)"):
            Predictor(config.output)
        with pytest.raises(UserError, match=r"model\.safetensors (is damaged|can't be read)"):
            FusionModel.from_pretrained(config.output)
        file.write_bytes(content)
    Predictor(config.output)


def test_a_run_has_one_writer(config, capsys):
    with (
        writing(Path(config.output)),
        pytest.raises(UserError, match=rf"written by process {os.getpid()} on .*, since"),
    ):
        train(config, report=quiet)
    train(config, report=quiet)
    assert not (Path(config.output) / ".writer.json").exists()


def test_a_run_that_never_began_leaves_no_folder(config):
    wrong = config.with_settings({"data.label": "color"})
    with pytest.raises(UserError, match="did you mean 'colour'"):
        train(wrong, report=quiet)
    assert not Path(config.output).exists()


def test_what_cannot_be_written_is_found_before_the_encoders_load(config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    config = config.with_settings({"output": str(tmp_path / "file" / "run")})
    monkeypatch.setattr(FusionModel, "build", lambda *args: pytest.fail("it was built"))
    with pytest.raises(
        UserError, match=r"file/run can't be written: (not a directory|file exists); name another"
    ):
        train(config, report=quiet)


def test_a_full_disk_is_said_and_the_last_checkpoint_is_whole(config, tmp_path, monkeypatch):
    whole = config.with_settings({"output": str(tmp_path / "whole")})
    train(whole, report=quiet)
    real, count = weights_module.save_file, []

    def full(*args, **kwargs):
        count.append(1)
        if len(count) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(weights_module, "save_file", full)
    with pytest.raises(
        UserError, match=r"checkpoint of step 4 can't be written into .*: the disk is full .*--resume"
    ):
        train(config.with_settings(EVERY_STEP), report=quiet)
    monkeypatch.undo()
    assert (last_checkpoint(Path(config.output) / CHECKPOINTS) or "").endswith("-3")
    train(config, resume=True, report=quiet)
    assert same_weights(config.output, whole.output)


@pytest.mark.slow
def test_killed_runs_end_as_unbroken_ones(tmp_path):
    """A few of what dev/torture.py does a hundred times."""
    script = Path(__file__).parents[1] / "dev" / "torture.py"
    command = [sys.executable, str(script), "--trials", "4", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 the same" in done.stdout


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
