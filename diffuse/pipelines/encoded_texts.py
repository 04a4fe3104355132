"""What the text encoders made of the latest texts: the jobs of a sweep encode each prompt once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from diffuse.memory_profile import Memory

KEPT = 64  # texts of one encoder each; those of SDXL take 0.6 MB


class EncodedTexts:
    """The states of one text are those of its tokens, whatever it is encoded with; so they can be kept by them."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], tuple[Tensor, ...]] = OrderedDict()

    def __call__(self, name: str, ids: Tensor, take: Callable[[Any], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """For each text of `ids` `[N, T]`, what `take` takes of what the encoder `name` gives for it.

        The encoder is asked for one text at a time, and not at all where each is known.
        """
        keys = [(name, tuple(row)) for row in ids.tolist()]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if len(found) < len(set(keys)):
            with self.memory.use(name) as encoder:
                rows = ids.to(self.memory.device(name))
                for row, key in zip(rows, keys, strict=True):
                    if key not in found:
                        found[key] = take(encoder(row[None]))
        for key in keys:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return [found[key] for key in keys]
