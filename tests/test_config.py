"""Settings: what is wrong is said in one sentence, with the key that was meant."""

from pathlib import Path

import pytest
import yaml

from mope.config import Config, fields
from mope.errors import UserError
from mope.media.video import FRAMES

IMAGE = {"kind": "image", "column": "photo", "encoder": {"weights": "package:dinov2-small"}}
GOOD = {"inputs": {"image": IMAGE}, "fusion": {"method": "unimodal", "main": "image"}}


def write(folder: Path, settings: dict) -> Path:
    file = folder / "configs" / "run.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusionn": {}}, "no setting 'fusionn'; did you mean 'fusion'"),
        ({"fusion": {"main": "image", "expert": 4}}, "no setting 'fusion.expert'; did you mean 'experts'"),
        (
            {"fusion": {"main": "image", "method": "concat", "experts": 4}},
            r"fusion.method concat has no setting 'experts' \(it is for sequential, mutual\): leave it out",
        ),
        (
            {"fusion": {"main": "image", "method": "pmf", "length": 0}},
            "'fusion.length' is 0: input should be greater than 0",
        ),
        (
            {"fusion": {"main": "image", "method": "concatenate", "length": 6}},
            "no fusion.method 'concatenate' with a setting 'length': take one of sequential, unimodal",
        ),
        ({"fusion": "concat"}, "'fusion' is 'concat'"),
        ({"fusion": {"method": "concat"}}, "'fusion.main' is missing"),
        ({"fusion": {"main": "text"}}, "fusion.main names no input: it is 'text', inputs are image"),
        ({"fusion": {"main": "image", "experts": 2, "top": 3}}, r"fusion.top \(3\) is more than"),
        ({"training": {"epochs": "many"}}, "'training.epochs' is 'many': input should be a valid number"),
        ({"training": {"epochs": 0}}, "'training.epochs' is 0: input should be greater than 0"),
        ({"task": "captioning"}, "'task' is 'captioning': input should be 'classification'"),
        ({"inputs": {}}, "'inputs' is {}"),
        ({"inputs": {"image": {**IMAGE, "colum": "x"}}}, "'inputs.image.colum'; did you mean 'column'"),
        ({"inputs": {"image": {"kind": "image", "encoder": {}}}}, "'inputs.image.column' is missing"),
        ({"inputs": {"a b": IMAGE}, "fusion": {"main": "a b"}}, "an input's name is letters"),
        ({"data": {"class_weights": "fair"}}, "'data.class_weights' is 'fair'"),
    ],
)
def test_a_wrong_setting_gets_a_sentence(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        Config.load(write(tmp_path, {**GOOD, **change}))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_config(tmp_path):
    with pytest.raises(UserError, match="Can't read the config"):
        Config.load(tmp_path / "none.yaml")
    file = tmp_path / "broken.yaml"
    file.write_text("a: [1")
    with pytest.raises(UserError, match="isn't YAML"):
        Config.load(file)
    file.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="no mapping"):
        Config.load(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="isn't YAML"):
        Config.load(file)


def test_paths_in_a_file_are_relative_to_it_and_typed_ones_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = {"weights": "./encoder"}
    settings = {
        **GOOD,
        "inputs": {"image": {**IMAGE, "encoder": encoder}},
        "data": {"train": "../data/train.csv"},
        "output": "../runs/x",
    }
    config = Config.load(write(tmp_path, settings), [("data.validation", "v.csv"), ("fusion.dropout", "0.3")])
    assert Path(config.data.train).resolve() == tmp_path / "data" / "train.csv"
    assert Path(config.inputs["image"].encoder.weights).resolve() == tmp_path / "configs" / "encoder"
    assert Path(config.output).resolve() == tmp_path / "runs" / "x"
    assert config.data.validation == "v.csv"
    assert config.fusion.dropout == 0.3
    hub = Config.load(
        write(tmp_path, {**GOOD, "inputs": {"image": {**IMAGE, "encoder": {"weights": "a/b"}}}})
    )
    assert hub.inputs["image"].encoder.weights == "a/b"


def test_overrides_reach_inputs_and_are_checked(tmp_path):
    file = write(tmp_path, GOOD)
    assert Config.load(file, [("inputs.image.size", "98")]).inputs["image"].size == 98
    with pytest.raises(UserError, match=r"no setting 'training.lr'"):
        Config.load(file, [("training.lr", "1")])
    for text in (",", "|", "a #1", "*b", "@", "2019", ""):
        assert Config.load(file, [("data.separator", text)]).data.separator == text
        assert Config.load(file, [("inputs.image.column", text)]).inputs["image"].column == text
    assert Config.load(file, [("data.split_column", "null")]).data.split_column is None
    assert Config.load(file, [("data.labels", "[a, 2]")]).data.labels == ["a", "2"]
    with pytest.raises(UserError, match="'task' is no section"):
        Config.load(file, [("task", "regression"), ("task.name", "x")])


def test_labels_are_text_as_in_a_csv_file():
    config = Config.parse({**GOOD, "data": {"labels": [1, True, "no"]}})
    assert config.data.labels == ["1", "true", "no"]


def test_weights_are_by_labels_as_in_a_csv_file(tmp_path):
    file = write(tmp_path, {**GOOD, "data": {"class_weights": {0: 1, True: 5, "no": 2}}})
    assert Config.load(file).data.class_weights == {"0": 1, "true": 5, "no": 2}
    typed = Config.load(file, [("data.class_weights", "{0: 1, 1: 5}")])
    assert typed.data.class_weights == {"0": 1, "1": 5}


def test_a_dump_is_the_same_config_again():
    config = Config.parse(GOOD)
    assert Config.parse(yaml.safe_load(config.dump())) == config


def test_every_setting_has_a_doc_line():
    settings = list(fields())
    assert len(settings) > 40
    assert all(setting.text for setting in settings)
    keys = [setting.key for setting in settings]
    assert "inputs.NAME.encoder.tuning" in keys
    assert [key for key in keys if key == "fusion.method"] == ["fusion.method"]
    methods = {s.method: [other.key for other in settings if other.method == s.method] for s in settings}
    assert methods["sequential"][:2] == ["fusion.prompts", "fusion.length"]
    assert methods["pmf"] == ["fusion.length", "fusion.exchange_layers"]
    assert methods["NAME"] == ["fusion.options"]


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_configs_load(file):
    config = Config.load(file)
    assert config.fusion.main in config.inputs


# What the paper's text says of each data set (sections IV-A and IV-B, appendices A and B).
PAPER = {
    "fusion.main": "image",
    "fusion.length": 6,
    "fusion.experts": 4,
    "fusion.cross_dim": 8,
    "fusion.intra_dim": 2,
    "fusion.temperature": 0.1,
    "fusion.keys": "orthogonal",
    "fusion.dropout": 0.1,
    "fusion.importance_weight": 0.01,
    "fusion.importance_threshold": 0.1,
    "training.learning_rate": 4e-4,
    "training.complementary_learning_rate": 5e-4,
    "training.epochs": 10,
    "training.metric": None,
}
SWIN, BERT, WAV2VEC2 = "microsoft/swin-base-patch4", "google-bert/bert-base-uncased", "facebook/wav2vec2-base"
# Appendix B: of all pictures but RefCOCO's and RefCOCO+'s, which are seen at 384 x 384 (section IV-B).
PICTURES = {
    "inputs.image.encoder.weights": SWIN,
    "inputs.image.resize": 256,
    "inputs.image.size": 224,
    "inputs.image.augment": "randaugment",
}
WHOLE_PICTURES = PICTURES | {
    "inputs.image.resize": None,
    "inputs.image.size": 384,
    "inputs.image.augment": "none",
}
SPOKEN = {
    "fusion.main": "text",
    "inputs.audio.encoder.weights": WAV2VEC2,
    "inputs.audio.denoise": True,
    "inputs.text.column": "utterance",
    "training.metric": "precision_weighted",
}
APPENDIX = {
    "snli_ve_swin": PAPER | PICTURES | {"inputs.text.column": "hypothesis"},
    "food101_swin": PAPER | PICTURES | {"inputs.text.column": "text"},
    "mm_imdb_swin": PAPER
    | PICTURES
    | {"inputs.text.column": "text", "task": "multilabel", "training.metric": "f1_macro"},
    "vqav2_swin": PAPER | PICTURES | {"fusion.experts": 16},
    "refcoco_swin": PAPER | WHOLE_PICTURES | {"task": "referring-segmentation"},
    "refcoco_plus_swin": PAPER | WHOLE_PICTURES | {"task": "referring-segmentation"},
    "mustard_audio": PAPER | SPOKEN,
    "mustard_video": PAPER
    | SPOKEN
    | {
        "inputs.video.encoder.weights": "google/vit-base-patch16-224",
        "inputs.video.size": 224,
    },
}
APPENDIX["mustard_video"] = APPENDIX["mustard_audio"] | {
    "inputs.video.encoder.architecture": {
        "model_type": "vit",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "inputs.video.encoder.prompt_length": 4,
    "inputs.video.size": 224,
}


@pytest.mark.parametrize("name", APPENDIX)
def test_shipped_configs_have_the_settings_of_the_paper(name):
    config = Config.load(f"configs/{name}.yaml")
    for key, value in APPENDIX[name].items():
        found = config
        for part in key.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        if key.endswith("weights"):
            assert found.startswith(value), key
        else:
            assert found == value, key
    tuned = {name: entry.encoder.tuning for name, entry in config.inputs.items()}
    assert tuned.pop(config.fusion.main) == "frozen"
    assert set(tuned.values()) == {"prompt"}
    assert {config.inputs[name].encoder.prompt_length for name in tuned} == {4}
    texts = [entry.encoder.weights for entry in config.inputs.values() if entry.kind == "text"]
    assert texts == [BERT]
    assert FRAMES == 8
    assert "# Appendix B: " in Path(f"configs/{name}.yaml").read_text()


def test_every_config_over_the_paper_s_encoders_is_held_against_the_paper():
    there = {file.stem for file in Path("configs").glob("*.yaml") if BERT in file.read_text()}
    assert there == set(APPENDIX)
