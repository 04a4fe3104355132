"""CLIP's tokenizer on the `tokenizers` library, from either layout in which checkpoints publish it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from diffuse.errors import CheckpointError

START, END = "<|startoftext|>", "<|endoftext|>"

# Words, single digits and runs of other marks are cut apart before any merge: "cat," is "cat" and ",".
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens(NamedTuple):
    """`ids` `[B, T]` int64, padded; `cut`, for each text the end that did not fit, or an empty string."""

    ids: Tensor
    cut: list[str]


class CLIPTokenizer:
    """Byte-pair encoding as CLIP does it: lower case, white space folded, start and end tokens, padded to a length."""

    def __init__(self, tokenizer: Tokenizer, *, pad_token: str, max_length: int, where: str = "tokenizer") -> None:
        ids = {token: tokenizer.token_to_id(token) for token in (START, END, pad_token)}
        for token, id_ in ids.items():
            if id_ is None:
                raise CheckpointError(f"{where}: the vocabulary has no token {token!r}; copy or download it again")
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
        """Texts to `Tokens` of `max_length` each; what does not fit is cut before the end token."""
        rows, cut = [], []
        room = self.max_length - 2
        for text in texts:
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
            ids = encoding.ids
            # Offsets refer to the text as given, so that the user is shown their own words.
            cut.append(text[encoding.offsets[room][0] :] if len(ids) > room else "")
            row = [self.start, *ids[:room], self.end]
            rows.append(row + [self.pad] * (self.max_length - len(row)))
        return Tokens(torch.tensor(rows, dtype=torch.int64), cut)


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
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); copy or download it again") from error
    return content if isinstance(content, dict) else {}
