"""Published data sets: from the files as their authors publish them to a table per split."""

from mope.data.published.base import PUBLISHED, Published, prepare
from mope.data.published.boxes import Nlvr
from mope.data.published.entailment import SnliVe
from mope.data.published.food import Food101
from mope.data.published.movies import MmImdb
from mope.data.published.questions import VqaV2
from mope.data.published.referring import RefCoco
from mope.data.published.sarcasm import Mustard

for dataset in (
    Food101(),
    MmImdb(),
    SnliVe(),
    Mustard(),
    RefCoco("refcoco"),
    RefCoco("refcoco+"),
    VqaV2(),
    Nlvr(),
):
    PUBLISHED[dataset.name] = dataset

__all__ = ["PUBLISHED", "Published", "prepare"]
