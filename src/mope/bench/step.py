"""What a training step takes beyond the passes of its frozen encoders, which no method over them can spare.

The bare passes are those of transformers' own models with weights held as the step's: forward, and backward
to what enters the first layer, with whichever attention kernel makes them faster. Weights are random, which
no figure here depends on.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mope.bench.models import (
    LABELS,
    bare_encoders,
    build,
    hold,
    inputs_of,
    machine_of,
    random_batch,
    sized_config,
)
from mope.bench.turns import take_turns
from mope.device import autocast, frozen_dtype, pick_device
from mope.encoders.families import FAMILIES, follow
from mope.errors import UserError
from mope.methods import find_method

_KERNELS = ("sdpa", "eager")


@dataclass(frozen=True)
class StepSettings:
    """What is measured.

    Attributes:
        size: of `SIZES`.
        method: a method's name.
        batch: rows per step.
        repeats: turns of each variant.
        precision: "auto", "bf16" or "fp32", as in training.
        device: None for the best there is.
        compile: whether the step is measured as `training.compile` has it, too.
    """

    size: str = "demo"
    method: str = "MoPE-clusters"
    batch: int = 8
    repeats: int = 15
    precision: str = "auto"
    device: str | None = None
    compile: bool = False


def bench_step(settings: StepSettings) -> dict[str, Any]:
    """Measure a whole training step, and the forward and backward pass of each bare encoder, in turns.

    Returns:
        `settings`, `machine`, median `seconds` of the step and of each encoder by its input's name and
        kernel; `ratio`, the median over turns of the step over the sum of the encoders, each by its faster
        kernel, and its `interval`, see `Ratio`. With `compile` there are in `compiled` the `ratio` and the
        `interval` of the compiled step over the plain one.

    Raises:
        UserError: there is no such method, or it doesn't send gradients through both encoders, frozen, which
            is what its step is compared with; or a number is less than 1.
    """
    if min(settings.batch, settings.repeats) < 1:
        raise UserError("A benchmark takes a batch and repeats of at least 1.")
    _require_prompts(settings)
    torch.manual_seed(0)
    device = pick_device(settings.device)
    batch = random_batch(settings.size, settings.batch, device)
    dtype = frozen_dtype(settings.precision, device)
    variants: dict[str, Callable[[], None]] = {"step": _step(settings, batch, device)}
    if settings.compile:
        variants["compiled step"] = _step(settings, batch, device, compile=True)
    names = list(batch)
    for kernel in _KERNELS:
        for name, model in bare_encoders(settings.size, device).items():
            model.set_attn_implementation(kernel)
            variants[f"{name}, {kernel}"] = _bare(hold(model, dtype), batch[name], settings.precision, device)
    turns = take_turns(variants, settings.repeats, "steps", device)
    seconds = turns.medians
    fastest = [min((f"{name}, {kernel}" for kernel in _KERNELS), key=seconds.__getitem__) for name in names]
    ratio = turns.ratio("step", *fastest)
    found = {
        "settings": asdict(settings),
        "machine": machine_of(settings.precision, device),
        "seconds": seconds,
        "ratio": ratio.median,
        "interval": ratio.interval,
    }
    if settings.compile:
        compiled = turns.ratio("compiled step", "step")
        found["compiled"] = {"ratio": compiled.median, "interval": compiled.interval}
    return found


def _require_prompts(settings: StepSettings) -> None:
    config = find_method(settings.method).apply(sized_config(settings.size))
    tunings = {name: entry.encoder.tuning for name, entry in config.inputs.items()}
    main = tunings.pop(config.fusion.main, None)
    if config.fusion.method != "sequential" or main != "frozen" or set(tunings.values()) != {"prompt"}:
        raise UserError(
            f"A step of {settings.method} isn't compared with both bare encoders: take a method that prompts "
            "both of them, frozen, such as MoPE or P-SeqFuse."
        )


def _step(
    settings: StepSettings,
    batch: dict[str, dict[str, Tensor]],
    device: torch.device,
    compile: bool = False,
) -> Callable[[], None]:
    """A method's step: forward, backward and AdamW."""
    model = build(find_method(settings.method), settings.size, settings.precision, device).train()
    if compile:
        model.compile()
    labels = torch.arange(settings.batch, device=device) % len(LABELS)
    inputs = inputs_of(model, batch)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(settings.precision, device):
            loss = model(labels=labels, **inputs).loss
        assert loss is not None
        loss.backward()
        optimizer.step()

    return step


def _bare(model: Any, inputs: dict[str, Tensor], precision: str, device: torch.device) -> Callable[[], None]:
    """A frozen encoder's forward pass, and its backward pass to what enters the first layer."""
    first = next(follow(model, FAMILIES[model.config.model_type].layers))
    first.register_forward_pre_hook(lambda layer, args: (args[0].detach().requires_grad_(), *args[1:]))

    def passes() -> None:
        with autocast(precision, device):
            tokens = model(**inputs).last_hidden_state
        tokens[:, 0].float().mean().backward()

    return passes
