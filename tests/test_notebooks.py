"""Notebooks and examples run as they stand."""

import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda file: file.stem)
def test_notebooks(file, tmp_path):
    notebook = nbformat.read(file, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*.py")), ids=lambda file: file.stem)
def test_examples(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(file), run_name="__main__")
    said = capsys.readouterr().out
    assert {"shop": "label", "compare": "to LateConcat"}[file.stem] in said
