"""Runs on the hub, which is a folder here."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from run_tester import quiet

from mope import Predictor, UserError, train
from mope.cli import main
from mope.run import DIGEST, read_run
from mope.weights import read_weights


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Where repositories are."""
    root = tmp_path / "hub"

    def create_repo(self, repo_id, private, exist_ok):
        (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        (root / repo_id / ".private").write_text(str(private))
        return f"https://hub/{repo_id}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def snapshot_download(repo_id, revision, allow_patterns):
        if not (root / repo_id).exists():
            import httpx

            answer = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
            raise RepositoryNotFoundError("none", response=answer)
        return str(root / repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def test_a_run_goes_there_and_comes_back(config, hub, tables, capsys):
    train(config, report=quiet)
    assert Predictor(config.output).push_to_hub("me/colours") == "https://hub/me/colours"
    again = Predictor("hub:me/colours")
    one, other = (p.predict(tables / "test.csv") for p in (Predictor(config.output), again))
    assert [row.probabilities for row in one] == [row.probabilities for row in other]
    assert (hub / "me/colours/.private").read_text() == "True"
    kept, known = read_run(hub / "me/colours")
    assert read_weights(hub / "me/colours/model.safetensors", known[DIGEST])
    assert kept.data.train is kept.data.test is None
    assert again.settings.data.trusted is False
    assert again.predict({"picture": "/etc/hosts", "question": "what is left ?"})[0].label is None
    (hub / "me/evil").mkdir()
    for file in (hub / "me/colours").iterdir():
        shutil.copy(file, hub / "me/evil")
    text = (hub / "me/evil/config.yaml").read_text().replace("test: null", "test: /etc/passwd.csv")
    (hub / "me/evil/config.yaml").write_text(text)
    assert Predictor("hub:me/evil").settings.data.test is None
    assert str(tables) not in (hub / "me/colours/config.yaml").read_text()
    assert {file.name for file in (hub / "me/colours").iterdir()} == {
        ".private",
        "README.md",
        "config.yaml",
        "metrics.json",
        "model.safetensors",
    }
    assert main(["push", config.output, "me/open", "--public"]) == 0
    assert "https://hub/me/open" in capsys.readouterr().out
    assert (hub / "me/open/.private").read_text() == "False"


def test_what_is_not_there_is_said(config, hub, tmp_path):
    with pytest.raises(UserError, match="The hub has no repository me/nothing"):
        Predictor("hub:me/nothing")
    train(config, report=quiet)
    predictor = Predictor(config.output)
    with pytest.raises(UserError, match="OWNER/NAME"):
        predictor.push_to_hub("colours")
    assert main(["push", str(tmp_path / "none"), "me/x"]) == 2
