"""Training in several processes, under torchrun on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_tester import masks_run, tiny_run
from safetensors.torch import load_file

from mope.config import Config
from mope.methods import METHODS
from mope.model import FusionModel
from mope.scenes.build import SceneSettings, build_scenes

WORKER = Path(__file__).with_name("process_worker.py")


def run(
    jobs: list[dict], folder: Path, processes: int, end_at: int | None = None, double: bool = False
) -> list[list[dict]]:
    """What each process made of the configs, by process and config; of none if they are told to end after so
    many steps.

    Whether processes train as one is asked with `double`, in float64: in float32 AdamW, whose first steps
    follow the signs of gradients whatever their size, makes roundings larger with every step, as much as the
    processor has it. So it does with the bias before the mapper's norm, whose gradient is roundings alone;
    evaluation sees it for as long as the norm's running mean lags behind.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(WORKER), str(file)],
        capture_output=True,
        text=True,
        timeout=900,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "END_AT": str(end_at or ""),
            "IN_FLOAT64": str(int(double)),
        },
    )
    if end_at is not None:
        assert f"stopped by SIGTERM after step {end_at} of" in done.stderr, done.stderr[-3000:]
        return []
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    assert done.returncode == 0, f"job {len(results[0]) if results else 0}: {done.stderr[-3000:]}"
    assert len(results) == processes
    assert all(len(one) == len(jobs) for one in results)
    return results


def share_of_rising(rates: list[float]) -> float:
    """How far into the training the learning rate is highest."""
    return rates.index(max(rates)) / len(rates)


@pytest.fixture(scope="module")
def both(weights, tables, tmp_path_factory):
    """One run in one process and in two: 48 rows in batches of 4, four epochs."""
    root = tmp_path_factory.mktemp("processes")
    results = {}
    for processes in (1, 2):
        content = tiny_run(weights, tables, root / f"run{processes}", epochs=4, batch_size=4, patience=9)
        results[processes] = run([content], root / f"jobs{processes}", processes)
    return root, results


@pytest.mark.slow
def test_warm_up_and_logging_are_shares_of_the_training(both):
    _, results = both
    one, two = results[1][0][0], results[2][0][0]
    assert one["rates"] == two["rates"]
    assert len(one["rates"]) == 48
    assert share_of_rising(one["rates"]) == pytest.approx(0.1, abs=0.03)
    assert (one["logging"], two["logging"]) == (1, 1)


@pytest.mark.slow
def test_processes_draw_numbers_of_their_own_and_end_with_the_same_weights(both):
    _, results = both
    first, second = (process[0] for process in results[2])
    assert not set(first["random"]) & set(second["random"])
    assert first["weights"] == second["weights"]
    assert [e["eval_loss"] for e in first["history"]] == [e["eval_loss"] for e in second["history"]]


@pytest.mark.slow
def test_the_first_process_alone_reports(both):
    root, _ = both
    for processes in (1, 2):
        assert len(list((root / f"run{processes}" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_norms_see_the_rows_of_all_processes(weights, tables, tmp_path):
    """Running statistics after a step of 2 x 24 rows are those after one of 48."""
    found = []
    for processes in (1, 2):
        content = tiny_run(weights, tables, tmp_path / f"run{processes}", epochs=1)
        content["training"]["batch_size"] = 48
        content["inputs"]["text"]["encoder"]["tuning"] = "frozen"  # no dropout on what the mapper sees
        run([content], tmp_path / f"jobs{processes}", processes)
        state = load_file(tmp_path / f"run{processes}" / "model.safetensors")
        # What enters a layer depends on the noise and the dropout of those before it, each process's own.
        known = {name for name in state if "running" in name and "intra_norms" not in name}
        assert any("cross_norms" in name for name in known)
        found.append({name: state[name] for name in known})
    assert {name.rpartition(".")[2] for name in found[0]} == {"running_mean", "running_var"}
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def steady(weights, tmp_path_factory):
    """The tiny encoders, in which nothing drops out: what does is each process's own."""
    folder = tmp_path_factory.mktemp("steady") / "text"
    shutil.copytree(weights["text"], folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(settings))
    return {**weights, "text": str(folder)}


def some_runs(steady: dict[str, str], tables: Path, folder: Path) -> dict[str, Config]:
    """Configs of 47 rows in batches of 5, whose last batches two processes of four have nothing of."""
    base = Config.parse(tiny_run(steady, tables, folder / "run", epochs=2, batch_size=5))
    base = base.with_settings({"data.train_rows": 47, "fusion.dropout": 0.0})
    scenes = folder / "scenes"
    build_scenes(scenes, SceneSettings(task="segmentation", train=12, validation=5, test=2, size=42))
    masks = Config.parse(masks_run(base, scenes)).with_settings({"data.train_rows": None})
    return {
        "MoPE": METHODS["MoPE"].apply(base),
        "MoPE-clusters": METHODS["MoPE-clusters"].apply(base),
        "P-SeqFuse": METHODS["P-SeqFuse"].apply(base),
        "SeqFuse": METHODS["SeqFuse"].apply(base),
        "masks": METHODS["MoPE"].apply(masks),
        "weights": METHODS["P-SeqFuse"].apply(base).with_settings({"data.class_weights": "balanced"}),
    }


def run_in_each(
    jobs: dict[str, Config], folder: Path, counts: tuple[int, ...], double: bool
) -> dict[int, list[list[dict]]]:
    """What became of the configs in so many processes, by how many they were."""
    found = {}
    for processes in counts:
        contents = []
        for number, config in enumerate(jobs.values()):
            config.fusion.dropout = 0.0
            config.output = str(folder / f"run{number}-{processes}")
            contents.append(config.model_dump(mode="json"))
        found[processes] = run(contents, folder / f"jobs{processes}", processes, double=double)
    return found


def mean_losses(results: list[list[dict]], number: int) -> list[float]:
    """Of each step of a run, over the processes."""
    every = zip(*(one[number]["losses"] for one in results), strict=True)
    return [sum(values) / len(results) for values in every]


@pytest.mark.slow
def test_any_number_of_processes_trains_as_one(steady, tables, tmp_path):
    """The same losses at each step and the same validation, to nine digits."""
    jobs = some_runs(steady, tables, tmp_path)
    base = jobs["MoPE"]
    jobs["augmented"] = base.with_settings(
        {"inputs.image.augment": "randaugment", "inputs.text.missing": "learn", "inputs.text.drop": 0.3}
    )
    jobs["accumulated"] = base.with_settings({"training.accumulate": 2})
    jobs["streamed"] = base.with_settings({"data.streaming": True, "data.labels": ["blue", "green", "red"]})
    found = run_in_each(jobs, tmp_path, (1, 2, 4), double=True)
    for number, name in enumerate(jobs):
        alone = found[1][0][number]
        assert len(alone["losses"]) == (10 if name == "masks" else 20), name
        for processes in (2, 4):
            means = mean_losses(found[processes], number)
            assert means == pytest.approx(alone["losses"], rel=1e-9, abs=1e-9), (name, processes)
            history = found[processes][0][number]["history"]
            for entry, expected in zip(history, alone["history"], strict=True):
                for value in ("eval_loss", "train_task_loss", "eval_" + METRIC.get(name, "accuracy")):
                    assert entry[value] == pytest.approx(expected[value], abs=1e-8), (name, value)


@pytest.mark.slow
def test_in_float32_processes_begin_as_one(steady, tables, tmp_path):
    """Before AdamW has made much of roundings."""
    jobs = some_runs(steady, tables, tmp_path)
    found = run_in_each(jobs, tmp_path, (1, 2), double=False)
    for number, name in enumerate(jobs):
        begun, close = found[1][0][number]["losses"][:5], ROUNDED.get(name, 2e-5)
        assert mean_losses(found[2], number)[:5] == pytest.approx(begun, rel=close, abs=close), name


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(steady, tables, tmp_path):
    """It is cut off within its second epoch; two processes begin, one goes on."""
    base = Config.parse(
        tiny_run(steady, tables, tmp_path / "whole", epochs=3, batch_size=5, save_minutes=1e-9)
    )
    published = METHODS["MoPE"].apply(base).with_settings({"fusion.dropout": 0.0})
    whole = published.model_dump(mode="json")
    (expected,) = run([whole], tmp_path / "one", 1, double=True)[0]
    broken = {**whole, "output": str(tmp_path / "broken")}
    run([broken], tmp_path / "two", 2, end_at=13, double=True)
    assert not (tmp_path / "broken" / "metrics.json").exists()
    (found,) = run([broken], tmp_path / "again", 1, double=True)[0]
    assert len(found["losses"]) == 30 - 13
    assert found["losses"] == pytest.approx(expected["losses"][13:], rel=1e-9, abs=1e-9)
    for entry, other in zip(found["history"], expected["history"], strict=True):
        for value in ("eval_loss", "train_task_loss"):
            assert entry[value] == pytest.approx(other[value], abs=1e-8), value


@pytest.fixture(scope="module")
def shared_out(steady, tables, tmp_path_factory):
    """Encoders tuned in full in one process, and shared out among two: what came of each."""
    root = tmp_path_factory.mktemp("fsdp")
    base = Config.parse(tiny_run(steady, tables, root / "run", epochs=2, batch_size=5))
    base = base.with_settings({"data.train_rows": 47, "fusion.dropout": 0.0})
    scenes = root / "scenes"
    build_scenes(scenes, SceneSettings(task="segmentation", train=12, validation=5, test=2, size=42))
    masks = Config.parse(masks_run(base, scenes)).with_settings({"data.train_rows": None})
    tuned = METHODS["SeqFuse"].apply(base)
    mixed = {"inputs.text.encoder.tuning": "frozen", "data.class_weights": "balanced"}
    mixed |= {"data.cache_features": False}  # which keeps float32
    swin = {"model_type": "swin", "image_size": 28, "patch_size": 2, "embed_dim": 16, "window_size": 7}
    swin |= {"depths": [1, 1], "num_heads": [2, 2], "drop_path_rate": 0.0}
    built = {"inputs.image.encoder.weights": None, "inputs.image.encoder.architecture": swin}
    jobs = {
        "SeqFuse": tuned,
        "LateConcat": METHODS["LateConcat"].apply(base),
        "TextOnly": METHODS["TextOnly"].apply(base),
        "masks": METHODS["SeqFuse"].apply(masks),
        "one of two": tuned.with_settings(mixed),
        "accumulated": tuned.with_settings({"training.accumulate": 2}),
        "checkpointed": tuned.with_settings({"training.gradient_checkpointing": True}),
        "Swin": tuned.with_settings({**built, "inputs.image.size": 28}),
    }
    results = {}
    for processes in (1, 2):
        contents = []
        for number, config in enumerate(jobs.values()):
            config = config.with_settings(
                {"training.fsdp": processes > 1, "output": str(root / f"run{number}-{processes}")}
            )
            config.fusion.dropout = 0.0
            contents.append(config.model_dump(mode="json"))
        results[processes] = run(contents, root / f"jobs{processes}", processes, double=True)
    return root, list(jobs), results


@pytest.mark.slow
def test_processes_that_share_out_weights_train_as_one(shared_out):
    root, names, results = shared_out
    for number, name in enumerate(names):
        alone, every = results[1][0][number], [one[number] for one in results[2]]
        means = mean_losses(results[2], number)
        assert means == pytest.approx(alone["losses"], rel=1e-9, abs=1e-9), name
        for entry, expected in zip(every[0]["history"], alone["history"], strict=True):
            assert entry["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-8), name
        assert len({one["weights"] for one in every}) == 1, name
        whole, other = (load_file(root / f"run{number}-{n}" / "model.safetensors") for n in (1, 2))
        shapes = [{key: tensor.shape for key, tensor in one.items()} for one in (whole, other)]
        assert shapes[0] == shapes[1], name
        FusionModel.from_pretrained(root / f"run{number}-2")


@pytest.mark.slow
def test_each_process_keeps_its_part_of_the_moments(shared_out):
    _, names, results = shared_out
    number = names.index("LateConcat")  # of which hardly anything but the encoders is trained
    alone = results[1][0][number]["held"]
    assert all(one[number]["held"] < 0.55 * alone for one in results[2])


@pytest.mark.slow
def test_a_run_that_shares_out_weights_goes_on_with_any_number_of_processes(steady, tables, tmp_path):
    """Two processes are told to end: one goes on alone, four with parts, and two others that were whole."""
    base = tiny_run(steady, tables, tmp_path / "whole", epochs=3, batch_size=5, save_minutes=1e-9)
    tuned = METHODS["SeqFuse"].apply(Config.parse(base)).with_settings({"fusion.dropout": 0.0})

    def go(fsdp: bool, processes: int, end_at: int | None = None) -> list[list[dict]]:
        contents = []
        for name in names:
            settings = {"training.fsdp": fsdp, "output": str(tmp_path / name)}
            contents.append(tuned.with_settings(settings).model_dump(mode="json"))
        folder = tmp_path / f"{names[0]}-{processes}{fsdp}{end_at}"
        return run(contents, folder, processes, end_at, double=True)

    for name, begun, resumed in (
        ("to one", (True, 2), (False, 1)),
        ("from whole ones", (False, 2), (True, 2)),
        ("to four", (True, 2), (True, 4)),
    ):
        names = [name]
        go(*begun, end_at=13)
        assert not (tmp_path / name / "metrics.json").exists()
        names = [name, "unbroken"] if name == "to one" else [name]
        results = go(*resumed)
        if name == "to one":
            expected = results[0][1]["losses"]
        assert mean_losses(results, 0) == pytest.approx(expected[13:], rel=1e-9, abs=1e-9), name


METRIC = {"masks": "miou"}
ROUNDED = {"MoPE-clusters": 5e-4}
"""Where roundings, which depend on how many rows are multiplied at once, grow: its router standardises class
tokens that hardly differ between rows in the first layers, which makes them a thousand times as large."""


@pytest.mark.slow
def test_every_method_task_and_missing_input_trains_in_two_processes(weights, tables, tmp_path):
    base = Config.parse(tiny_run(weights, tables, tmp_path / "run", epochs=1, batch_size=6, device="cpu"))
    missing = base.model_copy(deep=True)
    for entry in missing.inputs.values():
        entry.missing, entry.drop = "learn", 0.3
    scenes = tmp_path / "scenes"
    build_scenes(scenes, SceneSettings(task="segmentation", train=12, validation=4, test=2, size=42))
    masks = Config.parse(masks_run(base, scenes))
    jobs = {}
    for name, method in METHODS.items():
        jobs[name] = method.apply(base)
        jobs[f"{name}, missing"] = method.apply(missing)
        if method.fusion not in ("concat", "pmf", "mutual") and method.main_kind != "text":
            jobs[f"{name}, masks"] = method.apply(masks)
    for task, label in (("multilabel", "colours"), ("regression", "number")):
        jobs[task] = base.with_settings({"task": task, "data.label": label})
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    architecture = {"model_type": "dinov2", **shape, "image_size": 28, "patch_size": 7}
    built = {"inputs.image.encoder.weights": None, "inputs.image.encoder.architecture": architecture}
    jobs["built from its architecture"] = METHODS["SeqFuse"].apply(base).with_settings(built)
    contents = []
    for number, config in enumerate(jobs.values()):
        config.output = str(tmp_path / f"run{number}")
        contents.append(config.model_dump(mode="json"))
    first, second = run(contents, tmp_path / "jobs", 2)
    for name, one, other in zip(jobs, first, second, strict=True):
        assert one["weights"] == other["weights"], name
