"""The files of a CLIP tokenizer, in every layout in which checkpoints and trainers publish them.

The words are in `vocab.json` and `merges.txt`, or in `tokenizer.json`, which is read where both are there. Words that
somebody added, such as those of textual inversion, are in `added_tokens_decoder` of `tokenizer_config.json`. Where that
is absent, they are in `added_tokens.json`, in `tokenizer.json` and in `special_tokens_map.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from diffuse.errors import CheckpointError

VOCABULARY = Path(__file__).parents[1] / "single_file" / "vocabulary"
"""The words of the published models, for single files, which hold none. Its folders differ in the padding."""
START, END = "<|startoftext|>", "<|endoftext|>"
_DEFAULTS: dict[str, str | None] = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # how an added word is found in a text
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of a tokenizer's files."""

    vocabulary: Mapping[str, int]  # with the added words
    merges: list[tuple[str, str]]
    added: list[AddedToken]  # found in a text before it is split into words
    named: Mapping[str, str]  # "bos_token", "eos_token", "unk_token" and "pad_token" -> the word
    max_length: int


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads a tokenizer's folder.

    Raises:
        CheckpointError: files are missing or cannot be read.
    """
    settings = read_settings(folder / "tokenizer_config.json")
    for key in ("padding_side", "truncation_side"):
        if settings.get(key, "right") not in ("right", None):
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {key}={settings[key]} is not implemented")
    vocabulary, merges, stored = _words(folder)
    if "added_tokens_decoder" in settings:
        published = _numbered(settings["added_tokens_decoder"], folder / "tokenizer_config.json")
    else:
        # SD 2.1's tokenizer_config.json names a padding token that this one corrects.
        corrected = settings | read_settings(folder / "special_tokens_map.json")
        # Special without a name are here those of tokenizer_config.json alone, as in transformers.
        special = {token_text(corrected.get(key)) for key in _NAMED} | {
            token_text(value) for value in _further(settings)
        }
        settings = corrected
        published = _listed(special, folder / "added_tokens.json") | stored
    named = _DEFAULTS | {key: token_text(settings[key]) for key in _NAMED if key in settings}
    if named["unk_token"] is None:
        named["unk_token"] = END
    numbers = {entry["content"]: number for number, entry in published.items()}
    for key in _DEFAULTS:
        word = named[key]
        if word is None:
            raise CheckpointError(f"{folder}: {key} is {settings[key]!r}, which is no token; {_AGAIN}")
        if word not in vocabulary and word not in numbers:
            raise CheckpointError(f"{folder}: the vocabulary has no token {word!r}; {_AGAIN}")

    # Of two descriptions of a word, the first counts; a word with a name is special, whatever its description says.
    with_name = {word for word in named.values() if word}
    entries = [published[number] for number in sorted(published)]
    for value in [settings.get(key, named[key]) for key in named] + _further(settings):
        if (word := token_text(value)) and word not in numbers:
            entries.append({**(value if isinstance(value, dict) else {}), "content": word, "special": True})
    length = settings.get("model_max_length", 77)
    return TokenizerFiles(
        _number_words(vocabulary, numbers, [entry["content"] for entry in entries], folder),
        merges,
        [_added_token(entry, with_name) for entry in entries],
        {key: str(named[key]) for key in _DEFAULTS},
        # Published files say 10^30 for "not set".
        length if isinstance(length, int) and 2 < length <= 10_000 else 77,
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; none where there is no file.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())  # in UTF-8 or what a byte-order mark says
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); {_AGAIN}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is not a JSON object; {_AGAIN}")
    return content


def _words(folder: Path) -> tuple[Mapping[str, int], list[tuple[str, str]], dict[int, dict[str, Any]]]:
    """Returns the vocabulary, the merges, and the added words of `tokenizer.json` by their numbers."""
    vocabulary, merges, whole = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"
    if whole.is_file():
        content = read_settings(whole)
        model = content.get("model")
        words, pairs = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
        if not isinstance(words, dict) or not isinstance(pairs, list):
            raise CheckpointError(f"{whole}: the tokenizer cannot be read (no words and merges of CLIP's); {_AGAIN}")
        split = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs if pair]
        stored = content.get("added_tokens") or []
        by_number = {entry.get("id"): entry for entry in stored if isinstance(entry, dict)}
        return words, split, _numbered(by_number, whole)
    if vocabulary.is_file() and merges.is_file():
        return read_settings(vocabulary), _merges(merges), {}
    if folder.parent == VOCABULARY:
        pairs = _merges(VOCABULARY / "merges.txt")
        return _vocabulary_of(pairs), pairs, {}
    raise CheckpointError(
        f"{folder}: neither vocab.json and merges.txt nor tokenizer.json is there; copy or download them"
    )


def _vocabulary_of(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Returns the numbers of CLIP's words, which follow from its merges: the bytes, alone and at the end of a word,
    then what each merge makes, then start and end.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, for the printable bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    marks = [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(0x100 - len(printable))]
    words = [*marks, *(f"{mark}</w>" for mark in marks), *(first + second for first, second in merges), START, END]
    return {word: number for number, word in enumerate(words)}


def _merges(path: Path) -> list[tuple[str, str]]:
    """Returns the pairs of `merges.txt`, one a line behind a line with the version.

    Raises:
        CheckpointError: it cannot be read, or a line is no pair.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is not text ({error}); {_AGAIN}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#version"):
            first, separator, second = line.partition(" ")
            if not separator or " " in second:
                raise CheckpointError(f"{path}: line {number} is not two parts of a word; {_AGAIN}")
            pairs.append((first, second))
    return pairs


def _numbered(content: Any, path: Path) -> dict[int, dict[str, Any]]:
    """Returns descriptions of added words by their numbers, checked."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: its added tokens are not by number; {_AGAIN}")
    result = {}
    for key, entry in content.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key
        if not isinstance(entry, dict) or token_text(entry) is None or not _is_number(number):
            raise CheckpointError(f"{path}: {str({key: entry})[:80]} describes no added token; {_AGAIN}")
        result[number] = entry
    return result


def _listed(special: set[str | None], path: Path) -> dict[int, dict[str, Any]]:
    """Returns descriptions of the words in `added_tokens.json`, which has no more than their numbers."""
    return _numbered(
        {
            number if _is_number(number) else str(number): {
                "content": word,
                "special": word in special,
                "normalized": word not in special,
            }
            for word, number in read_settings(path).items()
        },
        path,
    )


def _number_words(
    vocabulary: Mapping[str, int], numbers: Mapping[str, int], added: list[str], folder: Path
) -> dict[str, int]:
    """Returns the vocabulary with the added words: each with its published number, or with the next that is free."""
    result = dict(vocabulary)
    taken = {number: word for word, number in result.items()}
    for word in added:
        if word in result:
            continue
        number = numbers.get(word, max(taken, default=-1) + 1)
        if number in taken:
            raise CheckpointError(
                f"{folder}: gives the words {taken[number]!r} and {word!r} the same number {number}; {_AGAIN}"
            )
        result[word], taken[number] = number, word
    return result


def _added_token(entry: Mapping[str, Any], with_name: set[str]) -> AddedToken:
    flags = {flag: entry[flag] for flag in _FLAGS if isinstance(entry.get(flag), bool)}
    if entry["content"] in with_name:
        flags["special"] = True
    return AddedToken(entry["content"], **flags)


def _further(settings: Mapping[str, Any]) -> list[Any]:
    """Returns the special words without a name."""
    value = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def token_text(value: Any) -> str | None:
    """Returns the word of a token, which files write as text or as an object."""
    word = value.get("content") if isinstance(value, dict) else value
    return word if isinstance(word, str) and word else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
