"""What prompts cost: beside the bare forward pass, and beside full fine-tuning.

Machines are noisy, so variants take turns, and only ratios within a turn are compared. Weights are random,
which no figure here depends on; the complementary feature is given, since its encoder runs in both cases.
"""

import copy
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mope.bench.models import bare_model, hold, machine_of, random_inputs
from mope.bench.turns import Turns, take_turns
from mope.device import autocast, frozen_dtype, pick_device
from mope.encoders import TransformerEncoder, TunedEncoder
from mope.encoders.families import Insertion
from mope.graphs import Compile, faster, require_compile
from mope.prompts import Experts, FusionPrompts, PromptFunction, Router, Start

FEATURE_DIM, CLASSES = 768, 3


@dataclass(frozen=True)
class BenchSettings:
    """What is measured.

    Attributes:
        model: one of `MODELS`.
        batch: rows per pass.
        experts: k.
        length: l.
        repeats: turns of each variant in inference; training takes a third of them.
        precision: "auto", "bf16", "fp16" or "fp32", as in training.
        device: None for the best there is.
        insertion: how prompts are put in, see `TransformerEncoder`; None for the family's way.
        start: "published", or "quiet": an offset on the attention logits of all prompts.
        training: whether to measure training steps too, which takes longest.
        compile: how bare and prompted passes are made faster in two variants more, see `faster`.
    """

    model: str = "swin-b"
    batch: int = 8
    experts: int = 4
    length: int = 6
    repeats: int = 15
    precision: str = "auto"
    device: str | None = None
    insertion: Insertion | None = None
    start: Start = "published"
    training: bool = True
    compile: Compile = "none"


class _Bench:
    """Models and inputs of a benchmark."""

    def __init__(self, settings: BenchSettings):
        torch.manual_seed(0)
        self.settings = settings
        self.device = pick_device(settings.device)
        require_compile(settings.compile, self.device)
        self.bare = bare_model(settings.model, self.device)
        self.inputs = random_inputs(settings.model, settings.batch, self.device)
        self.psi = {"text": torch.randn(settings.batch, FEATURE_DIM, device=self.device)}
        self.labels = torch.arange(settings.batch, device=self.device) % CLASSES

    def prompted(self) -> tuple[TunedEncoder, FusionPrompts]:
        """The same model with MoPE's prompts over it, frozen."""
        encoder = TunedEncoder(
            TransformerEncoder(copy.deepcopy(self.bare), self.settings.insertion), "frozen"
        )
        encoder.encoder.freeze(self.dtype)
        return encoder, self.prompts(encoder, self.settings.experts)

    def prompts(self, encoder: TunedEncoder, experts: int, **routing: Any) -> FusionPrompts:
        """MoPE's prompts for an encoder, routed as published or by other settings of `FusionPrompts`."""
        return FusionPrompts(
            encoder.encoder.layer_dims,
            {"text": FEATURE_DIM},
            length=self.settings.length,
            experts=experts,
            patch_area=encoder.encoder.patch_area,
            start=self.settings.start,
            **routing,
        ).to(self.device)

    @property
    def dtype(self) -> torch.dtype | None:
        """What frozen weights are held in."""
        return frozen_dtype(self.settings.precision, self.device)

    def autocast(self) -> Any:
        return autocast(self.settings.precision, self.device)

    def take_turns(self, variants: Mapping[str, Callable[[], Any]], repeats: int, what: str) -> Turns:
        """See `take_turns`."""
        return take_turns(variants, repeats, what, self.device)


def measure_inference(bench: _Bench) -> dict[str, Any]:
    """Prompted forward pass beside bare ones, all frozen and under the same autocast.

    Returns:
        Seconds of `bare` (its weights in float32, which autocast casts in each pass), of `bare held` (its
        linear layers' weights in the arithmetic's type, as the prompted one's), of `unprompted` (the prompted
        encoder without a source: its windows' masks and biases are made once as well), `projecting`
        (prompted, static prompts projected in each pass) and `prompted` (as `Predictor` has it); with
        `compile`, of both sides made faster by it, `bare faster` and `prompted faster`; medians. Medians of
        the turns' ratios: `ratio`, prompted over bare held; `ratio_to_bare` and `ratio_to_unprompted`, over
        these; `ratio_faster`, of the two that are faster; and in `intervals` of each, see `Ratio`.
    """
    bare = copy.deepcopy(bench.bare).requires_grad_(False)
    held = hold(copy.deepcopy(bare), bench.dtype)
    encoder, prompts = bench.prompted()
    prompts.requires_grad_(False).eval()
    settled = copy.deepcopy(prompts)
    with bench.autocast():
        settled.settle(encoder.encoder)

    def run(call: Callable[[], Any]) -> Callable[[], None]:
        @torch.inference_mode()
        def forward() -> None:
            with bench.autocast():
                call()

        return forward

    variants = {
        "bare": run(lambda: bare(**bench.inputs)),
        "bare held": run(lambda: held(**bench.inputs)),
        "unprompted": run(lambda: encoder(bench.inputs)),
        "projecting": run(lambda: encoder(bench.inputs, prompts=prompts.bind(bench.psi))),
        "prompted": run(lambda: encoder(bench.inputs, prompts=settled.bind(bench.psi))),
    }
    way = bench.settings.compile
    if way != "none":
        batch = {"main": bench.inputs, "psi": bench.psi}
        sides = {
            "bare faster": lambda batch: [held(**batch["main"]).last_hidden_state.mean(dim=1)],
            "prompted faster": lambda batch: [
                encoder(batch["main"], prompts=settled.bind(batch["psi"])).pooled
            ],
        }
        for name, side in sides.items():
            variants[name] = run(partial(faster(side, way, bench.device, {}), batch))
    turns = bench.take_turns(variants, bench.settings.repeats, "inference")
    ratios = {
        "ratio": turns.ratio("prompted", "bare held"),
        "ratio_to_bare": turns.ratio("prompted", "bare"),
        "ratio_to_unprompted": turns.ratio("prompted", "unprompted"),
    }
    if way != "none":
        ratios["ratio_faster"] = turns.ratio("prompted faster", "bare faster")
    return {
        **turns.medians,
        **{name: ratio.median for name, ratio in ratios.items()},
        "intervals": {name: ratio.interval for name, ratio in ratios.items()},
    }


def measure_routing(bench: _Bench, forward: float) -> dict[str, float]:
    """Share of routing and mixing, over all layers, in a prompted forward pass of `forward` seconds, by k."""
    encoder, _ = bench.prompted()
    x0: list[Tensor] = []
    with torch.inference_mode(), bench.autocast():
        encoder(bench.inputs, prompts=PromptFunction(lambda layer, feature: x0.append(feature)))
    kinds: dict[str, tuple[int, dict[str, Any]]] = {str(k): (k, {}) for k in (4, 8, 16, 32, 64, 128)}
    kinds["4, clusters"] = (4, {"standardise": True, "similarity": "cosine", "temperature": 0.2})
    runs = {}
    for name, (experts, settings) in kinds.items():
        prompts = bench.prompts(encoder, experts, **settings).eval()
        router, mixture = prompts.router, prompts.experts
        if router is None or mixture is None:
            raise ValueError("routing takes two experts or more")

        @torch.inference_mode()
        def route(router: Router = router, mixture: Experts = mixture) -> None:
            embedded = router.embed(bench.psi)
            for layer, feature in enumerate(x0):
                mixture(layer, router(layer, embedded, feature.float())).to(feature.dtype)

        runs[name] = route
    turns = bench.take_turns(runs, 3 * bench.settings.repeats, "routing")
    return {name: value / forward for name, value in turns.medians.items()}


TRAINING = ("prompted", "full sdpa", "full eager")


def training_step(bench: _Bench, variant: str) -> Callable[[], None]:
    """One step of a variant: forward, backward and AdamW."""
    if variant == "prompted":
        encoder, prompts = bench.prompted()
        encoder.train()
        prompts.train()
        head = nn.Linear(encoder.pooled_dim, CLASSES).to(bench.device)
        learned = [*prompts.parameters(), *head.parameters()]

        def feature() -> Tensor:
            return encoder(bench.inputs, prompts=prompts.bind(bench.psi)).pooled
    else:
        model = copy.deepcopy(bench.bare).train()
        model.set_attn_implementation(variant.removeprefix("full "))
        width = getattr(model, "num_features", model.config.hidden_size)
        head = nn.Linear(width, CLASSES).to(bench.device)
        learned = [*model.parameters(), *head.parameters()]

        def feature() -> Tensor:
            return model(**bench.inputs).last_hidden_state.mean(dim=1)

    optimizer = torch.optim.AdamW(learned, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with bench.autocast():
            loss = nn.functional.cross_entropy(head(feature()).float(), bench.labels)
        loss.backward()
        optimizer.step()

    return step


def measure_training(bench: _Bench) -> dict[str, Any]:
    """A prompted training step over full fine-tuning with its faster kernel: time, peak memory."""
    steps = {variant: training_step(bench, variant) for variant in TRAINING}
    turns = bench.take_turns(steps, max(3, bench.settings.repeats // 3), "training")
    del steps
    memory = {variant: _peak_memory(bench.settings, variant) for variant in TRAINING}
    full = min(TRAINING[1:], key=lambda variant: turns.medians[variant])
    time = turns.ratio("prompted", full)
    return {
        "seconds": turns.medians,
        "peak_mebibytes": memory,
        "full": full,
        "time_ratio": time.median,
        "time_interval": time.interval,
        "memory_ratio": memory["prompted"] / memory[full],
    }


def _peak_memory(settings: BenchSettings, variant: str) -> float:
    """Peak memory of three steps of a variant, in MiB, in a process of its own, less what imports take."""
    call = "import sys, json, mope.bench.prompts as b; b._report_peak(*json.loads(sys.argv[1]))"
    arguments = json.dumps([asdict(settings), variant])
    result = subprocess.run(
        [sys.executable, "-c", call, arguments], capture_output=True, text=True, check=True, env=os.environ
    )
    return float(result.stdout.strip().splitlines()[-1])


def _report_peak(settings: dict[str, Any], variant: str) -> None:
    device = pick_device(settings["device"])
    before = _resident()
    bench = _Bench(BenchSettings(**settings))
    step = training_step(bench, variant)
    bench.bare = None
    for _ in range(3):
        step()
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(_resident(peak=True) - before)


def _resident(peak: bool = False) -> float:
    """Memory of this process in MiB, now or at its peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not `getrusage`, whose peak a new process inherits from the one that started it.
        field = "VmHWM:" if peak else "VmRSS:"
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def bench_prompts(settings: BenchSettings) -> dict[str, Any]:
    """Measure everything that the settings say.

    Returns:
        `settings`, `machine`, `inference` (see `measure_inference`), `routing` (share by k) and, if asked
        for, `training` (seconds, MiB and their ratios).
    """
    bench = _Bench(settings)
    inference = measure_inference(bench)
    result: dict[str, Any] = {
        "settings": asdict(settings),
        "machine": machine_of(settings.precision, bench.device),
        "inference": inference,
        "routing": measure_routing(bench, inference["prompted"]),
    }
    if settings.training:
        result["training"] = measure_training(bench)
    return result
