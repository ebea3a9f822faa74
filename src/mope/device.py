"""Which device and which arithmetic to use."""

import platform
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from mope.errors import UserError

Precision = Literal["auto", "bf16", "fp16", "fp32"]
"""Arithmetic: bf16 autocast where a device is faster in it, or as said; fp16 takes a GPU."""


def pick_device(named: str | None = None) -> torch.device:
    """The named device, or the best there is: CUDA, then MPS, then the CPU.

    Raises:
        UserError: the named one isn't there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if named is None:
        return torch.device(next(name for name, there in available.items() if there))
    if not available.get(named.partition(":")[0], False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise UserError(f"There is no device '{named}' here: there is {there}.")
    return torch.device(named)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is native to a device, not emulated, and faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        tiles, vectors = (
            getattr(torch.cpu, name, bool)()
            for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
        # On the Intel Xeon without AMX that was measured, bf16 products take twice as long (dev/LOG.md).
        return tiles or (vectors and "AuthenticAMD" in _processor())
    return False


@cache
def _processor() -> str:
    """What the system says of the processor, its maker included."""
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8") if info.is_file() else platform.processor()


def reset_peak_memory(device: torch.device) -> None:
    """Start to measure peak memory anew, where that can be done: CUDA, and processes on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (file := Path("/proc/self/clear_refs")).exists():
        with suppress(OSError):
            file.write_text("5")


def peak_memory(device: torch.device) -> float | None:
    """Peak memory in MiB since the reset: of tensors on CUDA, of the process on Linux; else None."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    status = Path("/proc/self/status")
    if device.type != "cpu" or not status.is_file():
        return None
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(peak.split()[1]) / 1024, 1)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether "auto", "bf16" or "fp32" means bf16 autocast on a device."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def require_fp16(device: torch.device) -> torch.device:
    """A device that has fp16 arithmetic.

    Raises:
        UserError: it hasn't.
    """
    if device.type == "cpu":
        raise UserError(
            "fp16 takes a GPU: take auto as precision (training.precision), which is bf16 where it can be."
        )
    return device


def frozen_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What frozen weights are held in, see `Encoder.freeze`; None for what they are in."""
    return torch.bfloat16 if use_bf16(precision, device) else None


def arithmetic(precision: str, device: torch.device) -> torch.dtype | None:
    """What passes are under autocast to on a device; None for what weights are in."""
    return torch.float16 if precision == "fp16" else frozen_dtype(precision, device)


def arithmetic_name(precision: str, device: torch.device) -> str:
    """What messages call the arithmetic of a precision on a device."""
    return "bf16" if use_bf16(precision, device) else "fp16" if precision == "fp16" else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Autocast to what the precision says on this device."""
    if precision == "fp16":
        return torch.autocast(require_fp16(device).type, torch.float16)
    return torch.autocast(device.type, torch.bfloat16) if use_bf16(precision, device) else nullcontext()


def describe_machine(device: torch.device | None = None, processes: int = 1) -> str:
    """What a run was made on, in words: the GPU, or how many threads of which processor.

    Args:
        device: of the run; None for the best there is.
        processes: that trained together, each with such a one.
    """
    device = device or pick_device()
    times = f"{processes} x " if processes > 1 else ""
    if device.type != "cpu":
        return times + (torch.cuda.get_device_name(device) if device.type == "cuda" else "Apple GPU")
    names = [line.partition(":")[2] for line in _processor().splitlines() if "model name" in line]
    model = names[0].strip() if names else platform.processor() or platform.machine()
    count = torch.get_num_threads()
    return f"{times}{count} thread{'s' if count > 1 else ''} of {model}"
