"""lm-eval's data parallelism: `accelerate launch -m lm_eval --model arts` gives each process a share of the questions."""

from __future__ import annotations

import os
from typing import Any

from arts_plugin.errors import SettingsError


class Ranks:
    """This process among those of a launcher; accelerate makes their group.

    Raises:
        SettingsError: accelerate is not installed.

    Attributes:
        rank, world_size: which of how many.
        device: what lm-eval puts the numbers on that the processes exchange.
    """

    def __init__(self, device: str | None) -> None:
        try:
            import torch
            from accelerate import Accelerator
        except ImportError as error:
            raise SettingsError(
                "several processes were launched, which needs accelerate: pip install 'arts-plugin[hf]'"
            ) from error
        # Without the word, accelerate takes several processes on a CPU for one each.
        self._accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
        self.rank: int = self._accelerator.process_index
        self.local: int = self._accelerator.local_process_index
        self.world_size: int = self._accelerator.num_processes
        self.device: Any = self._accelerator.device

    def all_gather(self, tensor: Any) -> Any:
        """The tensors of all processes, in order of rank."""
        return self._accelerator.gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes, at `dst`; None elsewhere."""
        import torch.distributed

        found: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj=obj, object_gather_list=found, dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for all."""
        self._accelerator.wait_for_everyone()


def of_this_process(device: str | None) -> Ranks | None:
    """None where no launcher has started several; `device` is where they are to compute."""
    return Ranks(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
