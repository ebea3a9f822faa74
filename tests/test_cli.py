"""The command line, as a user calls it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mope.cli import main
from mope.config import Config
from mope.model import FusionModel

SWIN = "configs/snli_ve_swin.yaml"


@pytest.fixture
def config_file(config: Config, tmp_path: Path) -> str:
    (tmp_path / "config.yaml").write_text(config.dump())
    return str(tmp_path / "config.yaml")


def test_train_evaluate_predict(config_file, tables, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["train", config_file, "--training.epochs", "1", "--data.bad_rows=skip"]) == 0
    assert "epoch 1/1" in (said := capsys.readouterr().out)
    assert f"Next: mope evaluate {run}" in said
    assert main(["evaluate", run, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert 0 <= metrics["accuracy"] <= 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"] == metrics
    assert (
        main(["predict", run, str(tables / "test.csv"), "--out", str(tmp_path / "p.csv"), "--routing"]) == 0
    )
    assert "20 rows are in" in capsys.readouterr().out
    assert "routing_layer1_expert1" in (tmp_path / "p.csv").read_text().splitlines()[0]
    assert main(["predict", run, str(tables / "test.csv"), "--rows", "3", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)
    assert [set(p) for p in predictions] == [{"label", "probabilities", "error"}] * 3
    assert main(["predict", run, str(tables / "test.csv"), "--rows", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["row", "label", "probability"]
    assert (
        main(
            ["train", config_file, "--training.epochs", "1", "--data.bad_rows", "skip", "--resume", "--json"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["test"] == metrics


def test_rows_are_read_as_the_run_s_own(config, tables, tmp_path, capsys):
    """Its encoding, its trust and its folder, where no flag says otherwise."""
    folder = tmp_path / "moved"
    shutil.copytree(tables, folder)
    model = FusionModel.build(config.with_settings({"data.encoding": "utf-16"}), ["red", "green", "blue"])
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text("{}")
    table = folder / "test.csv"
    text = table.read_text()
    table.write_text(text, encoding="utf-16")
    for more in ([], ["--out", str(tmp_path / "p.csv")]):
        assert main(["predict", str(tmp_path / "run"), str(table), "--rows", "2", *more]) == 0
    table.write_text(text, encoding="utf-8")
    assert main(["predict", str(tmp_path / "run"), str(table), "--rows", "2", "--encoding", "utf-8"]) == 0
    settings = {"data.trusted": False, "data.test": str(table)}
    FusionModel.build(config.with_settings(settings), ["red", "green", "blue"]).save_pretrained(
        tmp_path / "run"
    )
    table.write_text(text.replace("test_0.png", "../tables/test_0.png"))
    capsys.readouterr()
    for more in ([], ["--out", str(tmp_path / "q.csv")]):
        main(["predict", str(tmp_path / "run"), str(table), "--rows", "2", *more])
        assert "leaves the table's folder" in "".join(capsys.readouterr())
    table.write_text(text)
    (folder / "elsewhere").mkdir()
    for picture in folder.glob("test_*.png"):
        picture.rename(folder / "elsewhere" / picture.name)
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "run" / "config.yaml")]) == 2
    assert "is no table this library reads" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert main(["evaluate", str(tmp_path / "run"), "--folder", str(folder / "elsewhere")]) == 0


def test_params_of_the_paper_s_main_setting(capsys):
    """Tab. I: 1.6 M for k=4, 2.5-2.6 M for k=16, over Swin-B and BERT-base, under 1 % of all."""
    assert main(["params", SWIN, "--json"]) == 0
    small = json.loads(capsys.readouterr().out)
    widths = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2
    experts = 6 * 4 * sum(widths)
    static, text = 6 * sum(widths), 12 * 4 * 768
    router = 24 * 8 * 768 + 2 * sum(widths)
    mapper = 768 * 384 + 384 + 2 * 384 + sum(384 * width + width for width in (128, 256, 512, 1024))
    assert small["trainable"] == experts + static + text + router + mapper + 1024 * 3 + 3
    assert 1.55e6 < small["trainable"] < 1.65e6
    assert small["share"] < 0.01
    assert small["trainable"] == sum(part["trainable"] for part in small["parts"].values())
    assert main(["params", SWIN, "--fusion.experts", "16", "--json"]) == 0
    assert 2.45e6 < json.loads(capsys.readouterr().out)["trainable"] < 2.65e6
    assert main(["params", SWIN]) == 0
    table = capsys.readouterr().out
    assert "1,607,683" in table
    assert "0.82% of all parameters are trained." in table


def test_params_reads_no_weights_and_agrees_with_the_trained_model(config, config_file, capsys):
    from mope.model import FusionModel

    assert main(["params", config_file, "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["parts"] == FusionModel.build(config, ["a", "b", "c"]).count_parameters()


def test_data_check(tables, config_file, tmp_path, capsys):
    assert (
        main(
            [
                "data",
                "check",
                str(tables / "test.csv"),
                "--image",
                "picture",
                "--text",
                "question",
                "--label",
                "colour",
            ]
        )
        == 0
    )
    assert "Every row can be used." in capsys.readouterr().out
    assert main(["data", "check", config_file]) == 0
    assert capsys.readouterr().out.count("rows; read picture (image), question (text), colour (label)") == 3
    (tmp_path / "bad.csv").write_text("photo,title,kind\nno.png,shoe,a\nno.png,,b\n")
    arguments = ["data", "check", str(tmp_path / "bad.csv"), "--label", "kind", "--labels", "a,c"]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert "1  photo  " in said.out
    assert "unknown label 'b' (known: a, c)" in said.out
    assert "2 of 2 rows can't be used" in said.err
    assert main([*arguments, "--json"]) == 2
    (report,) = json.loads(capsys.readouterr().out)
    assert report["bad_rows"] == 2
    assert report["columns"] == {"photo": "image", "title": "text", "kind": "label"}
    assert [p["row"] for p in report["problems"]] == [1, 2, 2, 2]


@pytest.mark.slow
def test_bench_prompts(capsys):
    arguments = ["bench", "prompts", "--model", "tiny", "--batch", "2", "--repeats", "1", "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    inference = result["inference"]
    assert inference["ratio"] == inference["prompted"] / inference["bare held"]
    assert inference["ratio_to_bare"] == inference["prompted"] / inference["bare"]
    assert inference["ratio_to_unprompted"] == inference["prompted"] / inference["unprompted"]
    assert list(result["routing"]) == ["4", "8", "16", "32", "64", "128", "4, clusters"]
    training = result["training"]
    assert training["time_ratio"] > 0
    assert training["time_interval"] is None  # of three turns
    assert all(memory > 1 for memory in training["peak_mebibytes"].values())
    assert (
        main(["bench", "prompts", "--model", "tiny", "--batch", "2", "--repeats", "1", "--no-training"]) == 0
    )
    assert "forward, prompted over bare, both with" in capsys.readouterr().out
    assert main([*arguments, "--experts", "1"]) == 2


def test_data_scenes(tmp_path, capsys):
    arguments = [
        "data",
        "scenes",
        str(tmp_path / "s"),
        "--train",
        "5",
        "--validation",
        "2",
        "--test",
        "3",
        "--size",
        "56",
    ]
    assert main(arguments) == 0
    assert "CC BY-SA 4.0" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["test"]["rows"] == 3
    assert main(["data", "check", str(tmp_path / "s" / "train.csv"), "--label", "answer"]) == 0
    assert main([*arguments, "--seed", "1"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "Can't read the config none.yaml"),
        (["train", "CONFIG", "--training.epoch", "1"], "no setting 'training.epoch'; did you mean 'epochs'"),
        (["train", "CONFIG", "--fusion.experts"], "--fusion.experts needs a value"),
        (["train", "CONFIG", "extra"], "What is 'extra' for?"),
        (["train", "CONFIG", "--data.label", "animal"], "no column 'animal'"),
        (["train", "CONFIG", "--data.train", "none.csv"], "There is no table none.csv"),
        (["train", "CONFIG", "--inputs.image.column", "photo"], "no column 'photo'"),
        (["evaluate", "nowhere"], "nowhere holds no finished run"),
        (["predict", "nowhere", "CONFIG"], "nowhere holds no finished run"),
        (["predict", "nowhere", "none.csv", "--out", "x.txt"], "Can't write x.txt"),
        (
            ["params", SWIN, "--data.labels", "null", "--data.train", "null"],
            "head's size depends on the labels",
        ),
        (["data", "check", "none.csv"], "There is no table none.csv"),
        (["data", "check", "CONFIG", "--label", "x"], "A config says which columns there are"),
        (["evaluate", "nowhere", "--fast"], "knows no option '--fast'"),
        (["dance"], "Argument COMMAND: invalid choice: 'dance'"),
        (["train"], "The following arguments are required: CONFIG; see `mope train --help`."),
        (["train", "CONFIG", "--training.epochs", "[a"], "--training.epochs can't be '[a'"),
        (["train", "CONFIG", "--data.label", "[a"], "no column '[a'"),
        (
            ["predict", "nowhere", str(SWIN), "--rows", "x"],
            "Argument --rows: invalid int value: 'x'",
        ),
        (["compare", "CONFIG"], "is a config, not a study"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence_and_exit_code_2(arguments, message, config_file, capsys):
    assert main([config_file if word == "CONFIG" else word for word in arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.startswith("mope: ")
    assert "\n" not in said


def test_help_needs_nothing_heavy():
    """`mope --help` is instant because it imports neither torch nor transformers."""
    code = (
        "import sys; from mope.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([n for n in ('torch', 'transformers', 'pydantic') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "predict a table's rows" in result.stdout


def test_every_setting_is_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--settings"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    assert "--fusion.experts" in listed
    assert "--inputs.NAME.encoder.tuning" in listed
    assert "One of frozen, prompt, full, lora, bitfit, adaptformer." in listed


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("mope ")


def test_the_public_names_are_there():
    import mope

    for name in mope.__all__:
        assert getattr(mope, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mope.nothing  # noqa: B018


def test_interrupting_says_so(config_file, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("mope.training.train", stop)
    assert main(["train", config_file]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_installed_script_runs():
    script = Path(sys.executable).parent / "mope"
    result = subprocess.run(
        [script, "data", "check", "none.csv"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == "mope: There is no table none.csv.\n"
