"""Rows of several runs in common passes over every kind of encoder, and in bf16: as each run alone."""

import shutil
import wave
from pathlib import Path

import numpy
import pytest
import torch
import transformers as hf
from miniatures import film
from run_tester import masks_run, tiny_run

from mope import Predictors
from mope.config import Config
from mope.data.table import open_table
from mope.encoders.weights import build_backbone, read_architecture
from mope.media.masks import open_mask
from mope.model import FusionModel
from mope.scenes.build import SceneSettings, build_scenes

LABELS = ["blue", "green", "red"]
FUSIONS = [{}, {"length": 4, "experts": 5, "start": "quiet"}, {"prompts": ["static", "mapped"]}]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
RATE = 16000


@pytest.fixture
def content(weights, tables, tmp_path):
    return tiny_run(weights, tables, tmp_path)


@pytest.fixture
def rows(tables):
    questions = ("left", "what is left ?", "right", "what is on the right side ?")
    found = zip(open_table(tables / "test.csv"), questions, strict=False)
    return [{**row, "picture": str(tables / row["picture"]), "question": text} for row, text in found]


def _runs(content, folder: Path, labels: list[str] = LABELS, fusions: list[dict] = FUSIONS) -> list[Path]:
    """A run of each fusion, untrained, with prompts loud enough to matter."""
    made = []
    for number, fusion in enumerate(fusions):
        torch.manual_seed(number)
        run = {**content, "fusion": {**content["fusion"], **fusion}, "output": str(folder / f"run{number}")}
        model = FusionModel.build(Config.parse(run), labels)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(run["output"])
        made.append(Path(run["output"]))
    return made


def _passes(predictors: Predictors) -> list[int]:
    """Fills up with how many rows each pass through an encoder has."""
    passes: list[int] = []
    encoders = {
        one.encoder
        for predictor in predictors.runs.values()
        for one in map(predictor.model.fusion.encoder, predictor.model.fusion.encoders)
    }
    for encoder in encoders:
        encoder.register_forward_hook(lambda _, inputs, output: passes.append(len(output.pooled)))
    return passes


def _require_as_alone(runs: list[Path], rows: list[dict], tolerance: float = 1e-5, **options) -> None:
    """Rows of all runs are answered as by each run alone, in passes that these share."""
    predictors = Predictors(runs, device="cpu", **options)
    passes = _passes(predictors)
    places = {f"run{number}": rows[number:] for number in range(len(runs))}  # not as many of each
    found = predictors.predict(places)
    together = sum(map(len, places.values()))
    assert passes == [together] * len(predictors["run0"].model.fusion.encoders)
    answers = set()
    for name, some in places.items():
        for row, prediction in zip(some, found[name], strict=True):
            alone = predictors[name].predict(row)[0]
            assert prediction.error is None
            assert alone.error is None
            if isinstance(alone.label, dict):
                _require_same_masks(prediction.label, alone.label)
                answers.add(alone.label["counts"])
                continue
            answers.add(tuple(alone.probabilities.values()))
            assert prediction.probabilities == pytest.approx(alone.probabilities, abs=tolerance)
    assert len(answers) >= len(rows)  # they aren't all the same


def _require_same_masks(one: dict, other: dict) -> None:
    """Logits at zero may fall to either side."""
    assert one["size"] == other["size"]
    assert (_inside(one) != _inside(other)).mean() < 0.001


def _inside(mask: dict) -> numpy.ndarray:
    return numpy.asarray(open_mask(mask, Path(), empty=True))


def _with_sounds(rows: list[dict], folder: Path) -> list[dict]:
    """Each row with a sound of its own, half a second and longer."""
    for number, row in enumerate(rows):
        samples = numpy.sin(numpy.arange(RATE // 2 + 500 * number) / (5 + 3 * number))
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((20000 * samples).astype("<i2").tobytes())
        row["sound"] = str(folder / f"{number}.wav")
    return rows


def _spectra(folder: Path) -> str:
    """A spectrogram transformer."""
    bins = {"num_mel_bins": 16, "max_length": 64}
    shape = hf.ASTConfig(**SHAPE, **bins, patch_size=4, frequency_stride=4, time_stride=4)
    hf.ASTModel(shape).save_pretrained(folder)
    hf.ASTFeatureExtractor(sampling_rate=RATE, **bins).save_pretrained(folder)
    return str(folder)


def _waves(folder: Path) -> str:
    """A transformer of waves whose rows are padded, and masked."""
    convolutions = {"conv_dim": [16, 16], "conv_stride": [40, 8], "conv_kernel": [40, 8]}
    groups = {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
    shape = hf.Wav2Vec2Config(
        **SHAPE,
        **convolutions,
        **groups,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
    )
    hf.Wav2Vec2Model(shape).save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("make", [_spectra, _waves])
@pytest.mark.parametrize("main", ["text", "sound"])
def test_sounds(content, rows, tmp_path, make, main):
    content["inputs"]["sound"] = {
        "kind": "audio",
        "column": "sound",
        "seconds": 0.5,
        "encoder": {"weights": make(tmp_path / "audio"), "tuning": "prompt"},
    }
    del content["inputs"]["image"]
    content["fusion"]["main"] = main
    content["inputs"][main]["encoder"]["tuning"] = "frozen"
    _require_as_alone(_runs(content, tmp_path), _with_sounds(rows, tmp_path))


def test_videos(content, rows, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "film.mp4").write_bytes(film())
    video = {"kind": "video", "column": "film", "encoder": {**content["inputs"]["image"]["encoder"]}}
    content["inputs"]["video"] = video
    del content["inputs"]["image"]
    content["fusion"]["main"] = "video"
    _require_as_alone(_runs(content, tmp_path), [{**row, "film": str(tmp_path / "film.mp4")} for row in rows])


def _prepared_as(entry: dict, folder: Path, size: int) -> None:
    """Let other weights take the place of an input's, with pictures prepared as before."""
    shutil.copy(Path(entry["encoder"]["weights"]) / "preprocessor_config.json", folder)
    entry["encoder"]["weights"], entry["size"] = str(folder), size


TIMM = {
    "vit_tiny_patch16_224": {"patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "patch_size": 2,
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (2, 2),
        "window_size": 7,
    },
}


@pytest.mark.parametrize("name", list(TIMM))
def test_timm_s_pictures(content, rows, tmp_path, name):
    shape = {"img_size": 28, **TIMM[name]}
    config = read_architecture({"model_type": "timm_wrapper", "architecture": name, "model_args": shape})
    build_backbone(config).save_pretrained(tmp_path / "timm")
    _prepared_as(content["inputs"]["image"], tmp_path / "timm", 28)
    _require_as_alone(_runs(content, tmp_path), rows)


@pytest.mark.parametrize("main", ["plain", "swin"])
def test_masks(config, tmp_path, main):
    build_scenes(tmp_path / "scenes", SceneSettings("easy", "segmentation", 2, 2, 4, 56))
    content = masks_run(config, tmp_path / "scenes")
    if main == "swin":
        heads = {"depths": [1] * 4, "num_heads": [2] * 4, "window_size": 4}
        hf.SwinModel(hf.SwinConfig(image_size=64, patch_size=2, embed_dim=8, **heads)).save_pretrained(
            tmp_path / "swin"
        )
        _prepared_as(content["inputs"]["image"], tmp_path / "swin", 64)
    table = open_table(tmp_path / "scenes" / "test.csv")
    rows = [{**row, "image": str(tmp_path / "scenes" / row["image"])} for row in table]
    _require_as_alone(_runs(content, tmp_path, ["mask"]), rows[:4])


def test_bf16(content, rows, tmp_path):
    """Bf16 has eight bits; what a mixture changes stays within a few of the last one."""
    _require_as_alone(_runs(content, tmp_path), rows, tolerance=0.02, precision="bf16")
