"""Gemma's tokenizer: the `tokenizer.json` of the checkpoint, run by the `tokenizers` library, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from diffuse.errors import CheckpointError
from diffuse.models.text_encoder.clip_tokenizer_files import read_settings, token_text

_AGAIN = "copy or download it again"


class PaddedTokens(NamedTuple):
    """Token ids `[B, T]`, int64, and their mask `[B, T]`, int64, one at the tokens and zero at the padding before them.

    `cut` has for each text its end that did not fit, in the user's own words, or an empty string.
    """

    ids: Tensor
    mask: Tensor
    cut: list[str]


class GemmaTokenizer:
    """Byte-pair encoding with byte fallback, a start token in front, padded on the left, cut on the right.

    White space around a text is dropped, as by diffusers' LTX-2 pipeline. There is no chat template and, unless the
    checkpoint asks for it, no end token. How the files pad and cut does not count.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        start: Sequence[int],
        end: Sequence[int],
        pad: int,
        model_max_length: int | None = None,
    ) -> None:
        """Takes a tokenizer that neither pads nor cuts, the ids before and behind each text, and the padding's.

        Args:
            model_max_length: the tokens that the checkpoint was trained with, padding included, where it says so.
        """
        self.tokenizer, self.model_max_length = tokenizer, model_max_length
        self.start, self.end, self.pad = list(start), list(end), pad

    @classmethod
    def from_folder(cls, folder: Path) -> GemmaTokenizer:
        """Reads `tokenizer.json` and `tokenizer_config.json`.

        Raises:
            CheckpointError: files are missing or cannot be read, or a token has no number.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{folder}: tokenizer.json is not there; copy or download it")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path}: the tokenizer cannot be read ({error}); {_AGAIN}") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        settings = read_settings(folder / "tokenizer_config.json")

        def number(name: str, default: str) -> int:
            word = token_text(settings[name]) if settings.get(name) is not None else default
            found = None if word is None else tokenizer.token_to_id(word)
            if found is None:
                raise CheckpointError(
                    f"{folder}: the vocabulary has no {name} {settings.get(name, default)!r}; {_AGAIN}"
                )
            return found

        # Where tokenizer_config.json says nothing, what tokenizer.json puts around a text counts, as in transformers.
        plain, whole = (tokenizer.encode("a", add_special_tokens=around).ids for around in (False, True))
        place = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        start, end = whole[:place], whole[place + len(plain) :]
        if settings.get("add_bos_token") is not None:
            start = [number("bos_token", "<bos>")] if settings["add_bos_token"] else []
        if settings.get("add_eos_token") is not None:
            end = [number("eos_token", "<eos>")] if settings["add_eos_token"] else []
        # Without a padding token diffusers pads with the end token.
        pads = "pad_token" in settings and settings["pad_token"] is None
        length = settings.get("model_max_length")
        length = length if type(length) is int and length > 0 else None  # a huge number is none, too
        pad = number("eos_token", "<eos>") if pads else number("pad_token", "<pad>")
        return cls(tokenizer, start, end, pad, length)

    @property
    def vocab_size(self) -> int:
        """The number of ids, for which the text encoder must have embeddings."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(self, texts: Sequence[str], max_length: int) -> PaddedTokens:
        """Returns the `PaddedTokens` of texts, `[B, max_length]`, which has room for the start and end tokens."""
        room = max_length - len(self.start) - len(self.end)
        if room < 0:
            raise ValueError(f"max_length={max_length} has no room for the start and end tokens")
        ids, mask, cut = [], [], []
        stripped = [text.strip() for text in texts]
        for text, encoding in zip(
            stripped, self.tokenizer.encode_batch(stripped, add_special_tokens=False), strict=True
        ):
            row = [*self.start, *encoding.ids[:room], *self.end]
            padding = max_length - len(row)
            ids.append([self.pad] * padding + row)
            mask.append([0] * padding + [1] * len(row))
            cut.append(text[encoding.offsets[room][0] :] if len(encoding.ids) > room else "")
        return PaddedTokens(torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.int64), cut)
