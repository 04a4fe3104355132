"""Fields of the configuration that list files, `lora` and `embedding`: each a text, or fields by name. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from diffuse.errors import ConfigError

MOST_FILES = 100  # at once; a list that is longer is a mistake
_PLAIN = re.compile(r"[\w./~@+-][\w./~@+:-]*")  # which Hydra reads as a text in braces, too


def typed_text(text: str) -> str:
    """Returns a text as one types it in braces: in quotes, unless it is a plain word."""
    if _PLAIN.fullmatch(text):
        return text
    quoted = re.sub(r"([\\\"])", r"\\\1", text)
    return f'"{quoted}"'


class FileSetting(Protocol):
    """One file of a list, with its fields."""

    @property
    def source(self) -> str:
        """Is the file, as the user named it."""
        ...

    def short(self) -> str:
        """Returns the setting as one types it."""
        ...

    def as_values(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        ...


@dataclass(frozen=True)
class FileList:
    """A field that lists files.

    Args:
        name: of the field, such as `lora`.
        fields: of one file.
        read_one: reads a text, or fields by name, of the file at a place such as `lora.0`.
        example: of an override.
        field_example: of a field but `source`, as in braces.
        words: what the files are called in messages.
        later: fields that earlier records and sweeps lack, which are left out of `values` where they are null.
    """

    name: str
    fields: tuple[str, ...]
    read_one: Callable[[Any, str], FileSetting]
    example: str
    field_example: str
    words: str
    later: tuple[str, ...] = ()

    def read(self, value: Any) -> tuple[Any, ...]:
        """Returns the settings of a configuration's value: null, a text, fields by name, or a list of these.

        Raises:
            ConfigError: it is something else, or a field is wrong.
        """
        if value is None:
            return ()
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if len(items) > MOST_FILES:
            raise ConfigError(f"{self.name}: has {len(items)} files; {MOST_FILES} are the most")
        return tuple(self.read_one(item, f"{self.name}.{index}") for index, item in enumerate(items))

    def read_config(self, cfg: DictConfig | Mapping[str, Any]) -> tuple[Any, ...]:
        """Returns the settings that a configuration has in this field.

        Raises:
            ConfigError: as `read`.
        """
        value = cfg[self.name]
        return self.read(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)

    def values(self, value: Any) -> list[dict[str, Any]] | None:
        """Returns a configuration's value with all fields by name; None where there are no files.

        Raises:
            ConfigError: as `read`.
        """
        listed = [each.as_values() for each in self.read(value)]
        for values in listed:
            for name in self.later:
                if values[name] is None:
                    del values[name]
        return listed or None

    def short(self, value: Any) -> str:
        """Returns a configuration's value as one types it.

        Raises:
            ConfigError: as `read`.
        """
        texts = [each.short() for each in self.read(value)]
        if not texts:
            return "null"
        return texts[0] if len(texts) == 1 and not texts[0].startswith("{") else f"[{', '.join(texts)}]"

    def is_source(self, key: str) -> bool:
        """Tells whether an override's name is that of one file, such as `lora.0.source`."""
        match = self._key.fullmatch(key)
        return match is not None and match["field"] == "source"

    def is_text(self, key: str) -> bool:
        """Tells whether an override's name is that of a field which is taken as it is typed, such as a file."""
        match = self._key.fullmatch(key)
        return match is not None and match["field"] in ("source", "token")

    def check_key(self, key: str, override: str, overrides: Sequence[str]) -> None:
        """Checks an override of one field, such as `lora.0.weight`.

        Args:
            key: its name.
            override: as it was typed.
            overrides: all of the command, of which one says which files there are, if no file of the user's does.

        Raises:
            ConfigError: there is no such field, or no file of that number.
        """
        match = self._key.fullmatch(key)
        if match is None:
            raise ConfigError(
                f"{override}: should be {self.name}.0.FIELD, where FIELD is one of {', '.join(self.fields)}"
            )
        files = [each.partition("=")[2] for each in overrides if each.startswith(f"{self.name}=")]
        if int(match["index"]) > 0 and files and not files[-1].lstrip().startswith(("[", "choice", "$")):
            raise ConfigError(f"{override}: {self.name} has one file, which is {self.name}.0")

    @cached_property
    def _key(self) -> re.Pattern[str]:
        fields = "|".join(self.fields)
        return re.compile(rf"{self.name}\.(?P<index>\d+)\.(?P<field>{fields})(?P<block>(?<=blocks)\..+)?")


def check_fields(item: Any, where: str, forms: str, fields: Sequence[str], words: str) -> Mapping[str, Any]:
    """Returns the fields of a file by name.

    Args:
        item: what stands at the place `where`, such as `lora.0`.
        forms: in which a file may be written; for the message.
        fields: that there are.
        words: what such a file is called.

    Raises:
        ConfigError: they are no fields by name, or there is no such field.
    """
    if not isinstance(item, Mapping):
        raise ConfigError(f"{where}={item}: should be {forms}")
    for name in item:
        if name not in fields:
            raise ConfigError(f"{where}.{name}: there is no such field; {words} has {', '.join(fields)}")
    return item


def check_source(source: Any, where: str, example: str) -> str:
    """Returns a file's source.

    Raises:
        ConfigError: it is no name of a file.
    """
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(f"{where}.source: should be a file; write {example}")
    return source
