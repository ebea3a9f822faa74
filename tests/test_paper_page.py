"""The page on the paper leaves nothing out, and what it names is there."""

import re
import shlex
from pathlib import Path

import pytest

from mope.cli import build_parser
from mope.config import Config
from mope.datasets import PUBLISHED
from mope.methods import find_method
from mope.studies.study import Study

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text()
FIRST_CELLS = [line.split("|")[1].strip() for line in PAGE.splitlines() if line.startswith("| ")]
COMMANDS = sorted(set(re.findall(r"`(mope [a-z][^`]*)`", PAGE)))
FILES = sorted(set(re.findall(r"`((?:src|tests|configs|docs)/[^`]*)`", PAGE)))
TABLES = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
DATA_SETS = ("UPMC Food-101", "MM-IMDB", "SNLI-VE", "MUStARD", "RefCOCO", "RefCOCO+", "VQAv2")
ENCODERS = ("Swin-B, 224", "Swin-B, 384", "ViT", "BERT-base-uncased", "wav2vec 2.0", "PANNs", "video: ViT")
PREPARED = ("snli-ve", "food101", "mm-imdb", "mustard", "refcoco", "refcoco+", "vqav2")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_page_can_be_given(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)[1:]
    options, rest = build_parser().parse_known_args(words)
    assert not rest
    if options.verb == "reproduce":
        options.study = f"configs/studies/{options.study}.yaml"
    if getattr(options, "study", None):
        study = Study.load(options.study, options.quick, options.data_set)
        assert Config.load(study.base).inputs
        assert all(row.method is None or find_method(row.method) for row in study.rows)
    if options.verb == "params":
        Config.load(options.config)
    if options.verb == "data" and options.name is not None:
        assert options.name in PUBLISHED


@pytest.mark.parametrize("file", FILES)
def test_each_file_of_the_page_is_there(file):
    assert (ROOT / file).exists()


def test_each_link_of_the_page_leads_to_a_heading():
    links = re.findall(r"\]\(([a-z]*\.md)?(?:#([^)]*))?\)", PAGE)
    assert len(links) > 10
    for name, anchor in links:
        text = (ROOT / "docs" / name).read_text() if name else PAGE
        titles = [line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("#")]
        slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title)) for title in titles}
        assert not anchor or anchor in slugs, (name, anchor)


def test_no_piece_of_the_paper_is_missing():
    named = re.split(r",\s|\s*\|\s*", " | ".join(FIRST_CELLS))
    assert {f"Tab. {number}" for number in TABLES} <= set(named)
    assert {f"Fig. {number}" for number in range(1, 14)} <= set(named)
    assert set(DATA_SETS) <= set(FIRST_CELLS)
    assert all(any(cell.startswith(encoder) for cell in FIRST_CELLS) for encoder in ENCODERS)
    assert {"Theorem 1", "Theorem 2", *(f"Appendix {letter}" for letter in "ABCDE")} <= set(named)
    assert {"linear head", "UperNet head", "Eq. 3", "Eq. 4"} <= set(named)


def test_each_data_set_of_a_study_is_on_the_page():
    given = {tuple(command.split()) for command in COMMANDS}
    for file in sorted((ROOT / "configs" / "studies").glob("*.yaml")):
        if not re.fullmatch(r"(table\d|fig\d|gallery)(_video)?", file.stem):
            continue
        study = Study.load(file)
        for words in ((), *(("--set", name) for name in study.sets if "independent" not in name)):
            assert ("mope", "compare", f"configs/studies/{file.name}", *words) in given
    for name in PREPARED:
        assert any(command.startswith(f"mope data prepare {name} ") for command in COMMANDS)
