"""CLIP's tokenizer on the `tokenizers` library, from either layout in which checkpoints publish it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from diffuse.errors import CheckpointError

START, END = "<|startoftext|>", "<|endoftext|>"

# Words, single digits and runs of other marks are cut apart before any merge: "cat," is "cat" and ",".
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_WORD_END, _COMMA = "</w>", ",</w>"  # how the vocabulary writes them
_COMMA_WITHIN = 20  # tokens before a chunk's end


class Tokens(NamedTuple):
    """Token ids `[B, T]`, int64, padded, and for each text its end that did not fit, or an empty string."""

    ids: Tensor
    cut: list[str]


@dataclass(frozen=True)
class Split:
    """A text's tokens, however many, without start and end."""

    text: str
    ids: list[int]
    starts: list[int]  # where in the text each begins
    words: list[bool]  # whether a word ends with it
    commas: list[bool]  # whether it is a comma

    def beyond(self, count: int) -> str:
        """Returns the end of the text, in the user's own words, that the first `count` tokens leave out."""
        return self.text[self.starts[count] :] if len(self.ids) > count else ""

    def chunks(self, size: int) -> list[slice]:
        """Splits the tokens into chunks of up to `size`, at least one.

        A full chunk ends at the last comma if that is among its last 20 tokens, as in AUTOMATIC1111's web UI; otherwise
        at the last word's end. Only a word longer than a chunk is cut.
        """
        chunks, start = [], 0
        while len(self.ids) - start > size:
            end = start + size
            commas = [i + 1 for i in range(max(start, end - _COMMA_WITHIN), end) if self.commas[i]]
            words = [i + 1 for i in range(start, end) if self.words[i]]
            border = (commas or words or [end])[-1]
            chunks.append(slice(start, border))
            start = border
        return [*chunks, slice(start, len(self.ids))]


class CLIPTokenizer:
    """Byte-pair encoding as CLIP does it: lower case, white space folded, start and end tokens, padded to a length."""

    def __init__(self, tokenizer: Tokenizer, *, pad_token: str, max_length: int, where: str = "tokenizer") -> None:
        ids: dict[str, int] = {}
        for token in (START, END, pad_token):
            id_ = tokenizer.token_to_id(token)
            if id_ is None:
                raise CheckpointError(f"{where}: the vocabulary has no token {token!r}; copy or download it again")
            ids[token] = id_
        # Recognised inside a text too, as by the field's reference implementation: where "!" pads, as in SD 2.x, a "!"
        # in a prompt is the padding's id and not the word "!".
        tokenizer.add_special_tokens(list(ids))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.start, self.end, self.pad = ids[START], ids[END], ids[pad_token]
        self.max_length = max_length

    @classmethod
    def from_folder(cls, folder: Path) -> CLIPTokenizer:
        """Reads `vocab.json` and `merges.txt`, or `tokenizer.json` where those are absent.

        Raises:
            CheckpointError: files are missing or cannot be read.
        """
        settings = _read_json(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in settings:
            # Older files: SD 2.1's tokenizer_config.json names a padding token that this one corrects.
            settings |= _read_json(folder / "special_tokens_map.json")
        vocabulary, merges, whole = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"
        try:
            if vocabulary.is_file() and merges.is_file():
                tokenizer = _byte_pair_tokenizer(vocabulary, merges)
            elif whole.is_file():
                tokenizer = Tokenizer.from_file(str(whole))
            else:
                raise CheckpointError(
                    f"{folder}: neither vocab.json and merges.txt nor tokenizer.json is there; copy or download them"
                )
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(
                f"{folder}: the tokenizer cannot be read ({error}); copy or download it again"
            ) from error
        pad = settings.get("pad_token", END)
        pad = pad.get("content") if isinstance(pad, dict) else pad
        if not isinstance(pad, str):
            raise CheckpointError(f"{folder}: pad_token is {pad!r}, which is no token; copy or download it again")
        length = settings.get("model_max_length", 77)
        return cls(
            tokenizer,
            pad_token=pad,
            # Published files say 10^30 for "not set".
            max_length=length if isinstance(length, int) and 2 < length <= 10_000 else 77,
            where=str(folder),
        )

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Returns the `Tokens` of texts, `[B, max_length]`; what does not fit is cut before the end token."""
        split = [self.split(text) for text in texts]
        rows = [self.row(one.ids[: self.room]) for one in split]
        return Tokens(torch.tensor(rows, dtype=torch.int64), [one.beyond(self.room) for one in split])

    @property
    def room(self) -> int:
        """Is the number of tokens between start and end."""
        return self.max_length - 2

    def split(self, text: str) -> Split:
        """Returns all tokens of a text."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        special = {self.start, self.end, self.pad}
        return Split(
            text,
            encoding.ids,
            [start for start, _ in encoding.offsets],  # they refer to the text as given
            [
                name.endswith(_WORD_END) or id_ in special
                for name, id_ in zip(encoding.tokens, encoding.ids, strict=True)
            ],
            [name == _COMMA for name in encoding.tokens],
        )

    def row(self, ids: Sequence[int]) -> list[int]:
        """Returns `ids`, at most `room`, between the start and end tokens, padded to `max_length`."""
        row = [self.start, *ids, self.end]
        return row + [self.pad] * (self.max_length - len(row))


def _byte_pair_tokenizer(vocabulary: Path, merges: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); copy or download it again") from error
    return content if isinstance(content, dict) else {}
