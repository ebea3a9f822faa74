"""Tab. VIII: what more experts cost, in time and memory, beside a forward pass of the whole model."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mope.bench.models import Batch, build, inputs_of, machine_of, random_batch
from mope.bench.turns import take_turns
from mope.device import autocast, peak_memory, pick_device, reset_peak_memory
from mope.errors import UserError
from mope.fusion.sequential import Sequential
from mope.methods import find_method
from mope.model import FusionModel
from mope.prompts import PromptFunction

PAPER = {
    4: (251, 0.8, 3.26),
    8: (254, 0.8, 3.26),
    16: (263, 0.8, 3.27),
    32: (410, 1.3, 3.31),
    64: (556, 1.8, 3.37),
    128: (834, 2.6, 3.97),
}
"""By k, as printed: microseconds and % of the forward pass of routing, and MiB."""

_STATES = 4  # of each trained number: itself, its gradient and AdamW's two moments


@dataclass(frozen=True)
class ExpertsSettings:
    """What is measured.

    Attributes:
        size: of `mope.bench.models.SIZES`.
        method: a method with experts.
        experts: numbers k.
        batch: rows per pass.
        repeats: turns of each variant; the routing alone takes five times as many.
        precision: "auto", "bf16" or "fp32", as in training.
        device: None for the best there is.
    """

    size: str = "swin-b"
    method: str = "MoPE"
    experts: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    batch: int = 16
    repeats: int = 9
    precision: str = "auto"
    device: str | None = None


def bench_experts(settings: ExpertsSettings) -> dict[str, Any]:
    """Measure Tab. VIII.

    Returns:
        `settings`, `machine`, and by k in `rows`: `forward_seconds` of the whole model, `forward_ratio` to
        the smallest k, `routing_seconds` of Eq. 3 and 4 over all layers, `routing_share` of that forward
        pass; `experts_mebibytes` of experts and router as stored, `training_mebibytes` with their gradients
        and AdamW's moments, `step_mebibytes` at the peak of a training step (of tensors on CUDA, of the
        process on Linux, else None) and `memory_share` of it; and what the paper has, or None.

    Raises:
        UserError: a number is too small, or the method has no experts.
    """
    if min(settings.batch, settings.repeats) < 1 or min(settings.experts) < 2:
        raise UserError("Tab. VIII takes a batch and repeats of at least 1, and at least 2 experts.")
    torch.manual_seed(0)
    device = pick_device(settings.device)
    batch = random_batch(settings.size, settings.batch, device)
    method = find_method(settings.method)
    ks = sorted(set(settings.experts))
    models = {k: build(method, settings.size, settings.precision, device, experts=k) for k in ks[:1]}
    first = models[ks[0]].fusion
    if not isinstance(first, Sequential) or first.prompts.router is None:
        raise UserError(f"{method.name} has no experts: name a method such as MoPE.")
    for k in ks[1:]:
        # One pair of encoders for all: they differ in their prompts alone.
        models[k] = _with_encoders_of(models[ks[0]], method, settings, k)
    turns = take_turns(
        {str(k): _forward(model, batch, settings) for k, model in models.items()},
        settings.repeats,
        "forward",
        device,
    )
    routing = take_turns(
        {str(k): _routing(model, batch, settings) for k, model in models.items()},
        5 * settings.repeats,
        "routing",
        device,
    ).medians
    rows = []
    for k, model in models.items():
        stored = _stored(model)
        peak = _step_memory(model, batch, settings, device)
        paper = PAPER.get(k)
        rows.append(
            {
                "k": k,
                "forward_seconds": turns.medians[str(k)],
                "forward_ratio": turns.ratio(str(k), str(ks[0])).median,
                "routing_seconds": routing[str(k)],
                "routing_share": routing[str(k)] / turns.medians[str(k)],
                "experts_mebibytes": stored,
                "training_mebibytes": _STATES * stored,
                "step_mebibytes": peak,
                "memory_share": None if peak is None else _STATES * stored / peak,
                "paper": paper and dict(zip(("microseconds", "percent", "mebibytes"), paper, strict=True)),
            }
        )
    machine = machine_of(settings.precision, device)
    return {"settings": asdict(settings), "machine": machine, "rows": rows}


def _with_encoders_of(model: FusionModel, method: Any, settings: ExpertsSettings, k: int) -> FusionModel:
    """The method's model with k experts over the frozen encoders of another one."""
    config = model.settings.with_settings({"fusion.experts": k})
    encoders = {name: model.fusion.encoder(name).encoder for name in model.fusion.encoders}
    device = next(model.parameters()).device
    return FusionModel.build(config, model.task.labels, encoders).to(device).eval()


def _forward(model: FusionModel, batch: Batch, settings: ExpertsSettings) -> Callable[[], None]:
    device, inputs = next(model.parameters()).device, inputs_of(model, batch)

    @torch.inference_mode()
    def run() -> None:
        with autocast(settings.precision, device):
            model(**inputs)

    return run


def _routing(model: FusionModel, batch: Batch, settings: ExpertsSettings) -> Callable[[], None]:
    """Eq. 3 and 4 of every layer, on the features that a forward pass has there."""
    fusion, device = model.fusion, next(model.parameters()).device
    assert isinstance(fusion, Sequential)
    router, experts = fusion.prompts.router, fusion.prompts.experts
    assert router is not None
    assert experts is not None
    x0: list[Tensor] = []

    def hear(layer: int, feature: Tensor) -> None:
        x0.append(feature)

    with torch.inference_mode(), autocast(settings.precision, device):
        psi = {name: fusion.feature(name, batch).float() for name in fusion.guides}
        fusion.encoders[fusion.main](batch[fusion.main], prompts=PromptFunction(hear))

    @torch.inference_mode()
    def run() -> None:
        embedded = router.embed(psi)
        for layer, feature in enumerate(x0):
            experts(layer, router(layer, embedded, feature.float())).to(feature.dtype)

    return run


def _stored(model: FusionModel) -> float:
    """MiB of experts, routers and routing embeddings."""
    fusion = model.fusion
    assert isinstance(fusion, Sequential)
    parts = (fusion.prompts.router, fusion.prompts.experts)
    tensors = [t for part in parts if part is not None for t in (*part.parameters(), *part.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def _step_memory(
    model: FusionModel, batch: Batch, settings: ExpertsSettings, device: torch.device
) -> float | None:
    """Peak MiB of two training steps."""
    model.train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4)
    labels = torch.arange(settings.batch, device=device) % len(model.task.labels)
    inputs = inputs_of(model, batch)
    reset_peak_memory(device)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with autocast(settings.precision, device):
            loss = model(labels=labels, **inputs).loss
        loss.backward()
        optimizer.step()
    found = peak_memory(device)
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    return found
