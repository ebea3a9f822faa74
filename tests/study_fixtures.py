"""A study over tiny encoders, which tests change as they need."""

from pathlib import Path

import pytest
import yaml

from mope.config import Config


@pytest.fixture
def study(config: Config, tmp_path: Path) -> Path:
    """A study over the tiny config: two methods, two seeds."""
    (tmp_path / "base.yaml").write_text(config.dump())
    content = {
        "title": "A tiny study",
        "base": "base.yaml",
        "output": "study",
        "settings": {"training.epochs": 1, "fusion.experts": 2},
        "seeds": [0, 1],
        "metrics": ["accuracy", "f1_macro"],
        "reference": "MoPE",
        "rows": [
            {"method": "MoPE", "paper": {"accuracy": 73.1}},
            {"method": "P-SeqFuse", "settings": {"training.epochs": 2}},
        ],
        "quick": {"seeds": [5], "settings": {"data.train_rows": 16}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


def change(file: Path, **changes) -> Path:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    return file
