"""A run's folder: what is in it besides the model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mope.files import write_json

METRICS = "metrics.json"


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of a run's `metrics.json`; empty if there is none."""
    file = folder / METRICS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def add_metrics(folder: Path, name: str, metrics: Mapping[str, Any]) -> None:
    """Keep an evaluation's metrics in a run's `metrics.json`, under the name of what was measured."""
    write_json(folder / METRICS, {**read_metrics(folder), name: dict(metrics)})


def model_card(model: Any, metrics: Mapping[str, Any]) -> str:
    """The README of a run's folder: what it is, how good, and how to use it."""
    settings = model.settings
    inputs = "\n".join(
        f"| {name}{' (main)' if name == settings.fusion.main else ''} | {entry.kind} | `{entry.column}` | "
        f"`{entry.encoder.weights or 'random weights'}` | {entry.encoder.tuning} |"
        for name, entry in settings.inputs.items()
    )
    validation = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics["validation"].items())
    labels = ", ".join(f"`{label}`" for label in model.task.labels[:30])
    more = ", ..." if len(model.task.labels) > 30 else ""
    share = metrics["trainable"] / (metrics["trainable"] + metrics["frozen"])
    row = {entry.column: "..." for entry in settings.inputs.values()}
    return f"""---
library_name: mope
tags: [multimodal, prompt-tuning, {settings.task}]
---

# A multimodal model trained with mope

Task: {settings.task}. Labels: {labels}{more}.
Fusion: {settings.fusion.method}; {metrics["trainable"]:,} trained parameters ({share:.2%} of all), in
`model.safetensors`. The encoders' own weights are loaded from where `config.yaml` says.

| input | kind | column | encoder | tuning |
|---|---|---|---|---|
{inputs}

Validation, best epoch ({metrics["best_epoch"]:.3g}):

| metric | value |
|---|---|
{validation}

```python
from mope import Predictor

predictor = Predictor("this folder")
print(predictor.predict([{row}]))
```
"""
