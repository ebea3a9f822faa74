"""Kill trainings at random moments, resume them, and see whether they end as an unbroken one.

Each trial is one tiny run over random encoders. It is killed (SIGKILL) again and again, also while it writes
a checkpoint, which it does after every step, and resumed, until it is done. Then its weights and its history
are compared, bit for bit, with those of a run that nothing happened to. Said at the end: how many were the
same, and the most steps that a kill lost.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from conftest import make_tables, make_weights
from run_tester import tiny_run
from safetensors.torch import load_file

from mope.config import Config
from mope.training import train
from mope.training.checkpoints import last_checkpoint

STEPS = 30  # 48 rows in batches of 5, three epochs
_TIMES = ("seconds", "runtime", "per_second")


def main(arguments: list[str] | None = None) -> int:
    """Run the trials; exit code 1 if one ended otherwise than an unbroken run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100, help="how many runs are killed until they end")
    parser.add_argument("--folder", help="where they are; a temporary one by default")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads wouldn't live on in the children
    root = Path(options.folder or tempfile.mkdtemp())
    for name in ("weights", "tables"):
        (root / name).mkdir(parents=True)
    weights, tables = make_weights(root / "weights"), make_tables(root / "tables")
    settings = {"epochs": 3, "batch_size": 5, "save_minutes": 1e-9, "patience": 9}
    config = Config.parse(tiny_run(weights, tables, root / "whole", **settings))
    started = time.monotonic()
    _in_child(config, None)
    whole = time.monotonic() - started
    draw, same, kills, lost = random.Random(options.seed), 0, 0, 0
    for trial in range(options.trials):
        broken = config.model_copy(deep=True)
        broken.output, patience = str(root / f"trial{trial}"), 1.0
        while not (Path(broken.output) / "metrics.json").is_file():
            before = _steps_saved(broken)
            killed, seen = _in_child(broken, patience * draw.uniform(0, 1.1 * whole))
            kills += killed
            # On a machine that has become busy since, a run might else never get as far as its next step.
            patience = 1.0 if _steps_saved(broken) > before else 1.5 * patience
            lost = max(lost, seen - max(_steps_saved(broken), before)) if killed else lost
        equal = _outcome(broken) == _outcome(config)
        same += equal
        print(f"trial {trial + 1}: {'the same' if equal else 'DIFFERENT'} ({kills} kills so far)", flush=True)
        shutil.rmtree(broken.output)
    print(f"{same} of {options.trials} the same after {kills} kills; at most {lost} steps lost by one.")
    return 0 if same == options.trials else 1


def _in_child(config: Config, seconds: float | None) -> tuple[bool, int]:
    """Train in a process that is killed after so long; whether it was, and the last step that it began."""
    note = Path(f"{config.output}.step")
    note.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _train(config, note)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done and status:
            raise RuntimeError(f"The training in {config.output} failed by itself.")
        if done:
            return False, STEPS
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True, int(note.read_text() or 0) if note.is_file() else 0
        time.sleep(0.002)


def _train(config: Config, note: Path) -> None:
    from transformers import TrainerCallback

    class Noted(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            draft = note.with_suffix(".new")
            draft.write_text(str(state.global_step))
            draft.replace(note)

    code = 1
    try:
        train(config, resume=True, report=lambda line: None, callbacks=[Noted()])
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _steps_saved(config: Config) -> int:
    checkpoint = last_checkpoint(Path(config.output) / "checkpoints")
    return int(checkpoint.rpartition("-")[2]) if checkpoint else 0


def _outcome(config: Config) -> tuple[dict[str, bytes], str]:
    """A run's weights, and its history without times."""
    folder = Path(config.output)
    history = json.loads((folder / "metrics.json").read_text())["history"]
    kept = [{k: v for k, v in entry.items() if not k.endswith(_TIMES)} for entry in history]
    weights = load_file(folder / "model.safetensors")
    found = {name: tensor.numpy().tobytes() for name, tensor in weights.items()}
    return found, json.dumps(kept, sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())
