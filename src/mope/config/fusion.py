"""The settings of each fusion method: a method refuses what another one has."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from mope.config.sections import Probability, Section


class _Fusion(Section):
    """What every method has."""

    main: str
    """The input that is encoded last, guided by the others; the only one of `unimodal`."""
    dropout: Probability = 0.1
    """Dropout on all prompts."""
    start: Literal["published", "quiet"] = "published"
    """How loud all prompts begin, in every encoder; quiet ones are hardly attended to at first."""


class GuidedConfig(_Fusion):
    """The prompts by which inputs guide the encoder of another (section III)."""

    prompts: list[Literal["static", "dynamic", "mapped"]] = Field(default=["static", "dynamic", "mapped"])
    """Which prompts a guided encoder gets (Eq. 2)."""
    length: PositiveInt = 6
    """Prompt length l, of the static prompt and of each expert."""
    experts: Annotated[int, Field(ge=0)] = 4
    """Experts k per layer; 1 is one vanilla prompt, 0 none."""
    cross_dim: Annotated[int, Field(ge=0)] = 8
    """Width d_c of the cross-modal routing embedding."""
    intra_dim: Annotated[int, Field(ge=0)] = 2
    """Width d_i of the intra-modal routing embedding."""
    joining: Literal["beside", "added"] = "beside"
    """Whether the dynamic prompt stands beside the static one (Eq. 2), or is added to it, from zero."""
    standardise: bool = True
    """Route by features that are standardised over rows; false as published."""
    similarity: Literal["dot", "cosine"] = "cosine"
    """Of a row and an expert's key; dot as published."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Routing temperature tau; null for 0.2 with cosine, and 0.1, as published, with dot."""
    keys: Literal["clusters", "learned", "normal", "xavier", "orthogonal"] = "clusters"
    """Routing embeddings: centres of clusters of training rows, learned, or frozen from one of these starts;
    orthogonal as published."""
    top: PositiveInt | None = None
    """Hard routing: keep this many experts; null for soft routing."""
    expert_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """In training, the probability that a row goes without an expert in a layer; never without all."""
    importance_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the importance loss."""
    importance_threshold: Annotated[float, Field(ge=0)] = 0.1
    """Threshold gamma of the importance loss."""

    @model_validator(mode="after")
    def _consistent(self) -> "GuidedConfig":
        if self.top is not None and self.top > self.experts:
            raise ValueError(f"fusion.top ({self.top}) is more than fusion.experts ({self.experts})")
        return self

    @property
    def tau(self) -> float:
        """The routing temperature."""
        return self.temperature or (0.2 if self.similarity == "cosine" else 0.1)


class SequentialConfig(GuidedConfig):
    """MoPE, P-SeqFuse, SeqFuse: the other inputs' features make prompts of the main encoder (section III)."""

    method: Literal["sequential"] = "sequential"
    """The other inputs guide the main encoder by prompts: MoPE, P-SeqFuse, SeqFuse."""
    head_sees: Literal["main", "all"] = "main"
    """What the head is given: the main encoder's feature, as published, or the others' features beside it."""


class MutualConfig(GuidedConfig):
    """MoPE in both directions: every encoder is guided by the others, and the head is given all of them."""

    method: Literal["mutual"]
    """Every input guides every other: MoPE-both."""


class UnimodalConfig(_Fusion):
    """The main input alone: ImgOnly, TextOnly."""

    method: Literal["unimodal"]
    """The main input alone: ImgOnly, TextOnly."""


class ConcatConfig(_Fusion):
    """Late fusion: LateConcat."""

    method: Literal["concat"]
    """Features side by side: LateConcat."""


class InputsConfig(_Fusion):
    """Fusion at the input: PromptFuse, BlindPrompt, MMBT, Frozen."""

    method: Literal["inputs"]
    """What the other inputs say becomes tokens of the main encoder: PromptFuse, BlindPrompt, MMBT, Frozen."""
    length: Annotated[int, Field(ge=0)] = 6
    """Prompt length l; 0 for no prompt."""
    deep: bool = False
    """Prompts in every layer, fresh, instead of at the input."""
    blind: bool = False
    """Prompts may attend to one another only."""
    input_from: Literal["feature", "tokens"] = "feature"
    """What the main encoder is given of the others, their global feature or all of their tokens."""
    input_tokens: PositiveInt = 1
    """Number of tokens that a global feature is mapped to."""

    @model_validator(mode="after")
    def _consistent(self) -> "InputsConfig":
        if self.input_from == "tokens" and self.input_tokens > 1:
            raise ValueError(
                "fusion.input_tokens is for fusion.input_from: feature; tokens are taken as they are"
            )
        return self


class PmfConfig(_Fusion):
    """PMF: two streams that exchange prompts."""

    method: Literal["pmf"]
    """Two prompted streams that exchange prompts in their last layers: PMF."""
    length: PositiveInt = 6
    """Length l of each kind of prompt."""
    exchange_layers: PositiveInt = 2
    """Number of last layers in which the streams exchange prompts."""


class RegisteredConfig(_Fusion):
    """A method of your own, see `mope.register_method`."""

    method: str
    """The name of a registered method."""
    options: dict[str, Any] = Field(default={})
    """What it reads."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, settings: Any) -> Any:
        """Say that the method may be misspelt, rather than that it hasn't the setting."""
        for key in settings if isinstance(settings, Mapping) else ():
            if key not in cls.model_fields:
                raise ValueError(
                    f"there is no fusion.method '{settings['method']}' with a setting '{key}': take one of "
                    f"{', '.join(METHODS)}, or put what a registered method reads under fusion.options"
                )
        return settings


METHODS: dict[str, type[_Fusion]] = {
    get_args(section.model_fields["method"].annotation)[0]: section
    for section in (
        SequentialConfig,
        UnimodalConfig,
        ConcatConfig,
        InputsConfig,
        PmfConfig,
        MutualConfig,
    )
}
"""The library's own methods by name: their settings."""

REGISTERED = "registered"


def fusion_section(method: str) -> type[_Fusion]:
    """The settings of a method."""
    return METHODS.get(method, RegisteredConfig)


def _tag(settings: Any) -> str:
    method = settings.get("method") if isinstance(settings, Mapping) else getattr(settings, "method", None)
    if method is None:
        return "sequential"
    return method if method in METHODS else REGISTERED


FusionConfig = Annotated[
    Annotated[SequentialConfig, Tag("sequential")]
    | Annotated[MutualConfig, Tag("mutual")]
    | Annotated[UnimodalConfig, Tag("unimodal")]
    | Annotated[ConcatConfig, Tag("concat")]
    | Annotated[InputsConfig, Tag("inputs")]
    | Annotated[PmfConfig, Tag("pmf")]
    | Annotated[RegisteredConfig, Tag(REGISTERED)],
    Discriminator(_tag),
]
"""The settings of a fusion, by `method`."""


def only_own(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a fusion's settings those that its method has."""
    section = fusion_section(settings.get("method", "sequential"))
    return {key: value for key, value in settings.items() if key in section.model_fields}


def of_older_version(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as an older version wrote them, with what it did where it had no setting for it."""
    settings = dict(settings)
    if isinstance(settings.get("fusion"), Mapping):
        settings["fusion"] = _of_first_version(settings["fusion"])
        if settings["fusion"].get("method", "sequential") == "sequential":
            settings["fusion"] = {"standardise": False, "similarity": "dot", **settings["fusion"]}
    if isinstance(settings.get("training"), Mapping):
        then = {"head_start": "random", "head_factor": 1.0, "router_factor": 1.0}
        settings["training"] = then | settings["training"]
    return settings


def _of_first_version(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A fusion's settings as the first version wrote them, which were every method's, without the others'."""
    settings = dict(settings)
    method = settings.get("method", "sequential")
    if method == "inputs" and "static" not in settings.get("prompts", ["static"]):
        settings["length"] = 0
    others = {key for section in METHODS.values() for key in section.model_fields} | {"options"}
    own = fusion_section(method).model_fields
    return {key: value for key, value in settings.items() if key in own or key not in others}
