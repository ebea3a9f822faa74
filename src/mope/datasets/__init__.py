"""Published data sets: from the files as their authors publish them to a table per split."""

from mope.datasets.apps import DebianApps
from mope.datasets.base import PUBLISHED, Published, prepare
from mope.datasets.boxes import Nlvr
from mope.datasets.entailment import SnliVe
from mope.datasets.food import Food101
from mope.datasets.movies import MmImdb
from mope.datasets.questions import VqaV2
from mope.datasets.referring import RefCoco
from mope.datasets.sarcasm import Mustard

for dataset in (
    Food101(),
    MmImdb(),
    SnliVe(),
    Mustard(),
    RefCoco("refcoco"),
    RefCoco("refcoco+"),
    VqaV2(),
    Nlvr(),
    DebianApps(),
):
    PUBLISHED[dataset.name] = dataset

__all__ = ["PUBLISHED", "Published", "prepare"]
