"""What the text encoders made of the latest prompts: the jobs of a sweep encode each prompt once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor

from diffuse.device.memory import Memory
from diffuse.models.text_encoder.clip import CLIPTextOutput
from diffuse.sampling import prompts as prompt
from diffuse.sampling.prompts import Prompt

KEPT = 64  # prompts of one encoder each; those of SDXL take 0.6 MB a chunk


class EncodedTexts:
    """A prompt's states do not depend on what it is encoded with; so they can be kept by its tokens and weights."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._kept: OrderedDict[tuple[object, ...], tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(
        self, name: str, prompts: Sequence[Prompt], state: Callable[[CLIPTextOutput], Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """What `prompt.encode` gives for each of `prompts` with the encoder `name`, where and as the denoiser takes it.

        The encoder is not asked for where all are known.
        """
        keys = [(name, tuple(read.rows), tuple(map(tuple, read.weights))) for read in prompts]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if len(found) < len(set(keys)):
            device, dtype = self.memory.device("unet"), self.memory.dtype("unet")
            with self.memory.use(name) as encoder:
                for key, read in zip(keys, prompts, strict=True):
                    if key not in found:
                        states, pooled = prompt.encode(encoder, read, state, self.memory.device(name))
                        found[key] = states.to(device, dtype), pooled.to(device, dtype)
        for key in keys:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return [found[key] for key in keys]
