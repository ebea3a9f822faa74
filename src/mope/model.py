"""The model: encoders, a fusion of them, and a head; and its folder on disk."""

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mope.config import Config, GuidedConfig, InputConfig
from mope.encoders import Encoder
from mope.encoders.inputs import empty_input_encoder, load_input_encoder
from mope.encoders.preparation import ImageSettings, image_settings
from mope.encoders.sources import version_of
from mope.errors import UserError
from mope.files import replacing
from mope.fusion import FUSIONS, Fusion, FusionOutput
from mope.heads import LinearHead, MaskHead
from mope.prompts import FusionPrompts, Router, importance_loss
from mope.prompts.grow import grow
from mope.remote import rebased
from mope.run import CONFIG, DIGEST, WEIGHTS, read_run, require_same_columns, require_same_routing
from mope.tasks import Task, build_task
from mope.versions import installed
from mope.weights import read_weights, write_weights

_ADDED = ("task.temperature", "task.threshold")
"""What runs of earlier versions lack; without it they say what they said."""
_State = Mapping[str, Tensor]


@dataclass
class ModelOutput:
    """What a model makes of a batch.

    Attributes:
        logits: (B, C); (B, H, W) of a task over pixels.
        scores: routing scores of each layer, (B, k) each; empty for a method without a router.
        loss: the task's loss, plus the weighted importance loss while training; None without labels.
        losses: its parts by name, unweighted.
    """

    logits: Tensor
    scores: list[Tensor]
    loss: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class FusionModel(nn.Module):
    """Encoders fused into one multimodal model.

    Args:
        config: what it was built from.
        fusion: the fusion method over its encoders.
        task: label names, loss and metrics.
    """

    def __init__(self, config: Config, fusion: Fusion, task: Task):
        super().__init__()
        self.settings = config
        self.fusion = fusion
        self.task = task
        self.for_inference = False
        self._pixel_settings: dict[str, ImageSettings] = {}
        self.head = self._head()

    def _head(self) -> nn.Module:
        if not self.task.dense:
            return LinearHead(self.fusion.feature_dim, self.task.outputs)
        self.fusion.give_maps()
        encoder = self.fusion.encoder(self.fusion.main).encoder
        return MaskHead(encoder.map_dims, self.settings.segmentation.channels, encoder.plain)

    @classmethod
    def build(
        cls,
        config: Config,
        labels: Sequence[str],
        encoders: Mapping[str, Encoder] | None = None,
        load: Callable[[InputConfig], Encoder] | None = None,
    ) -> "FusionModel":
        """A model as the config says, untrained.

        Args:
            config: the settings.
            labels: names of the task's labels, in order.
            encoders: loaded encoders by input name, instead of those the config names.
            load: loads an input's encoder; None for `load_input_encoder`.
        """
        method = _method(config)
        if encoders is None:
            load = load or load_input_encoder
            encoders = {name: load(entry) for name, entry in needed_inputs(config).items()}
        for name, encoder in encoders.items():
            kind = config.inputs[name].kind
            if encoder.kind != kind:
                raise UserError(f"inputs.{name} holds {kind}s, but its encoder reads {encoder.kind}s.")
        task = build_task(config, labels)
        return cls(config, method.build(config, encoders), task)

    def forward(self, labels: Tensor | None = None, **batch: Any) -> ModelOutput:
        """Run a batch.

        Args:
            labels: encoded labels as `Task.targets` returns them.
            batch: the encoder's inputs by input name.
        """
        output = self.fusion(self.normed(batch))
        logits = self.decode(output, batch)
        if labels is None:
            return ModelOutput(logits, output.scores)
        losses = {"task": self.task.loss(logits, labels)}
        fusion = self.settings.fusion
        if self.training and output.scores and isinstance(fusion, GuidedConfig):
            losses["importance"] = importance_loss(output.scores, fusion.importance_threshold)
        return ModelOutput(logits, output.scores, self.total(losses), losses)

    def decode(self, output: FusionOutput, batch: Mapping[str, Any]) -> Tensor:
        """Logits of what the fusion made of a batch."""
        if not self.task.dense:
            return self.head(output.features)
        return self.head(output.maps, tuple(batch[self.fusion.main]["pixel_values"].shape[-2:]))

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """What is trained for: the parts of a loss, weighted."""
        fusion = self.settings.fusion
        if "importance" not in losses or not isinstance(fusion, GuidedConfig):
            return losses["task"]
        return losses["task"] + fusion.importance_weight * losses["importance"]

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """Fused features (B, D) of a batch, by input name: what the head is given."""
        return self.fusion(self.normed(batch)).features

    def normed(self, batch: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
        """A batch whose pictures are as its encoders take them, if they are bytes."""
        return {name: self._normed(name, inputs) for name, inputs in batch.items()}

    @property
    def begins_from_rows(self) -> bool:
        """Whether `begin` is to see training rows before the first step."""
        return self.fusion.begins_from_rows

    def begin(self, batches: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Start from what the encoders make of some training rows: `batches` gives them, as `forward` takes
        them, the same ones at each call."""
        training, names = self.training, list(self.fusion.encoders)
        self.eval()
        self.fusion.begin(lambda: (self.normed({n: batch[n] for n in names}) for batch in batches()))
        self.train(training)

    def _normed(self, name: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """An input whose pictures, if they are bytes, are normed as its encoder's weights were trained.

        Here rather than where rows are read: bytes are a quarter of the floats to move.
        """
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return inputs
        if name not in self._pixel_settings:
            encoder = self.settings.inputs[name].encoder
            self._pixel_settings[name] = image_settings(
                encoder.weights, encoder.revision, encoder.architecture
            )
        settings = self._pixel_settings[name]
        mean, std = (
            255 * torch.tensor(values, device=pixels.device).view(3, 1, 1)
            for values in (settings.mean, settings.std)
        )
        return {**inputs, "pixel_values": (pixels - mean) / std}

    def freeze(self, dtype: torch.dtype | None = None) -> None:
        """Settle what isn't trained, for passes under autocast to `dtype`: see `Encoder.freeze`."""
        for name in self.fusion.encoders:
            self.fusion.encoder(name).encoder.freeze(dtype)

    def freeze_for_inference(self, dtype: torch.dtype | None = None) -> "FusionModel":
        """Settle everything: the model can be neither trained nor saved from now on."""
        self.requires_grad_(False).eval().freeze(dtype)
        self.for_inference = True
        return self

    def settle_prompts(self) -> None:
        """Compute once what frozen prompts that are the same for every row are to the layers.

        For passes in eval mode under the autocast in force; results are the same. Training, other weights or
        another device undo it.
        """
        self.fusion.settle_prompts()

    def train(self, mode: bool = True) -> "FusionModel":
        """Set the training mode.

        Raises:
            UserError: it was frozen for inference.
        """
        if mode and self.for_inference:
            raise UserError(
                "This model was frozen for inference: to train it, load it anew with "
                "FusionModel.from_pretrained."
            )
        return super().train(mode)

    def trained_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: trained parameters, and every buffer outside frozen encoders."""
        if self.for_inference:
            raise UserError(
                "This model was frozen for inference, so it doesn't know what was trained: load it anew with "
                "FusionModel.from_pretrained."
            )
        # Two inputs may have one encoder.
        named = self.named_parameters(remove_duplicate=False)
        frozen = {name for name, parameter in named if not parameter.requires_grad}
        for name in self.fusion.encoders:
            encoder = self.fusion.encoder(name)
            if encoder.tuning != "full":
                prefix = f"fusion.encoders.{name}.encoder."
                frozen |= {prefix + buffer for buffer, _ in encoder.encoder.named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `trained_state` gave, all of it and nothing else.

        Raises:
            UserError: the tensors are another model's.
        """
        own = self.trained_state()
        state = {**{name: own[name] for name in _ADDED if name in own}, **state}
        state = {name: tensor for name, tensor in state.items() if name in own or not self._is_unread(name)}
        expected, found = ({name: one.shape for name, one in given.items()} for given in (own, state))
        if expected != found:
            differing = sorted(
                name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
            )
            raise UserError(
                f"The weights are another model's: {len(differing)} tensors differ, such as {differing[0]}."
            )
        self.load_state_dict(state, strict=False)

    def _is_unread(self, name: str) -> bool:
        """Whether a run of the first version holds this tensor, though nothing ever read it."""
        if name.endswith(".stand_in"):
            return self.settings.inputs[name.split(".")[2]].missing == "learn"
        encoders = [self.fusion.encoder(one).encoder for one in self.fusion.encoders]
        unused = {id(parameter) for encoder in encoders for parameter in encoder.unused_parameters()}
        return id(dict(self.named_parameters(remove_duplicate=False)).get(name)) in unused

    def keep_features(self, folder: Path | None) -> None:
        """Let frozen, unprompted encoders keep features on disk, not of augmented inputs; None ends it."""
        for name in self.fusion.encoders:
            if self.settings.inputs[name].augment == "none":
                self.fusion.encoder(name).keep_features(folder)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trained parameters with their names, by learning rate.

        "encoder" are weights of pre-trained encoders tuned in full; "complementary" what else is of the other
        inputs' encoders; "head", "router" what a factor other than 1 is for; "main" the rest.
        """
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"main": [], "complementary": [], "encoder": []}
        training = self.settings.training
        factors = {"head": 1.0 if self.task.dense else training.head_factor, "router": training.router_factor}
        routers = [
            f"fusion.{name}." for name, part in self.fusion.named_modules() if isinstance(part, Router)
        ]
        prefixes = {"head": ["head."], "router": routers}
        own = {prefix: group for group in prefixes if factors[group] != 1 for prefix in prefixes[group]}
        names = list(self.fusion.encoders)
        others = tuple(f"fusion.encoders.{name}." for name in names if name != self.fusion.main)
        full = tuple(
            f"fusion.encoders.{name}.encoder."
            for name in names
            if self.settings.inputs[name].encoder.tuning == "full"
            and self.settings.inputs[name].kind != "table"
        )
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                group = next((group for prefix, group in own.items() if name.startswith(prefix)), "main")
                group = "complementary" if name.startswith(others) else group
                group = "encoder" if name.startswith(full) else group
                groups.setdefault(group, []).append((name, parameter))
        return groups

    def count_parameters(self) -> dict[str, dict[str, int]]:
        """Trained and frozen parameters by part: encoders and their prompts, the fusion's parts, the head."""
        counts: dict[str, dict[str, int]] = {}
        for name, parameter in self.named_parameters():
            path = name.split(".")
            if path[:2] == ["fusion", "encoders"]:
                part = f"{path[2]} {path[3]}"
            elif path[:2] == ["fusion", "prompts"]:
                part = f"fusion {path[2]}"
            else:
                part = path[0]
            entry = counts.setdefault(part, {"trainable": 0, "frozen": 0})
            entry["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
        return counts

    def save_pretrained(
        self, folder: str | Path, facts: Mapping[str, Any] | None = None, state: _State | None = None
    ) -> None:
        """Write weights and config into a folder; each file appears whole or not at all.

        Args:
            folder: made if it isn't there.
            facts: anything to keep beside the settings in `config.yaml`, under `run`.
            state: what `trained_state` gives, where it isn't this process's alone; None to ask it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as draft:
            digest = write_weights(draft, self.trained_state() if state is None else state)
        run = {"labels": self.task.labels, "versions": self._versions(), DIGEST: digest, **(facts or {})}
        settings = self._pinned().model_dump(mode="json")
        with replacing(folder / CONFIG) as draft:
            draft.write_text(yaml.safe_dump({**settings, "run": run}, sort_keys=False, allow_unicode=True))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, load: Callable[[InputConfig], Encoder] | None = None
    ) -> "FusionModel":
        """Rebuild the model of a run's folder, in eval mode; see `build` for `load`.

        Raises:
            UserError: the folder holds no run, or its encoders can't be loaded.
        """
        config, run = read_run(folder)
        model = cls.build(config, run["labels"], load=load)
        model.load_trained_state(read_weights(Path(folder) / WEIGHTS, run.get(DIGEST)))
        return model.eval()

    def begin_from(self, folder: str | Path) -> None:
        """Take over what another run has learned, to go on from there; its experts may be fewer.

        Raises:
            UserError: the folder holds no run, or one of other labels, inputs, sizes or routing.
        """
        before, run = read_run(folder)
        require_same_columns(before, self.settings, folder)
        require_same_routing(before, self.settings, folder)
        if list(run["labels"]) != list(self.task.labels):
            raise UserError(
                f"training.begin_from: {folder} has other labels, {', '.join(run['labels'][:5])}."
            )
        state = read_weights(Path(folder) / WEIGHTS, run.get(DIGEST))
        for name in _ADDED:  # fitted to validation rows when that run ended: this one is judged without
            state.pop(name, None)
        for name, part in self.named_modules():
            if isinstance(part, FusionPrompts) and part.router is not None:
                top = before.fusion.top if isinstance(before.fusion, GuidedConfig) else None
                state = grow(state, part.router, f"{name}.", top)
        self.load_trained_state(state)

    def _pinned(self) -> Config:
        """The config with each hub encoder at the commit it was loaded from."""
        config = self.settings.model_copy(deep=True)
        for name in self.fusion.encoders:
            settings = config.inputs[name].encoder
            settings.revision = self.fusion.encoder(name).encoder.commit or settings.revision
            if settings.weights and settings.weights.startswith((".", "~")):
                settings.weights = str(Path(settings.weights).expanduser().absolute())
        for place in ("train", "validation", "test", "folder"):
            if (path := getattr(config.data, place)) is not None:
                setattr(config.data, place, rebased(path, lambda path: str(Path(path).absolute())))
        return config

    def _versions(self) -> dict[str, str]:
        versions = {name: installed(name) for name in ("torch", "transformers")}
        versions |= {"mope": installed(), "python": platform.python_version()}
        for settings in self.settings.inputs.values():
            if settings.encoder.weights and (version := version_of(settings.encoder.weights)):
                name, _, number = version.partition("==")
                versions[name] = number
        return versions


def empty_model(config: Config, labels: Sequence[str]) -> FusionModel:
    """The model without memory for its weights, to count them: no weights are read or downloaded."""
    encoders = {name: empty_input_encoder(entry) for name, entry in needed_inputs(config).items()}
    with torch.device("meta"):
        return FusionModel.build(config, labels, encoders)


def _method(config: Config) -> type[Fusion]:
    if config.fusion.method not in FUSIONS:
        raise UserError(
            f"There is no fusion.method '{config.fusion.method}': take one of {', '.join(FUSIONS)}."
        )
    return FUSIONS[config.fusion.method]


def needed_inputs(config: Config) -> dict[str, InputConfig]:
    """The inputs that the config's fusion method reads, by name."""
    return {name: config.inputs[name] for name in _method(config).needs(config)}
