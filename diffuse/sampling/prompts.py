"""How a prompt is read: what of it the text encoder sees, in how many chunks, and what each token weighs.

Sources: AUTOMATIC1111's web UI for the chunks, each between a start and an end token and encoded by itself, and for the
chunks of an empty prompt that bring two prompts to one length (its `pad_cond_uncond`); it and ComfyUI for the pooled
text, which is the first chunk's. ComfyUI for the weights: a token's state is taken `weight` times the way from the
state that an empty prompt has in its place, which compel does too for weights above 1. Unlike the web UI's product with
its restored mean, that is the model's own state at 1 and an empty prompt's at 0, and does not divide by a mean that may
be zero.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from diffuse.config import prompt_syntax
from diffuse.config.prompt_syntax import Part
from diffuse.models.text_encoder.clip import CLIPTextOutput
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.schema import GenerationRequest, LongPrompt, PromptSyntax


class Prompt(NamedTuple):
    """A text as its encoder reads it, a row a chunk. What is no token of the text weighs 1."""

    rows: list[tuple[int, ...]]
    weights: list[list[float]]
    empty: tuple[int, ...]  # the row of an empty text
    cut: str  # what did not fit

    def padded(self, count: int) -> Prompt:
        """The same in `count` chunks: the further ones are empty."""
        more = count - len(self.rows)
        return self._replace(
            rows=self.rows + [self.empty] * more, weights=self.weights + [[1.0] * len(self.empty)] * more
        )


def read(tokenizer: CLIPTokenizer, text: str, request: GenerationRequest) -> Prompt:
    """Reads `text` as the request's `long_prompt` and `prompt_syntax` say."""
    weighted = request.prompt_syntax is PromptSyntax.weighted
    parts = prompt_syntax.parse_prompt(text) if weighted else [Part(text, 1.0)]
    # Taken apart as a whole, so that brackets change no token: one that two parts share weighs what its beginning does.
    split = tokenizer.split("".join(part.text for part in parts))
    begins = list(accumulate((len(part.text) for part in parts), initial=0))
    weights = [parts[bisect_right(begins, start, hi=len(parts)) - 1].weight for start in split.starts]

    whole = request.long_prompt is LongPrompt.chunk
    chunks = split.chunks(tokenizer.room) if whole else [slice(tokenizer.room)]
    rows = [tuple(tokenizer.row(split.ids[chunk])) for chunk in chunks]
    around = tokenizer.max_length - 1  # the end token and what pads follow
    return Prompt(
        rows,
        [[1.0, *weights[chunk], *[1.0] * (around - len(weights[chunk]))] for chunk in chunks],
        tuple(tokenizer.row([])),
        "" if whole else split.beyond(tokenizer.room),
    )


def same_length(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts in one number of chunks, so that their states can stand side by side or in one batch."""
    count = max(len(prompt.rows) for prompt in prompts)
    return [prompt.padded(count) for prompt in prompts]


def encode(
    model: Callable[[Tensor], CLIPTextOutput],
    prompt: Prompt,
    state: Callable[[CLIPTextOutput], Tensor],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """A prompt's states `[1, n * T, D]` and its pooled text `[1, D]`; `state` takes the former of what the model gives.

    One chunk at a time, so that a prompt's states do not depend on what it is encoded with.
    """
    outputs: dict[tuple[int, ...], CLIPTextOutput] = {}

    def output(row: tuple[int, ...]) -> CLIPTextOutput:
        if row not in outputs:
            outputs[row] = model(torch.tensor([row], device=device))
        return outputs[row]

    states = []
    for row, weights in zip(prompt.rows, prompt.weights, strict=True):
        states.append(state(output(row)))
        if any(weight != 1 for weight in weights):
            states[-1] = _weighted(states[-1], state(output(prompt.empty)), weights)
    return torch.cat(states, dim=1), output(prompt.rows[0]).pooled


def _weighted(state: Tensor, empty: Tensor, weights: Sequence[float]) -> Tensor:
    """The state `[1, T, D]`, token by token as far from `empty` as its weight says; where that is 1, to the bit."""
    weight = torch.tensor(weights, device=state.device)[:, None]  # [T, 1]
    base = empty.float()
    far = base + (state.float() - base) * weight
    return torch.where(weight == 1, state, far.to(state.dtype))


def cut_off(name: str, prompt: Prompt) -> list[str]:
    """A line that says what of the text `name` did not fit, if anything."""
    if not prompt.cut:
        return []
    return [
        f"the {name} is longer than {len(prompt.empty)} tokens; cut off: {prompt.cut!r}; long_prompt=chunk reads it all"
    ]
