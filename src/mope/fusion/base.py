"""What every fusion method is: encoders by input name, and a forward pass over a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any, ClassVar, NamedTuple, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from mope.config import Config
from mope.encoders import Encoder, EncoderOutput, TunedEncoder
from mope.encoders.tuning import PRESENT, Call
from mope.errors import UserError
from mope.prompts import FusionPrompts

_LOCK, _TURNS = Lock(), WeakKeyDictionary[Encoder, Any]()
"""See `taking_turns`."""

Batch = Mapping[str, Mapping[str, Tensor]]
"""Inputs by name, each the keyword arguments of its encoder."""


def tune(
    config: Config, encoders: Mapping[str, Encoder], without_stand_in: Sequence[str] = ()
) -> dict[str, TunedEncoder]:
    """Loaded encoders, each tuned as its input says.

    Args:
        config: the settings.
        encoders: by input name.
        without_stand_in: inputs of which the method reads no feature that a learned one could stand in for.
    """
    return {
        name: TunedEncoder(
            encoder,
            config.inputs[name].encoder.tuning,
            prompt_length=config.inputs[name].encoder.prompt_length,
            dropout=config.fusion.dropout,
            start=config.fusion.start,
            stand_in=config.inputs[name].missing == "learn" and name not in without_stand_in,
        )
        for name, encoder in encoders.items()
    }


def require_guided(config: Config, encoders: Mapping[str, Encoder], *, guides_too: bool = False) -> None:
    """Make sure that a config fits a fusion in which other inputs guide the main one through its layers.

    Args:
        config: the settings.
        encoders: by input name.
        guides_too: whether the main input is a guide as well, by prompts of its own.

    Raises:
        UserError: there is no other, or the main encoder's layers take nothing, or have prompts already.
    """
    main = config.fusion.main
    if not config.complementary:
        raise UserError(
            f"The fusion '{config.fusion.method}' needs an input beside the main one: "
            "name a second in `inputs`, or set fusion.method to unimodal."
        )
    if not encoders[main].layer_dims:
        raise UserError(
            f"The encoder of the main input '{main}' takes no prompts: make another the main one."
        )
    if config.inputs[main].encoder.tuning == "prompt" and not guides_too:
        raise UserError(
            f"The main input '{main}' is prompted by the fusion: "
            f"set inputs.{main}.encoder.tuning to frozen or full."
        )


@dataclass
class FusionOutput:
    """What a fusion makes of a batch.

    Attributes:
        features: fused global feature (B, D).
        tokens: tokens of the main encoder (B, N, D).
        scores: routing scores of each layer, (B, k) each; empty for a method without a router.
        maps: four feature maps of the main encoder (B, C_s, H_s, W_s), if asked for.
    """

    features: Tensor
    tokens: Tensor
    scores: list[Tensor] = field(default_factory=list)
    maps: tuple[Tensor, ...] = ()


class Fusion(nn.Module, ABC):
    """A fusion method.

    Attributes:
        encoders: `TunedEncoder`s by input name.
        main: name of the main input. Whatever doesn't belong to another input's encoder is trained with the
            main learning rate.
        has_maps: whether the method's feature is the main encoder's, so that its maps are fused as well.
        gives_maps: whether they are asked for.
        reentrant: whether several threads may run it at once, if its encoders are so, too.
    """

    encoders: nn.ModuleDict
    main: str
    has_maps: ClassVar[bool] = False
    gives_maps: bool = False
    reentrant: ClassVar[bool] = False

    @property
    def may_share_time(self) -> bool:
        """Whether several threads may run it at once, its encoders included."""
        return self.reentrant and all(self.encoder(name).encoder.reentrant for name in self.encoders)

    @property
    def feature_dim(self) -> int:
        """Width D of the fused feature."""
        return self.encoder(self.main).pooled_dim

    def encoder(self, name: str) -> TunedEncoder:
        """An input's encoder."""
        return cast(TunedEncoder, self.encoders[name])

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within the block remember the features of all inputs but the main one, so that passes over the same
        rows encode those that guide once."""
        with ExitStack() as stack:
            for name in set(self.encoders) - {self.main}:
                stack.enter_context(self.encoder(name).remembering())
            yield

    def feature(self, name: str, batch: Batch) -> Tensor:
        """The global feature (B, D) of an input alone; from disk, if it is kept there."""
        return self.encoder(name).feature(batch[name])

    def give_maps(self) -> None:
        """Give feature maps from now on.

        Raises:
            UserError: the method or its main encoder has none.
        """
        main = self.encoder(self.main)
        if not self.has_maps:
            raise UserError(
                "A mask needs a fusion whose feature is the main encoder's own: "
                "set fusion.method to sequential, inputs or unimodal."
            )
        if len(main.encoder.map_dims) != 4:
            raise UserError(
                f"The encoder of the main input '{self.main}' gives no four feature maps, of which a mask is "
                "made: take a Swin or a plain vision transformer."
            )
        main.give_maps()
        self.gives_maps = True

    @property
    def guided(self) -> Mapping[str, FusionPrompts]:
        """The prompts of encoders that other inputs guide, by input name, in the order of `scores`."""
        return {}

    def routed_layers(self, count: int) -> list[str]:
        """What so many layers of `scores` are called: numbers, with an input's name if several are."""
        routed = {name: own.router for name, own in self.guided.items() if own.router is not None}
        first = "" if len(routed) == 1 else "{} "
        names = [
            f"{first.format(name)}{layer + 1}" for name, own in routed.items() for layer in range(own.layers)
        ]
        # A fusion of somebody else's may route in a way of its own.
        return names if len(names) == count else [str(layer + 1) for layer in range(count)]

    def settle_prompts(self) -> None:
        """Project the prompts that are the same for every row, see `KeptPrompts.keep`."""
        for name in self.encoders:
            self.encoder(name).settle_prompts()
        for name, prompts in self.guided.items():
            prompts.settle(self.encoder(name).encoder)

    def missing(self, batch: Batch) -> dict[str, Tensor]:
        """Rows (B,), boolean, of each input that may be missing, where it is."""
        return {name: ~batch[name][PRESENT] for name in self.encoders if PRESENT in batch[name]}

    @property
    def begins_from_rows(self) -> bool:
        """Whether `begin` is to see training rows before the first step."""
        return False

    def begin(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Start from what the encoders make of some training rows, instead of at random.

        Args:
            batches: gives the rows, the same ones at each call.
        """

    @classmethod
    def needs(cls, config: Config) -> list[str]:
        """Names of the inputs that the method reads."""
        return list(config.inputs)

    @classmethod
    @abstractmethod
    def build(cls, config: Config, encoders: Mapping[str, Encoder]) -> "Fusion":
        """The method as the config says, over loaded encoders by input name."""

    @abstractmethod
    def forward(self, batch: Batch) -> FusionOutput:
        """Fuse a batch of inputs."""


class Last(NamedTuple):
    """The last passes of a fusion through its encoders.

    Attributes:
        calls: the passes, none of which waits for another.
        finish: makes the fused output of what the encoders give, in the same order.
    """

    calls: Sequence[Call]
    finish: Callable[[Sequence[EncoderOutput]], FusionOutput]


class InRounds(Fusion):
    """A fusion in two rounds: features of some inputs, then a pass of the main encoder, or of several.

    So several models over the same encoders may go through each round together, see `mope.fusion.together`.

    Attributes:
        guides: names of the inputs whose features come first.
    """

    guides: Sequence[str]

    @abstractmethod
    def last(self, batch: Batch, psi: Mapping[str, Tensor]) -> Last:
        """The second round, given the features (B, d_y) that the first gave, by name."""

    def forward(self, batch: Batch) -> FusionOutput:
        last = self.last(batch, {name: self.feature(name, batch) for name in self.guides})
        return last.finish([call.run() for call in last.calls])


@contextmanager
def taking_turns(*fusions: Fusion) -> Iterator[None]:
    """To be held while models run, where other threads may run others over the same encoders.

    Some layers take down in themselves what a pass is like, as a Swin's do its windows: models over such an
    encoder run one at a time, as do those whose fusion isn't reentrant over theirs.
    """
    encoders = {
        id(encoder): encoder
        for fusion in fusions
        for encoder in (fusion.encoder(name).encoder for name in fusion.encoders)
        if not (fusion.reentrant and encoder.reentrant)
    }
    with _LOCK:
        turns = [_TURNS.setdefault(encoders[key], RLock()) for key in sorted(encoders)]
    with ExitStack() as held:
        for turn in turns:  # in one order, so that two never wait for each other
            held.enter_context(turn)
        yield
