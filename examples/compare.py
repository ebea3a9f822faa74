"""Does fusing pay on a table? Three methods beside the linear probe, two seeds each, with intervals."""

from pathlib import Path

import mope
from mope.scenes.shop import build_shop
from mope.studies.compare import compare
from mope.studies.study import Study

STUDY = """
title: The shop
about: One epoch.
base: config.yaml
output: study
reference: LateConcat
seeds: [0, 1]
rows: [{method: LateConcat}, {method: P-SeqFuse}, {method: MoPE-clusters}]
"""

if __name__ == "__main__":
    build_shop("shop", train=160, test=40)
    settings = {"data.test": "shop/test.csv", "data.workers": 0, "training.epochs": 1}
    plan = mope.plan("shop/train.csv", "department", preset="fast", settings=settings, measure=False)
    plan.save("config.yaml")
    Path("study.yaml").write_text(STUDY)
    compare(Study.load("study.yaml"))
    print(Path("study/table.md").read_text())
