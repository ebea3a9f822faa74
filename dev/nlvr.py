"""What frozen encoders tell of NLVR at most: a transformer trained whole over the tokens of both.

Where it stays at the majority's accuracy too, no way to fuse these features through prompts can be asked for
more with these rows. The epoch is chosen on the validation rows; the test rows are read once, at the end.
"""

import argparse
import json
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mope.config import Config
from mope.data.dataset import collate
from mope.device import autocast, describe_machine, frozen_dtype, pick_device
from mope.training.launch import prepare

Split = tuple[Tensor, Tensor, Tensor, Tensor]


class Joint(nn.Module):
    """A transformer over picture and text tokens, with a head on a token of its own."""

    def __init__(self, width: int, classes: int, layers: int = 4, dim: int = 256):
        super().__init__()
        self.image, self.text = nn.Linear(width, dim), nn.Linear(width, dim)
        self.kinds = nn.Parameter(torch.randn(3, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, 8, 4 * dim, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, classes)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, classes) of tokens (B, N, D) and (B, M, D), of which the mask (B, M) says the real."""
        own = self.kinds[2].expand(len(image), 1, -1)
        tokens = torch.cat([own, self.image(image) + self.kinds[0], self.text(text) + self.kinds[1]], dim=1)
        padding = torch.cat([mask.new_zeros(len(mask), 1 + image.shape[1]), ~mask], dim=1)
        return self.head(self.layers(tokens, src_key_padding_mask=padding)[:, 0])


def main() -> None:
    """Train with several seeds, say the accuracies, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/nlvr.yaml")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="of each split; all by default")
    parser.add_argument("--out", default="runs/studies/nlvr_ceiling", help="folder of the table")
    options = parser.parse_args()
    config, device = Config.load(options.config), pick_device(None)
    splits = features(config, device, options.rows)
    found = []
    for seed in range(options.seeds):
        for rate in (1e-4, 3e-4):
            found.append({"seed": seed, "rate": rate, **train(splits, seed, rate, options.epochs)})
            print(found[-1], flush=True)
    result = {
        "date": date.today().isoformat(),
        "machine": describe_machine(device),
        "size": config.inputs["image"].size,
        "rows": {name: len(split[3]) for name, split in splits.items()},
        "majority": {name: majority(split[3]) for name, split in splits.items()},
        "runs": found,
    }
    write(result, Path(options.out))


def write(result: dict[str, Any], folder: Path) -> None:
    """`table.json` and `table.md`: of each seed the rate that is best on the validation rows."""
    head = ["seed", "rate", "epoch", "last training loss", "validation accuracy", "test accuracy"]
    lines = [
        "## NLVR: what both encoders' tokens tell",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for seed in sorted({run["seed"] for run in result["runs"]}):
        own = [run for run in result["runs"] if run["seed"] == seed]
        best = max(own, key=lambda run: run["validation"])
        accuracies = f"{best['validation']:.3f} | {best['test']:.3f}"
        values = (
            f"{seed} | {best['rate']:g} | {best['epoch']} | {best['last_training_loss']:.3f} | {accuracies}"
        )
        lines.append(f"| {values} |")
    rows = ", ".join(
        f"{count:,} {name} ({result['majority'][name]:.3f} the majority)"
        for name, count in result["rows"].items()
    )
    where = f"{result['date']}, {result['machine']}"
    lines += ["", f"Pictures of {result['size'][0]} x {result['size'][1]} pixels; rows: {rows}. {where}."]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def majority(labels: Tensor) -> float:
    """The accuracy of the most frequent label."""
    return float(labels.bincount().max() / len(labels))


@torch.inference_mode()
def features(config: Config, device: torch.device, rows: int | None) -> dict[str, Split]:
    """Tokens of both encoders, which text tokens are real, and labels, of every split."""
    config = config.with_settings({"inputs.text.encoder.tuning": "frozen"})
    model, datasets = prepare(config, None, print)
    model.freeze(frozen_dtype("auto", device))
    model.to(device).eval()
    _, others = prepare(config.with_settings({"data.validation": config.data.test}), None, print)
    datasets = {**datasets, "test": others["validation"]}
    found: dict[str, Split] = {}
    for name, table in datasets.items():
        together = partial(collate, readers=datasets["train"].readers, task=model.task)
        chosen = range(len(table) if rows is None else min(rows, len(table)))
        loader = DataLoader(torch.utils.data.Subset(table, chosen), 64, collate_fn=together, num_workers=4)
        parts: list[tuple[Tensor, ...]] = []
        for batch in loader:
            inputs = {key: {k: v.to(device) for k, v in batch[key].items()} for key in ("image", "text")}
            with autocast("auto", device):
                image, text = (
                    model.fusion.encoder(key).encoder(**inputs[key]).tokens.bfloat16()
                    for key in ("image", "text")
                )
            mask, width = inputs["text"]["attention_mask"].bool(), config.inputs["text"].max_length
            text = nn.functional.pad(text, (0, 0, 0, width - text.shape[1]))
            mask = nn.functional.pad(mask, (0, width - mask.shape[1]))
            parts.append((image, text, mask, batch["labels"].to(device)))
        found[name] = tuple(torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[assignment]
        print(name, found[name][0].shape, flush=True)
    return found


def train(splits: dict[str, Split], seed: int, rate: float, epochs: int, size: int = 64) -> dict[str, float]:
    """Accuracies of one training: on the validation rows in its best epoch, then on the test rows."""
    torch.manual_seed(seed)
    images, texts, masks, labels = splits["train"]
    model = Joint(images.shape[-1], 2).to(images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = epochs * -(-len(labels) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    best = {"validation": 0.0, "test": 0.0, "epoch": 0, "training_loss": 0.0}
    for epoch in range(epochs):
        model.train()
        losses = []
        for rows in torch.randperm(len(labels), device=labels.device).split(size):
            with torch.autocast(images.device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(
                    model(images[rows], texts[rows], masks[rows]).float(), labels[rows]
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        value = accuracy(model, splits["validation"])
        if value > best["validation"]:
            test = accuracy(model, splits["test"])
            mean = torch.stack(losses).mean().item()
            best = {"validation": value, "test": test, "epoch": epoch + 1, "training_loss": mean}
    return {**best, "last_training_loss": torch.stack(losses).mean().item()}


@torch.inference_mode()
def accuracy(model: Joint, split: Split) -> float:
    """Share of rows that a model has right."""
    model.eval()
    right = [logits.argmax(dim=1) == labels for logits, labels in _answers(model, split)]
    return torch.cat(right).float().mean().item()


def _answers(model: Joint, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    for images, texts, masks, labels in zip(*(part.split(512) for part in split), strict=True):
        with torch.autocast(images.device.type, torch.bfloat16):
            yield model(images, texts, masks), labels


if __name__ == "__main__":
    main()
