"""Prompts of several models of one shape, routed in as few steps per layer as those of one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mope.prompts.fusion import BoundPrompts
from mope.prompts.source import Projected, PromptSource


class StackedPrompts(PromptSource):
    """Asks `BoundPrompts` of one `shape` at once: what the models' routers learned for a layer is stacked,
    (M, ...), and each one's rows, filled up to the most that one has, meet it in a batched product.

    One after the other, sixteen routers are sixteen times as many small steps in each layer, which take more
    time than their arithmetic.

    Args:
        sources: M of one `shape`, which isn't None.
        counts: how many rows each has, in the order of the batch.
    """

    def __init__(self, sources: Sequence[BoundPrompts], counts: Sequence[int]):
        self.sources, self.counts = list(sources), list(counts)
        self._most = max(counts)
        each = [source.prompts for source in sources]
        self._shape = each[0]
        self._static = [prompts.static for prompts in each if prompts.static is not None]
        self._experts = [prompts.experts.prompts for prompts in each if prompts.experts is not None]
        self._routers = [prompts.router for prompts in each if prompts.router is not None]
        self._places: Tensor | None = None
        if self._routers and min(counts) < self._most:
            places = [place * self._most + row for place, count in enumerate(counts) for row in range(count)]
            self._places = torch.tensor(places, device=next(each[0].parameters()).device)
        if self._routers:
            cross = [
                functional.pad(source.embedded.cross.expand(-1, count, -1), (0, 0, 0, self._most - count))
                for source, count in zip(sources, counts, strict=True)
            ]
            self._cross = torch.stack(cross, dim=1)

    def __call__(self, layer: int, x0: Tensor) -> Tensor | None:
        return self._prompts(layer, x0)

    def kept(self, layer: int, x0: Tensor) -> Projected | None:
        found = [source.kept(layer, x0) for source in self.sources]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return None
        return Projected(
            self._for_rows([one.keys for one in known]), self._for_rows([one.values for one in known])
        )

    def rest(self, layer: int, x0: Tensor) -> Tensor | None:
        return self._prompts(layer, x0, static=False)

    def bias(self, layer: int) -> Tensor | None:
        found = [source.bias(layer) for source in self.sources]
        known = next((bias for bias in found if bias is not None), None)
        if known is None:
            return None
        return self._for_rows([torch.zeros_like(known[:1]) if bias is None else bias for bias in found])

    def _prompts(self, layer: int, x0: Tensor, static: bool = True) -> Tensor | None:
        parts = []
        if static and self._static:
            parts.append(self._for_rows([prompts[layer].unsqueeze(0) for prompts in self._static]))
        if self._experts:
            with torch.autocast(x0.device.type, enabled=False):
                mixed = self._mix(layer, x0.float())
            if self._shape.added:
                parts[-1] = parts[-1] + mixed
            else:
                parts.append(mixed.to(x0.dtype))
        mapped = zip(*(source.mapped for source in self.sources), strict=True)
        parts += [torch.cat([by_layer[layer] for by_layer in each]) for each in mapped]
        return torch.cat(parts, dim=1).to(x0.dtype) if parts else None

    def _mix(self, layer: int, x0: Tensor) -> Tensor:
        """Each row's dynamic prompt, (B, l, d_i). To stack experts would copy all to mix a few."""
        experts = [prompts[layer] for prompts in self._experts]
        if not self._routers:
            return self._for_rows(experts)
        scores = self._route(layer, self._by_model(x0))
        parts = [part[:count] for part, count in zip(scores, self.counts, strict=True)]
        for source, part in zip(self.sources, parts, strict=True):
            source.take(layer, part)
        mixed = [part @ one.flatten(1) for part, one in zip(parts, experts, strict=True)]
        return torch.cat(mixed).unflatten(-1, experts[0].shape[1:])

    def _route(self, layer: int, x0: Tensor) -> Tensor:
        """What `Router.forward` gives each model's rows: x0 (M, n, d_i) to scores (M, n, k)."""
        first, found = self._routers[0], self._cross[layer]
        own: Tensor | None = None
        if first.intra:
            if first.intra_norms:
                norms: list[Any] = [router.intra_norms[layer] for router in self._routers]
                mean = torch.stack([norm.running_mean for norm in norms]).unsqueeze(1)
                variance = torch.stack([norm.running_var for norm in norms]).unsqueeze(1)
                x0 = (x0 - mean) * (variance + norms[0].eps).rsqrt()
            projects: list[Any] = [router.intra[layer] for router in self._routers]
            own = x0 @ torch.stack([project.weight for project in projects]).mT
        keys = torch.stack([source.embedded.keys[layer] for source in self.sources])
        if first.cosine:
            query = found if own is None else torch.cat([found, own], dim=-1)
            found = functional.normalize(query, dim=-1) @ keys
        elif own is not None:
            found = found + own @ keys / first.temperature
        return first.keep_top(found.softmax(dim=-1))

    def _by_model(self, rows: Tensor) -> Tensor:
        """(B, d) -> (M, n, d), filled up with zeros."""
        if self._places is not None:
            filled = rows.new_zeros(len(self.counts) * self._most, rows.shape[1])
            rows = filled.index_copy_(0, self._places, rows)
        return rows.unflatten(0, (len(self.counts), self._most))

    def _for_rows(self, values: Sequence[Tensor]) -> Tensor:
        """One of each model, (1, ...), or of each of its rows: (B, ...)."""
        rows = [
            value.expand(count, *[-1] * (value.ndim - 1))
            for value, count in zip(values, self.counts, strict=True)
        ]
        return torch.cat(rows)
