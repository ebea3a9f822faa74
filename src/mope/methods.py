"""Fusion methods by name: the rows of the paper's tables, and whatever users register beside them.

A method is a fusion and settings of it, over any config: encoders, data and budget stay the config's. So a
prompted twin is the same class with other settings.
"""

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mope.config import Config, only_own
from mope.errors import UserError
from mope.fusion import FUSIONS, Fusion

MAIN, OTHERS = "main", "others"


@dataclass(frozen=True)
class Method:
    """A named fusion method.

    Attributes:
        name: as in tables.
        fusion: its class's name in `FUSIONS`.
        settings: by dotted key of the config; `main.KEY` and `others.KEY` are of the encoders of the main and
            the other inputs.
        trained: what is trained, in words.
        source: where it is from.
        main_kind: kind that the main input must be of: the config's, or the first of that kind; None for any.
        param: the paper's count of trained parameters in millions, with Swin-B and BERT-base; None where it
            gives none.
        note: why ours differs from it, where it does.
    """

    name: str
    fusion: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained: str = ""
    source: str = ""
    main_kind: str | None = None
    param: float | None = None
    note: str = ""

    def apply(self, config: Config) -> Config:
        """The config with this method in the place of its own.

        Raises:
            UserError: the config has no input of the kind that the method's main input must be.
        """
        settings = config.model_dump()
        settings["fusion"]["method"] = self.fusion
        if self.main_kind is not None:
            kinds = {name: values["kind"] for name, values in settings["inputs"].items()}
            fitting = [name for name, kind in kinds.items() if kind == self.main_kind]
            if not fitting:
                raise UserError(f"{self.name} needs an input of kind {self.main_kind}: there is none.")
            if settings["fusion"]["main"] not in fitting:
                settings["fusion"]["main"] = fitting[0]
        main = settings["fusion"]["main"]
        for key, value in self.settings.items():
            part, _, rest = key.partition(".")
            if part in (MAIN, OTHERS):
                for name, entry in settings["inputs"].items():
                    # A table's encoder has nothing to be frozen or prompted.
                    if (name == main) == (part == MAIN) and entry["kind"] != "table":
                        entry["encoder"][rest] = value
            else:
                section = settings[part]
                section[rest] = value
        # What another method has means nothing to this one.
        settings["fusion"] = only_own(settings["fusion"])
        return Config.parse(settings, f"the method {self.name}")


METHODS: dict[str, Method] = {}
"""By name, in the order of the tables."""


def register_method(
    name: str,
    fusion: str | type[Fusion],
    settings: Mapping[str, Any] | None = None,
    *,
    trained: str = "",
    source: str = "",
    main_kind: str | None = None,
    param: float | None = None,
    note: str = "",
) -> Method:
    """Let a method join `mope train --method`, `mope compare` and `mope compare --list`.

    Args:
        name: as in tables.
        fusion: a subclass of `Fusion`, or the name of one that is there.
        settings, trained, source, main_kind, param, note: see `Method`.

    Raises:
        UserError: the name is taken, or there is no such fusion.
    """
    if name in METHODS:
        raise UserError(f"There is a method '{name}' already: register it under another name.")
    if not isinstance(fusion, str):
        FUSIONS[name] = fusion
        fusion = name
    if fusion not in FUSIONS:
        raise UserError(f"There is no fusion '{fusion}': take one of {', '.join(FUSIONS)}, or give a class.")
    METHODS[name] = Method(name, fusion, dict(settings or {}), trained, source, main_kind, param, note)
    return METHODS[name]


def find_method(name: str) -> Method:
    """A method by name, in any case.

    Raises:
        UserError: there is none; with the nearest name.
    """
    by_case = {known.lower(): method for known, method in METHODS.items()}
    if name.lower() in by_case:
        return by_case[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_case, n=1, cutoff=0.5)
    hint = f"did you mean '{by_case[near[0]].name}'?" if near else "see `mope compare --list`."
    raise UserError(f"There is no method '{name}'; {hint}")


def load_plugin(file: str | Path) -> None:
    """Run a user's own Python file, which registers methods.

    Raises:
        UserError: there is no such file, or it can't be run.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"There is no plugin {path}.")
    spec = importlib.util.spec_from_file_location(f"mope_plugin_{path.stem}", path)
    assert spec is not None
    if spec.loader is None:
        raise UserError(f"The plugin {path} isn't a Python file: its name must end in .py.")
    before = dict(METHODS)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except UserError:
        raise
    except Exception as error:  # whatever a user's file does
        raise UserError(f"The plugin {path} can't be run: {type(error).__name__}: {error}") from error
    if before == METHODS:
        raise UserError(f"The plugin {path} registers no method: let it call mope.register_method.")


_FULL = {"main.tuning": "full", "others.tuning": "full"}
_FROZEN = {"main.tuning": "frozen", "others.tuning": "frozen"}
_PROMPT = {"tuning": "prompt", "prompt_length": 6}
_MAPPED = {"others.tuning": "prompt", "others.prompt_length": 4}
_PARTS_OF_MOPE = {
    "main.tuning": "frozen",
    **_MAPPED,
    "fusion.prompts": ["static", "dynamic", "mapped"],
    "fusion.top": None,
    "fusion.expert_dropout": 0.0,
}
_MOPE = {
    **_PARTS_OF_MOPE,
    "fusion.joining": "beside",
    "fusion.standardise": False,
    "fusion.similarity": "dot",
    "fusion.keys": "orthogonal",
    "training.router_factor": 1.0,
}
_CLUSTERED = {
    **_PARTS_OF_MOPE,
    "fusion.joining": "beside",
    "fusion.standardise": True,
    "fusion.similarity": "cosine",
    "fusion.temperature": 0.2,
    "fusion.keys": "clusters",
    "training.router_factor": 0.1,
}
_PLAIN = {
    "fusion.input_from": "feature",
    "fusion.input_tokens": 1,
    "fusion.deep": False,
    "fusion.blind": False,
}
_INPUT = {**_FROZEN, **_PLAIN, "fusion.length": 6}


def _both(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part}.{key}": value for part in (MAIN, OTHERS) for key, value in settings.items()}


_IV_C, _SECOND_PROMPTS = "section IV-C", {f"others.{key}": value for key, value in _PROMPT.items()}
_MMBT = {**_PLAIN, "fusion.input_from": "tokens", "fusion.deep": True}
_FROZEN_LM = {
    **_PLAIN,
    "main.tuning": "frozen",
    "others.tuning": "full",
    "fusion.input_tokens": 2,
    "fusion.length": 0,
}
_PROJECTED = (
    "98,432 of its parameters map the text's 768 features to the 128 of Swin's first layer, which encoders "
    "of one width don't need."
)
_PARTS = "static prompt, experts, routers, mapper, deep prompts (l'=4)"


def _pair(word: str, kind: str, param: float) -> tuple[Method, Method]:
    """One encoder alone, and its prompted twin."""
    full = {"main.tuning": "full"}
    prompt = {f"main.{key}": value for key, value in _PROMPT.items()}
    return (
        Method(word, "unimodal", full, "the encoder", _IV_C, kind, param),
        Method(f"P-{word}", "unimodal", prompt, "deep prompts (l=6)", _IV_C, kind, 0.1),
    )


def _other(name: str, tuning: str, param: float, note: str = "") -> Method:
    """Another parameter-efficient method in the place of static and dynamic prompts (Tab. IX)."""
    settings = {"main.tuning": tuning, "others.tuning": tuning, "fusion.prompts": ["mapped"]}
    trained = f"{name} in both encoders, mapper"
    return Method(f"{name} + P_m", "sequential", settings, trained, "section V-H, Tab. IX", None, param, note)


_PAPER = (
    Method(
        "Probe",
        "concat",
        {**_FROZEN, "training.solver": "lbfgs"},
        "a linear head on frozen features, by L-BFGS (logistic regression)",
        "what any other row has to beat",
    ),
    *_pair("ImgOnly", "image", 86.9),
    *_pair("TextOnly", "text", 109.0),
    Method("LateConcat", "concat", _FULL, "both encoders", _IV_C, None, 196.0),
    Method(
        "P-LateConcat",
        "concat",
        _both(_PROMPT),
        "deep prompts (l=6) of both",
        _IV_C,
        None,
        1.3,
        "Prompts of both encoders and a linear head over 1,792 features are 0.13 M; the paper's 1.3 M leave "
        "room for a hidden layer of about 650 in the head, which its text doesn't have.",
    ),
    Method(
        "SeqFuse",
        "sequential",
        {**_FULL, "fusion.prompts": ["mapped"]},
        "both encoders, mapper",
        _IV_C,
        None,
        197.0,
    ),
    Method(
        "P-SeqFuse",
        "sequential",
        {**_MOPE, "fusion.prompts": ["static", "mapped"]},
        "static prompt, mapper, deep prompts (l'=4)",
        _IV_C,
        None,
        1.1,
    ),
    Method(
        "MMBT",
        "inputs",
        {**_FULL, **_MMBT, "fusion.length": 0},
        "both encoders, projection",
        "arXiv 1909.02950",
        "text",
        196.5,
    ),
    Method(
        "P-MMBT",
        "inputs",
        {
            **_MMBT,
            "main.tuning": "frozen",
            **_SECOND_PROMPTS,
            "fusion.length": 6,
        },
        "projection, deep prompts (l=6) of both",
        "arXiv 1909.02950",
        "text",
        0.9,
    ),
    Method(
        "PromptFuse",
        "inputs",
        _INPUT,
        "a prompt (l=6) at the input, projection",
        "arXiv 2203.08055",
        None,
        0.1,
        _PROJECTED,
    ),
    Method(
        "BlindPrompt",
        "inputs",
        {**_INPUT, "fusion.blind": True},
        "a prompt (l=6) at the input, projection",
        "arXiv 2203.08055",
        None,
        0.1,
        f"{_PROJECTED} Swin's layers take no tokens, so over it this is PromptFuse.",
    ),
    Method(
        "PromptFuse-deep",
        "inputs",
        {**_INPUT, "fusion.deep": True},
        "deep prompts (l=6), projection",
        "arXiv 2203.08055, Tab. I's dagger",
        None,
        0.1,
        _PROJECTED,
    ),
    Method(
        "Frozen",
        "inputs",
        _FROZEN_LM,
        "the image encoder, projection",
        "arXiv 2106.13884",
        "text",
    ),
    Method(
        "PMF",
        "pmf",
        {**_FROZEN, "fusion.exchange_layers": 2},
        "query, context and fusion prompts, maps",
        "arXiv 2304.06306",
        None,
        2.5,
        "PMF needs plain transformers: counted with ViT-B and BERT-base, as its authors do.",
    ),
    Method("MoPE", "sequential", {**_MOPE, "fusion.experts": 4}, _PARTS, "section III", None, 1.6),
    Method("MoPE-k16", "sequential", {**_MOPE, "fusion.experts": 16}, _PARTS, "section III", None, 2.6),
    Method(
        "MoPE-clusters",
        "sequential",
        {**_CLUSTERED, "fusion.experts": 4},
        _PARTS,
        "docs/results.md; routers that begin with clusters of rows",
    ),
    Method(
        "MoPE-both",
        "mutual",
        {
            **{key: value for key, value in _MOPE.items() if key.startswith(("fusion.", "training."))},
            **_both({"tuning": "prompt", "prompt_length": 4}),
            "fusion.experts": 4,
        },
        f"of either input: {_PARTS}",
        "docs/studies.md; each input guided by the other, features side by side",
    ),
    _other("LoRA", "lora", 2.1),
    _other(
        "BitFit",
        "bitfit",
        1.9,
        "The biases of both encoders are 0.24 M and the mapper 1.03 M; the paper does not say what is in the "
        "rest of its 1.9 M.",
    ),
    _other(
        "AdaptFormer",
        "adaptformer",
        3.2,
        "Branches of width 64 in both encoders and the mapper; in the main encoder alone it is 2.6 M.",
    ),
)
"""The rows of Tab. I and IX; and beside them Probe, Frozen, MoPE-clusters and MoPE-both."""

METHODS.update({method.name: method for method in _PAPER})
