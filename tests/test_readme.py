"""What the README shows is what works."""

import re
import shutil
from pathlib import Path

from mope.data.table import open_table
from mope.fusion import FUSIONS
from mope.methods import METHODS, load_plugin
from mope.model import FusionModel
from mope.studies.study import Study, cells


def test_the_python_example_runs_on_a_table(weights, tables, tmp_path, monkeypatch, capsys):
    first, code = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    assert len(first.replace("\n\n", "\n").strip().splitlines()) == 5
    code = code.replace("package:dinov2-small", weights["image"]).replace(
        "package:minilm-l6", weights["text"]
    )
    code = code.replace('column="title"', 'column="title", max_length=16')
    assert len(code.strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    lines = ["photo,title,category"]
    for row in open_table(tables / "train.csv"):
        shutil.copy(tables / row["picture"], tmp_path / "photos")
        lines.append(f"photos/{row['picture']},{row['question']},{row['colour']}")
    (tmp_path / "products.csv").write_text("\n".join(lines))
    shutil.copy(tables / "train_0.png", tmp_path / "photos" / "new.jpg")
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out.strip().splitlines()
    assert "accuracy" in said[-2]
    assert said[-1] in ("red", "green", "blue")


def test_the_method_of_the_documentation_is_one(config, tmp_path):
    code = re.search(r"```python\n(.*?)```", Path("docs/studies.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "my_fusion.py").write_text(code)
    try:
        load_plugin(tmp_path / "my_fusion.py")
        model = FusionModel.build(METHODS["Product"].apply(config), ["a", "b"])
        assert model.fusion.feature_dim == 32
        assert model.parameter_groups()["main"]
    finally:
        METHODS.pop("Product")
        FUSIONS.pop("Product")


def test_the_study_of_the_documentation_can_be_read(config, tmp_path):
    text = re.search(r"```yaml\n(.*?)```", Path("docs/studies.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "studies").mkdir()
    (tmp_path / "demo.yaml").write_text(config.dump())
    (tmp_path / "studies" / "mine.yaml").write_text(text)
    assert len(cells(Study.load(tmp_path / "studies" / "mine.yaml"))) == 4 * 3 * 3 * 2
    assert len(cells(Study.load(tmp_path / "studies" / "mine.yaml", quick=True))) == 4 * 2
