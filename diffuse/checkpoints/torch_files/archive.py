"""The zip that `torch.save` and TorchScript write: where its records lie in the file. Nothing is unpacked.

Source: the notes on serialization in PyTorch's documentation, and PKWARE's APPNOTE for the format of a zip.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diffuse.checkpoints.torch_files.unpickle import BoundedReader
from diffuse.errors import CheckpointError

MAGIC = b"PK\x03\x04"
DATA = "data/"
"""The folder of the numbers themselves."""
_RECORDS = ("data.pkl", "constants.pkl", "byteorder")  # the others, such as code, are never looked at
_MOST_LISTED_BYTES = 8 << 20  # of a zip's table of contents; the largest published files need a twentieth
_MOST_PICKLED_BYTES = 64 << 20
_LOCAL_HEADER = struct.Struct("<4s22x2H")
_UTF8 = 0x800
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Record:
    """Says where a record's bytes lie: `start` counts from the beginning of the file."""

    start: int
    nbytes: int


@dataclass(frozen=True)
class Archive:
    """A file whose records have been checked; they are named without the one folder that all lie in.

    Only those that weights need are among them.
    """

    path: Path
    name: str
    records: Mapping[str, Record]

    def bytes_of(self, record: str) -> bytes:
        """Returns the bytes of a small record.

        Raises:
            CheckpointError: it is larger than any published one.
            OSError: the file cannot be read.
        """
        place = self.records[record]
        if place.nbytes > _MOST_PICKLED_BYTES:
            raise CheckpointError(f"{self.name}: its {record} is larger than that of any model; it is refused")
        with self.path.open("rb") as file:
            file.seek(place.start)
            return file.read(place.nbytes)


def read_archive(path: Path, name: str) -> Archive:
    """Finds the records of a zip.

    Raises:
        CheckpointError: it is damaged, cut short, compressed or encrypted, its records lie in one another or under
            names that lead elsewhere, or it is a zip of something else.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        bounded: Any = BoundedReader(file, _MOST_LISTED_BYTES)
        try:
            listed = zipfile.ZipFile(bounded).infolist()
        except (zipfile.BadZipFile, ValueError, EOFError, struct.error, NotImplementedError):
            raise CheckpointError(
                f"{name}: is cut short, or its table of contents is damaged; copy or download it again"
            ) from None
        tops = {info.orig_filename.partition("/")[0] for info in listed}
        records: dict[str, Record] = {}
        for info in listed:
            _check_entry(info.orig_filename, name)
            record = info.orig_filename.partition("/")[2]
            if record in records:
                raise CheckpointError(f"{name}: has two records {record:.60}; do not use it")
            if record in _RECORDS or record.startswith(DATA):
                records[record] = _find(file, info, size, name)
    end = 0
    for place in sorted(records.values(), key=lambda place: place.start):
        if place.start < end:
            raise CheckpointError(f"{name}: has records that lie in one another; do not use it")
        end = place.start + place.nbytes
    if len(tops) != 1 or "data.pkl" not in records:
        raise CheckpointError(f"{name}: is a zip of something else than weights; unpack it, and give what is in it")
    return Archive(path, name, records)


def _check_entry(entry: str, name: str) -> None:
    if entry.startswith("/") or "\\" in entry or "\0" in entry or ".." in entry.split("/"):
        raise CheckpointError(f"{name}: has a record {entry[:60]!r}, which leads out of it; do not use it")


def _find(file: BinaryIO, info: zipfile.ZipInfo, size: int, name: str) -> Record:
    """Returns where the bytes of a record lie, of which a zip says so at the record itself."""
    entry = info.orig_filename
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & _ENCRYPTED:
        raise CheckpointError(
            f"{name}: its record {entry:.60} is compressed or encrypted, which PyTorch does not do; unpack it and give "
            "what is in it, or download it again"
        )
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    expected = entry.encode("utf-8" if info.flag_bits & _UTF8 else "cp437", "replace")
    if len(header) == _LOCAL_HEADER.size:
        magic, name_length, more = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + more
        if magic == MAGIC and file.read(name_length) == expected and start + info.file_size <= size:
            return Record(start, info.file_size)
    raise CheckpointError(f"{name}: its record {entry:.60} is not where it should be; copy or download it again")
