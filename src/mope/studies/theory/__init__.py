"""Appendix C in numbers: what one global prompt can't express, and what k experts can."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mope.errors import UserError
from mope.files import replacing, write_json
from mope.predictor import Predictor
from mope.studies.plot import require_packages
from mope.studies.theory.layer import random_layer
from mope.studies.theory.picture import draw_theory
from mope.studies.theory.runs import by_layer, mean_prompts, routed_prompts, run_layer, watch_run
from mope.studies.theory.tables import as_markdown
from mope.studies.theory.theorems import theorem_one, theorem_two

GUIDE_DIM = 8


@dataclass(frozen=True)
class TheorySettings:
    """What is measured.

    Attributes:
        instances: of the random layer that prompts are fitted to; as many more are new to the router.
        experts: numbers k.
        dimensions: intrinsic dimensions m of the instances' own prompts.
        pairs: of instances, for Theorem 1.
        steps: of L-BFGS, from each start.
        seed: of everything that is drawn.
        rows: of the run, if any.
        data: their table; None for the run's test rows.
        device: for the run; None for the best there is.
    """

    instances: int = 48
    experts: tuple[int, ...] = (1, 2, 3, 5, 8)
    dimensions: tuple[int, ...] = (1, 2, 4)
    pairs: int = 12
    steps: int = 60
    seed: int = 0
    rows: int = 256
    data: str | None = None
    device: str | None = None


def study_theory(
    settings: TheorySettings, out: str | Path, run: str | None = None, report: Callable[[str], Any] = print
) -> dict[str, Any]:
    """Measure what Theorems 1 and 2 state on a random layer, and their premises on a trained run.

    Writes `theory.json`, `table.md` and `theory.png`.

    Args:
        settings: what is measured.
        out: folder to write into.
        run: a trained run with experts, over a plain transformer; None for none.
        report: takes each line that is said.

    Returns:
        `settings`; `theorem_1`, see `theorem_one`; `theorem_2`, by m, see `theorem_two`; and of a run
        `loss`, `loss_with_mean_prompts` (every row's dynamic prompts made their mean), `layers`, see
        `by_layer`, and `theorem_1_of_run`, by layer.

    Raises:
        UserError: a setting is too small, a package is missing, or the run doesn't fit, see `watch_run`.
    """
    if min(settings.instances, settings.pairs, settings.steps, settings.rows) < 2:
        raise UserError("The theorems take at least 2 instances, pairs, steps and rows.")
    if min((*settings.experts, *settings.dimensions)) < 1:
        raise UserError("Numbers of experts and dimensions are at least 1.")
    require_packages()
    predictor = None if run is None else Predictor(run, device=settings.device, precision="fp32")
    if predictor is not None:
        routed_prompts(predictor)
    with torch.random.fork_rng():  # which routers begin from
        torch.manual_seed(settings.seed)
        result = _measure(settings, predictor, report)
    folder = Path(out)
    write_json(folder / "theory.json", result)
    with replacing(folder / "table.md") as draft:
        draft.write_text(as_markdown(result), encoding="utf-8")
    draw_theory(result, folder / "theory.png")
    return result


def _measure(
    settings: TheorySettings, predictor: Predictor | None, report: Callable[[str], Any]
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(settings.seed)
    report("Theorem 1, on a random layer")
    result: dict[str, Any] = {
        "settings": asdict(settings),
        "theorem_1": theorem_one(random_layer(2 * settings.pairs, generator), generator, settings.steps),
        "theorem_2": {},
    }
    for dimension in settings.dimensions:
        report(f"Theorem 2, on a random layer, m={dimension}")
        layer = random_layer(2 * settings.instances, generator)
        guide = torch.randn(layer.instances, GUIDE_DIM, generator=generator, dtype=torch.float64)
        result["theorem_2"][dimension] = theorem_two(
            layer, guide, dimension, list(settings.experts), generator, settings.steps
        )
    if predictor is not None:
        result |= _of_run(predictor, settings, generator, report)
    return result


def _of_run(
    predictor: Predictor, settings: TheorySettings, generator: torch.Generator, report: Callable[[str], Any]
) -> dict[str, Any]:
    """The premises on a trained run's rows, and Theorem 1 on its first, middle and last layers."""
    report(f"The premises, on {predictor.run}")
    prompts, encoder = routed_prompts(predictor)
    rows = (predictor, settings.rows, settings.data)
    seen, loss = watch_run(*rows, 2 * settings.pairs)
    alike, loss_alike = watch_run(*rows, 0, mean_prompts(seen, prompts))
    layers = by_layer(seen, alike, prompts, encoder)
    last = len(seen) - 1
    found = {}
    for place in sorted({0, last // 2, last}):
        report(f"Theorem 1, on its layer {place + 1}")
        layer = run_layer(seen[place], encoder, place)
        layer = layer.some(layer.instances // 2 * 2)
        found[place + 1] = theorem_one(layer, generator, settings.steps)
    losses = {"loss": loss, "loss_with_mean_prompts": loss_alike}
    return {"run": str(predictor.run), **losses, "layers": layers, "theorem_1_of_run": found}
