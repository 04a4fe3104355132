"""Sharding: the blocks of one component are spread over several cards, through accelerate's public interface.

Each card has about as many bytes of weights. What a block computes goes on to the card of the next one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.hooks import remove_hook_from_submodules
from torch import nn

from diffuse.device.hardware import Hardware
from diffuse.device.streaming import outermost_blocks
from diffuse.errors import ConfigError
from diffuse.schema import Compile, MemoryProfileConfig

_CPU = torch.device("cpu")


class Shards:
    """A module whose parts are on several cards from `arrive` to `leave`.

    Args:
        module: loaded on the CPU.
        block_types: the classes of its repeated blocks, none of which is divided.
        cards: the devices. What the module is called with, and what it returns, is on the first.
    """

    def __init__(
        self, module: nn.Module, block_types: tuple[type[nn.Module], ...], cards: Sequence[torch.device]
    ) -> None:
        self.module = module
        self._cards = cards
        whole = _nbytes(module)
        largest = max((_nbytes(block) for block in outermost_blocks(module, block_types)), default=0)
        share = -(-whole // len(cards)) + largest // 2  # a block belongs where more than half of it has room
        room: dict[int | str, int | str] = dict.fromkeys(range(len(cards)), share)
        room[0] = share + largest  # accelerate keeps as much of the first free, for weights that are offloaded
        room[len(cards) - 1] = 2 * whole  # the last one takes what is left
        room["cpu"] = 0
        undivided = [each.__name__ for each in block_types]
        places = infer_auto_device_map(module, max_memory=room, no_split_module_classes=undivided)
        self.places = {name: int(place) for name, place in places.items()}  # the number of the card of each part

    def arrive(self) -> None:
        """Moves each part to its card."""
        places = {name: self._cards[card] for name, card in self.places.items()}
        with warnings.catch_warnings():  # about parameters of the module itself, which have to be in the map
            warnings.filterwarnings("ignore", "The following device_map keys do not match")
            dispatch_model(self.module, places, main_device=self._cards[0], force_hooks=True)

    def leave(self) -> None:
        """Moves all parts to the CPU's memory."""
        remove_hook_from_submodules(self.module)
        nn.Module.to(self.module, _CPU)  # accelerate has put a `to` that warns over the module's own


def cards_of(hw: Hardware) -> list[torch.device]:
    """Returns the cards that blocks can be spread over, the first of which is the device; those of a CPU are itself."""
    return [_CPU if hw.device == "cpu" else torch.device(hw.device, index) for index in range(hw.cards)]


def check_sharding(profile: MemoryProfileConfig, hw: Hardware) -> None:
    """Checks that there is what sharding needs.

    Raises:
        ConfigError: there are fewer than two cards, or blocks are to be compiled as well.
    """
    if not profile.sharded:
        return
    if hw.cards < 2:
        there = "one" if hw.device != "cpu" else "none"
        raise ConfigError(
            f"memory_profile.sharded=[{','.join(profile.sharded)}]: needs two cards or more, and there is {there}; "
            "choose another memory_profile, such as streaming"
        )
    if hw.compile is Compile.regional:
        raise ConfigError(
            "hardware.compile=regional cannot compile blocks on several cards; use hardware.compile=none, or set "
            "memory_profile.sharded=[]"
        )


def _nbytes(module: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in [*module.parameters(), *module.buffers()])
