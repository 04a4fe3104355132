"""Zips that are not what they say are refused in a line; nothing is unpacked."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import torch
import torch_archives
from checkpoint_files import message

from diffuse.checkpoints.torch_files.archive import read_archive


def saved(folder: Path) -> Path:
    file = folder / "good.ckpt"
    torch.save({"a": torch.arange(64.0), "b": torch.ones(3)}, file)
    return file


def test_records_lie_where_they_are_said_to(tmp_path: Path) -> None:
    file = saved(tmp_path)
    archive = read_archive(file, "FILE")
    assert set(archive.records) == {"data.pkl", "data/0", "data/1", "byteorder"}
    place = archive.records["data/1"]
    assert file.read_bytes()[place.start : place.start + place.nbytes] == torch.ones(3).numpy().tobytes()
    shifted = tmp_path / "shifted.ckpt"
    shifted.write_bytes(b"#!/bin/sh\nexit\n" + file.read_bytes())
    assert read_archive(shifted, "FILE").bytes_of("data/1") == archive.bytes_of("data/1")


def refused(file: Path, said: str) -> None:
    assert said in message(lambda: read_archive(file, "FILE"))


def test_bombs(tmp_path: Path) -> None:
    """Compressed records, a table of contents without end, records in one another, a zip in a zip."""
    file, hostile = saved(tmp_path), tmp_path / "hostile.ckpt"
    tracemalloc.start()
    zeros = bytes(64 << 20)
    torch_archives.rewrite(file, hostile, lambda name, data: zeros if "/data/" in name else data, zipfile.ZIP_DEFLATED)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    refused(hostile, "is compressed or encrypted")
    assert tracemalloc.get_traced_memory()[1] - before < 10 << 20
    tracemalloc.stop()

    data = bytearray(file.read_bytes())
    table = data.rindex(b"PK\x06\x06")
    data[table + 40 : table + 48] = (1 << 31).to_bytes(8, "little")  # the size of the table of contents
    hostile.write_bytes(data)
    refused(hostile, "table of contents is damaged")

    data = bytearray(file.read_bytes())
    entries = [place for place in range(len(data)) if data[place : place + 4] == b"PK\x01\x02"]
    records = {bytes(data[place + 46 : place + 46 + data[place + 28]]): place for place in entries}
    first, second = records[b"good/data/0"], records[b"good/data/1"]
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # where it lies
    hostile.write_bytes(data)
    refused(hostile, "is not where it should be")
    for place in (first, second):
        data[place + 20 : place + 28] = (2 << 20).to_bytes(4, "little") * 2  # its size
    hostile.write_bytes(data)
    refused(hostile, "is not where it should be")

    with zipfile.ZipFile(hostile, "w") as nested:
        nested.write(file, "good/data.zip")
    refused(hostile, "is a zip of something else than weights")


def test_records_in_one_another(tmp_path: Path) -> None:
    """The second record's header lies in the bytes of the first."""
    file = tmp_path / "overlapping.ckpt"
    with zipfile.ZipFile(file, "w") as outer:
        outer.writestr("top/data.pkl", b"}.")
        inner = outer.fp.tell() if outer.fp else 0
        with zipfile.ZipFile(tmp_path / "inner", "w") as other:
            other.writestr("top/data/1", b"x" * 8)
        outer.writestr("top/data/0", (tmp_path / "inner").read_bytes()[: 30 + 10 + 8])
        entry = zipfile.ZipInfo("top/data/1")
        entry.header_offset, entry.file_size, entry.compress_size, entry.CRC = inner + 30 + 10, 8, 8, 0
        outer.filelist.append(entry)
    refused(file, "lie in one another")


def test_names_that_lead_elsewhere(tmp_path: Path) -> None:
    file, hostile = saved(tmp_path), tmp_path / "hostile.ckpt"
    for name in ("../../etc/x", "/etc/x", "good/../../x", "good\\..\\x"):
        torch_archives.rewrite(file, hostile, lambda record, data: data)
        with zipfile.ZipFile(hostile, "a") as opened:
            opened.writestr(name, b"")
        refused(hostile, "leads out of it")
    torch_archives.rewrite(file, hostile, lambda record, data: data)
    with zipfile.ZipFile(hostile, "a") as opened:
        opened.writestr("good2/data/0", b"")
    refused(hostile, "two records data/0")


def test_cut_short(tmp_path: Path) -> None:
    file = saved(tmp_path)
    content = file.read_bytes()
    for length in (1, 30, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        refused(file, "is cut short")
