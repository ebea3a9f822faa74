"""Every data set's study by its one command, from the published files' miniatures to the table."""

import json
from pathlib import Path

import pytest
from miniatures import MINIATURES, film

from mope.config import Config
from mope.datasets import prepare
from mope.studies.compare import compare
from mope.studies.runs import Runner, outcome_of, run_config
from mope.studies.study import Study, columns_of
from mope.studies.table import cells_of

STUDIES = Path(__file__).parent.parent / "configs" / "studies"
SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
}
PLAIN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 16, **PLAIN}
WAVES = {
    **PLAIN,
    "model_type": "wav2vec2",
    "conv_dim": [16, 16],
    "conv_stride": [32, 10],
    "conv_kernel": [32, 10],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


class _Here(Runner):
    """Runs one after another, in this process."""

    workers = 1

    def run(self, settings, after):
        run_config(settings, None, 1, [], after, None)
        return outcome_of(Path(settings["output"]), after, 0.0, "it died")


def tiny(config: Config, data: Path, text: str) -> Config:
    """A shipped config with tiny encoders, on tables in a folder."""
    settings: dict = {"training.epochs": 1, "training.device": "cpu", "training.precision": "fp32"}
    settings |= {"training.batch_size": 4, "data.workers": 0, "segmentation.channels": 8}
    for name, entry in config.inputs.items():
        at = f"inputs.{name}"
        settings[f"{at}.encoder.weights"] = text if entry.kind == "text" else None
        settings[f"{at}.encoder.architecture"] = {"image": SWIN, "video": VIT, "audio": WAVES}.get(entry.kind)
        if entry.kind in ("image", "video"):
            side = 64 if entry.kind == "image" else 32
            settings |= {f"{at}.size": side, f"{at}.resize": 72 if entry.resize else None}
        if entry.kind == "text":
            settings[f"{at}.max_length"] = 16
    for split in ("train", "validation", "test"):
        if (table := getattr(config.data, split)) is not None:
            settings[f"data.{split}"] = str(data / Path(*Path(table).parts[2:]))
    if config.data.validation is None:
        settings["data.validation_share"] = 0.3
    return config.with_settings(settings)


def on_miniature(tmp_path: Path, file: str, name: str | None, text: str, **changes) -> Study:
    """A shipped study on the tables in `data`, over tiny encoders, with two of its rows and one seed."""
    shipped = STUDIES / f"{file}.yaml"
    study = Study.load(shipped, data_set=name)
    (tmp_path / "base.yaml").write_text(tiny(Config.load(study.base), tmp_path / "data", text).dump())
    study.base, study.output, study.tuned = str(tmp_path / "base.yaml"), str(tmp_path / "study"), None
    study.seeds = [0]
    wanted = changes.pop("rows", ["MoPE", "P-SeqFuse"])
    study.rows = [row for row in study.rows if row.label in wanted]
    study.reference = wanted[-1]
    for key, value in changes.items():
        setattr(study, key, value)
    return study


CASES = {
    ("table1", None): ("snli-ve", {"more": 8}, {}),
    ("table1", "food101"): ("food101", {"more": 12}, {}),
    ("table1", "mm-imdb"): ("mm-imdb", {"more": 12}, {}),
    ("table1", "mustard-audio-independent"): ("mustard", {"clip": film()}, {}),
    ("table1", "mustard-video"): ("mustard", {"clip": film()}, {"folds": ["fold0", "fold3"]}),
    ("table2", None): ("refcoco", {"more": 4}, {}),
    ("table2", "refcoco+"): ("refcoco+", {"more": 4}, {"rows": ["MoPE"]}),
    ("table5", "refcoco"): ("refcoco", {"more": 4}, {"rows": ["k=4, top 1", "k=4, soft"]}),
    ("fig6", "mm-imdb"): ("mm-imdb", {"more": 12}, {"sizes": [8, None], "rows": ["P-SeqFuse"]}),
    ("directions", "mustard-video"): (
        "mustard",
        {"clip": film()},
        {"folds": ["fold0"], "rows": ["video guided by the others", "each guided by the others"]},
    ),
    ("gallery", None): ("vqav2", {}, {"rows": ["MoPE-k16"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("file", "name"), CASES, ids=[f"{file}-{name}" for file, name in CASES])
def test_a_data_set_s_table_from_its_published_files(file, name, tmp_path, weights, monkeypatch):
    monkeypatch.setattr("mope.datasets.food.VALIDATION", 3)
    monkeypatch.setattr("mope.studies.compare.make_runner", lambda *_: _Here())
    data_set, size, changes = CASES[file, name]
    MINIATURES[data_set](tmp_path / "raw", **size)
    prepare(data_set, tmp_path / "raw", tmp_path / "data", lambda line: None)
    study = on_miniature(tmp_path, file, name, weights["text"], **changes)
    compare(study, report=lambda line: None)
    table = json.loads((tmp_path / "study" / "table.json").read_text())
    assert len(table["rows"]) == len(study.rows) * len(study.sizes or [None])
    assert table["metrics"] == columns_of(study, "accuracy")
    for row in table["rows"]:
        for value in row["values"].values():
            assert 0 <= value["mean"] <= 1
            assert len(value["by_seed"]) == len(study.folds or [None])
    header, lines = cells_of(study, table)
    for row, line in zip(study.rows, lines, strict=False):
        assert {str(value) for value in row.paper.values()} <= set(line)
    assert len(header) == len(lines[0])
    for page in (tmp_path / "study").glob("*/*/explain/numbers.json"):
        assert len(json.loads(page.read_text())["experts"]["importance"][-1]) == 16
    assert bool(list((tmp_path / "study").glob("*/*/explain/report.html"))) == (study.page is not None)
