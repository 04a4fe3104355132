"""CLIP's tokenizer on the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from diffuse.errors import CheckpointError
from diffuse.models.text_encoder.clip_tokenizer_files import TokenizerFiles, read_tokenizer_files

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


def vector_names(word: str, count: int) -> list[str]:
    """Returns the names of an added word's vectors, as diffusers has them: `<cat>`, `<cat>_1`, `<cat>_2`."""
    return [word, *(f"{word}_{number}" for number in range(1, count))]


class CLIPTokenizer:
    """Byte-pair encoding as CLIP does it: lower case, white space folded, start and end tokens, padded to a length.

    Added words, such as the start and end tokens, are found inside a text too, as by the field's reference
    implementation: where "!" pads, as in SD 2.x, a "!" in a prompt is the padding's id and not the word "!". Those that
    the files call normalized are found whatever their case.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self.tokenizer = _byte_pair_tokenizer(files)
        self.tokenizer.add_tokens(files.added)
        self.start, self.end, self.pad = (
            files.vocabulary[files.named[name]] for name in ("bos_token", "eos_token", "pad_token")
        )
        self.max_length = files.max_length
        self.vocab_size = max(files.vocabulary.values()) + 1
        self._added = {token.content: files.vocabulary[token.content] for token in files.added}
        self._files = files
        self._whole: dict[int, Sequence[int]] = {}  # first vector of a word that was learned -> the others

    @classmethod
    def from_folder(cls, folder: Path) -> CLIPTokenizer:
        """Reads a tokenizer's folder, in any layout that `read_tokenizer_files` knows.

        Raises:
            CheckpointError: files are missing or cannot be read.
        """
        try:
            return cls(read_tokenizer_files(folder))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(
                f"{folder}: the tokenizer cannot be read ({error}); copy or download it again"
            ) from error

    def has_word(self, word: str) -> bool:
        """Tells whether a word is one token, or is found in a text before it is split."""
        vocabulary, lower = self._files.vocabulary, word.lower()
        return word in vocabulary or f"{lower}{_WORD_END}" in vocabulary or lower in map(str.lower, self._added)

    def with_words(self, words: Mapping[str, Sequence[int]]) -> CLIPTokenizer:
        """Returns a tokenizer that has more words, each with the numbers of its vectors.

        They are found whatever their case, and stand for all their vectors. Those of a word `<cat>` have names too,
        `<cat>`, `<cat>_1`, `<cat>_2`, as in diffusers.
        """
        files = self._files
        numbers: dict[str, int] = {}
        for word, own in words.items():
            numbers |= dict(zip(vector_names(word, len(own)), own, strict=True))
        added = [*files.added, *(AddedToken(name, normalized=True) for name in numbers)]
        tokenizer = CLIPTokenizer(replace(files, vocabulary={**files.vocabulary, **numbers}, added=added))
        tokenizer._whole = {own[0]: own[1:] for own in words.values()}
        return tokenizer

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
        """Returns all tokens of a text.

        An added word that was learned in several vectors, `<cat>`, `<cat>_1`, `<cat>_2`, stands for all of them, as in
        diffusers.
        """
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = []
        starts: list[int] = []
        words: list[bool] = []
        commas: list[bool] = []
        added = set(self._added.values())
        for name, id_, (start, end) in zip(encoding.tokens, encoding.ids, encoding.offsets, strict=True):
            # Offsets refer to the text as given. A word in another case stands for its first vector, as in diffusers.
            further: Sequence[int] = self._whole.get(id_, ())
            if id_ in added and id_ not in self._whole and name in text[start:end]:
                further = self._vectors(name)
            vectors = [id_, *further]
            ids += vectors
            starts += [start] * len(vectors)
            words += [False] * (len(vectors) - 1) + [name.endswith(_WORD_END) or id_ in added]
            commas += [name == _COMMA] * len(vectors)
        return Split(text, ids, starts, words, commas)

    def _vectors(self, word: str) -> list[int]:
        """Returns the ids of an added word's further vectors."""
        ids: list[int] = []
        while (further := self._added.get(f"{word}_{len(ids) + 1}")) is not None:
            ids.append(further)
        return ids

    def row(self, ids: Sequence[int]) -> list[int]:
        """Returns `ids`, at most `room`, between the start and end tokens, padded to `max_length`."""
        row = [self.start, *ids, self.end]
        return row + [self.pad] * (self.max_length - len(row))


def _byte_pair_tokenizer(files: TokenizerFiles) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            vocab=dict(files.vocabulary),
            merges=files.merges,
            end_of_word_suffix="</w>",
            unk_token=files.named["unk_token"],
        )
    )
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
