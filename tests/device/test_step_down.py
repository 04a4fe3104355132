"""Which lever goes down when memory runs out, and what is left of the error."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from memory_profiles import BALANCED, FULL, UNET

from diffuse.device.step_down import Shortage, StepDowns, clear_traceback, explain_shortage, is_out_of_memory
from diffuse.errors import OutOfMemory, RunError
from diffuse.schema import Cleanup, MemoryProfileConfig

DENOISER = Shortage("denoise", "unet", rows=5, guided=True, has_company=True, blocks=6)
CODEC = Shortage("decode", "vae", tileable=True, has_company=True, blocks=3)
ENCODER = Shortage("encode", "text_encoder", has_company=True, blocks=2)


def all_levers(profile: MemoryProfileConfig, shortage: Shortage, *, strict: bool = False) -> list[tuple[str, object]]:
    """What goes down, one after the other, until nothing is left."""
    downs = StepDowns(profile, strict=strict)
    while downs.step_down(shortage):
        pass
    assert len(downs.notes) == len(downs.events) and not any("\n" in note for note in downs.notes)
    return [(event["lever"], event["value"]) for event in downs.events]


@pytest.mark.parametrize(
    ("shortage", "levers"),
    [
        (
            DENOISER,
            [
                *(f"batch_size={n}" for n in (3, 2, 1)),
                "guidance=sequential",
                "cleanup=phases",
                *(f"resident_blocks={n}" for n in (3, 1, 0)),
            ],
        ),
        (replace(DENOISER, guided=False, rows=1), ["cleanup=phases", *(f"resident_blocks={n}" for n in (3, 1, 0))]),
        (CODEC, ["tiled_decode=True", "cleanup=phases", "resident_blocks=1", "resident_blocks=0"]),
        (
            replace(CODEC, phase="encode"),
            ["tiled_encode=True", "cleanup=phases", "resident_blocks=1", "resident_blocks=0"],
        ),
        (ENCODER, ["cleanup=phases", "resident_blocks=1", "resident_blocks=0"]),
        (replace(DENOISER, loading=True, blocks=None), ["cleanup=phases", "resident_blocks=0"]),
        (Shortage("encode", None, has_company=True), ["cleanup=phases"]),
        (Shortage("decode", None), []),
    ],
)
def test_levers_in_order(shortage: Shortage, levers: list[str]) -> None:
    assert [f"{name}={value}" for name, value in all_levers(FULL, shortage)] == levers


def test_what_a_profile_has_down_already() -> None:
    assert all_levers(UNET, replace(CODEC, blocks=0)) == []
    assert [name for name, _ in all_levers(UNET, DENOISER)][:4] == ["batch_size"] * 3 + ["resident_blocks"]
    streamed = replace(BALANCED, streamed=["*"], resident_blocks=20)
    assert all_levers(streamed, replace(DENOISER, rows=1, guided=False))[0] == ("resident_blocks", 3)
    assert ("guidance", "sequential") not in all_levers(FULL, DENOISER, strict=True)


def test_step_down_can_be_forbidden() -> None:
    assert all_levers(replace(FULL, step_down=False), DENOISER) == []


def test_a_lever_stays_down_and_events_are_of_one_run() -> None:
    downs = StepDowns(FULL, strict=False)
    for _ in range(3):
        downs.end_step()
    assert downs.step_down(DENOISER) == "batch_size" and downs.step_down(replace(CODEC, component="refiner.vae"))
    assert [(event["component"], event["step"]) for event in downs.events] == [("unet", 3), ("refiner.vae", 3)]
    assert "at step 4" in downs.notes[0] and "memory_profile.batch_size=3" in downs.notes[0]
    downs.start()
    assert (downs.events, downs.notes, downs.batch_limit, downs.profile.tiled_decode) == ([], [], 3, True)
    assert downs.describe() == ", even with memory_profile.batch_size=3, memory_profile.tiled_decode=true"


def test_a_recorded_run_is_followed() -> None:
    first = StepDowns(FULL, strict=False)
    first.step_down(ENCODER)
    first.end_step()
    first.step_down(DENOISER)
    first.end_step()
    first.end_decoding()
    first.step_down(CODEC)
    again = StepDowns(FULL, strict=False)
    again.step_down(replace(DENOISER, rows=2))  # of an earlier run
    again.replay(first.events)
    again.start()
    seen = []
    for end in (again.end_step, again.end_step, again.end_decoding, again.end_decoding):
        again.reach()
        seen.append((again.batch_limit, again.profile.tiled_decode))
        end()
    assert seen == [(None, False), (3, False), (3, False), (3, True)]
    assert again.events == [event for event in first.events if event["lever"] != "cleanup"]
    assert again.profile.cleanup is Cleanup.none and len(again.notes) == 2


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
        (RunError("the vae gave NaN"), False),
    ],
)
def test_errors_that_are_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def failing(held: list[weakref.ref[torch.Tensor]]) -> None:
    tensor = torch.zeros(8)
    held.append(weakref.ref(tensor))

    def inner() -> None:  # whose closure holds the tensor, too
        raise MemoryError(str(tensor.shape))

    inner()


def test_an_error_holds_no_tensors() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    with pytest.raises(OutOfMemory, match="memory ran out while it was tried") as caught:
        explain_shortage("it was tried", lambda: failing(held))
    gc.collect()
    assert [reference() for reference in held] == [None] and caught.value.exit_status == 1
    try:
        try:
            failing(held)
        except MemoryError as error:
            raise RunError("no room") from error
    except RunError as error:
        clear_traceback(error)
        kept = error
    gc.collect()
    assert [reference() for reference in held] == [None, None] and isinstance(kept.__cause__, MemoryError)
    with pytest.raises(ZeroDivisionError):
        explain_shortage("it was tried", lambda: 1 / 0)
