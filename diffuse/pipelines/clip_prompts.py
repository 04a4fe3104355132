"""Prompts for CLIP text encoders: the chunks of tokens that the encoder reads, and the weight of each token.

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
from diffuse.errors import ConfigError
from diffuse.models.text_encoder.clip import CLIPTextOutput
from diffuse.pipelines.learned_words import LearnedVectors, Words
from diffuse.schema import GenerationRequest, LongPrompt, PromptSyntax

SelectState = Callable[[CLIPTextOutput], Tensor]
"""Selects the states `[1, T, D]` that a family's denoiser attends to."""


class TokenizedPrompt(NamedTuple):
    """A prompt as its encoder reads it, one row of tokens a chunk. Start, end and padding weigh 1."""

    rows: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    empty: tuple[int, ...]  # the row of an empty prompt
    cut_text: str  # the end of the prompt that did not fit
    skipped_layers: int = 0  # last layers of the encoder that its states go without
    learned: LearnedVectors | None = None  # behind words of textual inversion, where the prompt has any

    def padded(self, count: int) -> TokenizedPrompt:
        """Returns the prompt in `count` chunks, of which the further ones are empty."""
        missing = count - len(self.rows)
        return self._replace(
            rows=self.rows + (self.empty,) * missing,
            weights=self.weights + ((1.0,) * len(self.empty),) * missing,
        )


def tokenize(words: Words, text: str, request: GenerationRequest) -> TokenizedPrompt:
    """Tokenizes `text` as the request's `long_prompt` and `prompt_syntax` ask."""
    tokenizer, learned = words.tokenizer, words.learned
    weighted = request.prompt_syntax is PromptSyntax.weighted
    parts = prompt_syntax.parse_prompt(text) if weighted else [Part(text, 1.0)]
    # Tokenized as a whole, so that brackets change no token: one that two parts share has the weight of its beginning.
    split = tokenizer.split("".join(part.text for part in parts))
    starts = list(accumulate((len(part.text) for part in parts), initial=0))
    weights = [parts[bisect_right(starts, start, hi=len(parts)) - 1].weight for start in split.starts]

    is_chunked = request.long_prompt is LongPrompt.chunk
    chunks = split.chunks(tokenizer.room) if is_chunked else [slice(tokenizer.room)]
    after_start = tokenizer.max_length - 1  # the tokens, the end token, and the padding
    return TokenizedPrompt(
        tuple(tuple(tokenizer.row(split.ids[chunk])) for chunk in chunks),
        tuple((1.0, *weights[chunk], *[1.0] * (after_start - len(weights[chunk]))) for chunk in chunks),
        tuple(tokenizer.row([])),
        "" if is_chunked else split.beyond(tokenizer.room),
        learned=learned if learned is not None and max(split.ids, default=0) >= learned.first else None,
    )


def same_length(prompts: Sequence[TokenizedPrompt]) -> list[TokenizedPrompt]:
    """Pads the prompts to one number of chunks, so that their states can stand side by side or in one batch."""
    count = max(len(prompt.rows) for prompt in prompts)
    return [prompt.padded(count) for prompt in prompts]


def skip_layers(prompts: Sequence[TokenizedPrompt], request: GenerationRequest) -> list[TokenizedPrompt]:
    """Returns the prompts, of which the first goes without the last `clip_skip` layers.

    The negative prompt keeps all layers, as in diffusers.
    """
    first, *others = prompts
    return [first._replace(skipped_layers=request.clip_skip or 0), *others]


def check_clip_skip(request: GenerationRequest, most: int) -> None:
    """Raises ConfigError where the request skips more than `most` layers."""
    if request.clip_skip is not None and request.clip_skip > most:
        raise ConfigError(f"clip_skip={request.clip_skip}: this checkpoint's text encoders have {most} layers to skip")


def encode(
    model: Callable[[Tensor, int, Tensor | None], CLIPTextOutput],
    prompt: TokenizedPrompt,
    select_state: SelectState,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Encodes a prompt of `n` chunks. Returns its states `[1, n * T, D]` and its pooled text `[1, D]`.

    One chunk at a time, so that a prompt's states do not depend on what else is encoded with it.
    """
    outputs: dict[tuple[int, ...], CLIPTextOutput] = {}

    def output(row: tuple[int, ...]) -> CLIPTextOutput:
        if row not in outputs:
            learned = None if prompt.learned is None else prompt.learned.vectors
            outputs[row] = model(torch.tensor([row], device=device), prompt.skipped_layers, learned)
        return outputs[row]

    states = []
    for row, weights in zip(prompt.rows, prompt.weights, strict=True):
        states.append(select_state(output(row)))
        if any(weight != 1 for weight in weights):
            states[-1] = _weighted(states[-1], select_state(output(prompt.empty)), weights)
    return torch.cat(states, dim=1), output(prompt.rows[0]).pooled


def cut_warnings(name: str, prompt: TokenizedPrompt) -> list[str]:
    """Returns a line that shows the end of the prompt `name` that did not fit, or nothing."""
    if not prompt.cut_text:
        return []
    limit = f"the {name} is longer than {len(prompt.empty)} tokens"
    return [f"{limit}; cut off: {prompt.cut_text!r}; long_prompt=chunk reads it all"]


def _weighted(state: Tensor, empty: Tensor, weights: Sequence[float]) -> Tensor:
    """Moves the state `[1, T, D]` away from `empty`, token by token by its weight; where that is 1, no bit changes."""
    weight = torch.tensor(weights, device=state.device)[:, None]  # [T, 1]
    base = empty.float()
    moved = base + (state.float() - base) * weight
    return torch.where(weight == 1, state, moved.to(state.dtype))
