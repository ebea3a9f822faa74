"""`mope init`: a config and a study to begin with."""

import argparse
from pathlib import Path
from typing import Any

from mope.cli.output import add_verb
from mope.errors import UserError

_CONFIG = """\
# A picture and a text beside it: change the names of tables and columns.
# `mope train --settings` lists every setting.
task: classification          # or multilabel, regression, referring-segmentation
inputs:
  image:
    kind: image
    column: photo
    encoder: {weights: package:dinov2-small}
  text:
    kind: text
    column: title
    encoder: {weights: package:minilm-l6, tuning: prompt, pooling: cls}
  # facts:                    # numbers, categories and dates; what they hold is seen in the training rows
  #   kind: table
  #   columns: [price, brand]
fusion:
  main: image                 # the others guide how it is seen
  experts: 4
data:
  train: products.csv         # a tenth is held out, unless `validation` names a table
  label: category
training:
  epochs: 8
  batch_size: 8
  learning_rate: 1.0e-3
  complementary_learning_rate: 1.0e-3
output: runs/products
"""

_STUDY = """\
# What wins on this table? `mope compare study.yaml`; `mope compare --list` shows every method.
title: Methods on our table
about: The same rows, epochs and seeds for each.
base: config.yaml
output: runs/study
reference: Probe
seeds: [0, 1, 2]
rows:
  - {method: Probe}
  - {method: LateConcat}
  - {method: P-SeqFuse}
  - {method: MoPE-clusters}
"""


def add(verbs: Any) -> None:
    """Add the command."""
    verb = add_verb(verbs, "init", init, "write a config and a study to begin with")
    verb.add_argument("folder", metavar="FOLDER", nargs="?", default=".", help="where; the current one")


def init(options: argparse.Namespace) -> None:
    """`mope init [FOLDER]`."""
    folder = Path(options.folder)
    files = {folder / "config.yaml": _CONFIG, folder / "study.yaml": _STUDY}
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there already: name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        file.write_text(content, encoding="utf-8")
    print(f"Written: {', '.join(map(str, files))}. Next: mope train {folder / 'config.yaml'}")
