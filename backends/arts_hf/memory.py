"""How many KV cells there is memory for: what `slots=auto` goes by."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path

import torch

_SHARE = 0.75
"""Of the memory that is free; the rest is for activations and fragments."""


def cells_that_fit(devices: Iterable[torch.device], cell_bytes: int, aside: int) -> int:
    """KV cells that the free memory of `devices` has room for, beside `aside` bytes."""
    return max(0, int((sum(map(free_bytes, set(devices))) - aside) * _SHARE)) // cell_bytes


def give_back() -> None:
    """Memory of what nobody refers to any more goes back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Memory that an allocation on this device could get."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return _available() if device.type == "cpu" else 0


def _available(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Linux says how much can be had without swapping; elsewhere nobody does, and 2 GiB are a safe guess."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 2 << 30
