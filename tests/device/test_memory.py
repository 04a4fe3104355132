"""Where each component is at each moment under a memory profile.

Moves are watched without an accelerator by letting torch's `meta` device be "the device": tensors there are real to
torch, only empty. The modules below know the way back from it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_profiles import BALANCED, CPU, FULL, NEEDS, PROFILES, UNET
from torch import Tensor, nn

from diffuse.config.groups import load_group
from diffuse.device import memory as memory_module
from diffuse.device.allocator import Allocator
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.device.profile import lighter_profile, profile_batch_size
from diffuse.errors import ConfigError, RunError
from diffuse.schema import Cleanup, Determinism, Dtype, MemoryProfileConfig

COMPONENTS = ("text_encoder", "unet", "vae")
ACCELERATOR = Hardware("meta", name="Card", vram_free_gib=24.0, vram_total_gib=24.0)


class Part(nn.Module):
    """A component with a method besides forward(), and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x) * self.scale
        return result

    def decode(self, x: Tensor) -> Tensor:
        return self.forward(x) + 1

    def to(self, device: torch.device | str, **more: Any) -> Part:  # type: ignore[override]
        """Where torch has nothing to copy, coming back from `meta`, a fresh tensor will do."""
        away = any(tensor.is_meta for tensor in self.parameters()) and torch.device(device).type != "meta"
        return self.to_empty(device=device) if away else super().to(device, **more)


class Loader:
    """Loads a Part and remembers how often, and where to."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.device, torch.dtype]] = []

    def __call__(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        self.calls.append((device, dtype))
        torch.manual_seed(3)
        return Part().to("cpu").to(dtype=dtype, device=device).requires_grad_(False)


def memory_of(
    profile: MemoryProfileConfig, hw: Hardware, names: tuple[str, ...] = COMPONENTS, **more: Any
) -> tuple[Memory, dict[str, Loader]]:
    memory = Memory(profile, hw, **more)
    loaders = {name: Loader() for name in names}
    for name, loader in loaders.items():
        memory.add(name, loader, float32=name == "safety", tileable=name == "vae")
    return memory, loaders


def places(memory: Memory) -> dict[str, str]:
    """Component -> the type of the device that all its tensors are on; nothing for what is not loaded."""
    found = {}
    for name, component in memory._components.items():
        if component.module is not None:
            types = {t.device.type for t in (*component.module.parameters(), *component.module.buffers())}
            assert len(types) == 1, f"{name} is torn between {types}"
            found[name] = types.pop()
    return found


def walk(memory: Memory) -> list[dict[str, str]]:
    """Where everything is during each phase of two runs."""
    seen = []
    for name in COMPONENTS * 2:
        with memory.use(name) as module:
            assert isinstance(module, Part)
            seen.append(places(memory))
    return seen


def test_components_are_loaded_when_first_used_and_once() -> None:
    memory, loaders = memory_of(FULL, ACCELERATOR)
    assert places(memory) == {} and memory.load_seconds == 0
    with memory.use("unet"):
        assert places(memory) == {"unet": "meta"}
    assert memory.load_seconds > 0
    seconds = memory.load_seconds
    with memory.use("unet"):
        pass
    assert memory.load_seconds == seconds
    assert {name: len(loader.calls) for name, loader in loaders.items()} == {"text_encoder": 0, "unet": 1, "vae": 0}


def test_full_gpu_keeps_everything_on_the_device() -> None:
    memory, loaders = memory_of(FULL, ACCELERATOR)
    seen = walk(memory)
    assert seen[-1] == {"text_encoder": "meta", "unet": "meta", "vae": "meta"}
    assert seen[3] == seen[-1], "something left between two runs"
    assert [loader.calls for loader in loaders.values()] == [[(torch.device("meta"), torch.bfloat16)]] * 3


def test_balanced_has_one_component_on_the_device_at_a_time() -> None:
    memory, loaders = memory_of(BALANCED, ACCELERATOR)
    assert walk(memory) == [
        {"text_encoder": "cpu"},
        {"text_encoder": "cpu", "unet": "meta"},
        {"text_encoder": "cpu", "unet": "cpu", "vae": "meta"},
        {"text_encoder": "cpu", "unet": "cpu", "vae": "cpu"},
        {"text_encoder": "cpu", "unet": "meta", "vae": "cpu"},
        {"text_encoder": "cpu", "unet": "cpu", "vae": "meta"},
    ]
    assert loaders["text_encoder"].calls == [(torch.device("cpu"), torch.float32)]
    assert loaders["unet"].calls == [(torch.device("meta"), torch.bfloat16)]


def test_a_phase_ends_when_another_component_is_used() -> None:
    everything = replace(FULL, cleanup=Cleanup.phases)
    memory, _ = memory_of(everything, ACCELERATOR)
    assert [list(seen.values()).count("meta") for seen in walk(memory)] == [1] * 6


def test_unet_gpu_leaves_the_rest_on_the_cpu() -> None:
    memory, _ = memory_of(UNET, ACCELERATOR)
    assert [seen.get("unet") for seen in walk(memory)] == [None, "meta", "cpu", "cpu", "meta", "cpu"]
    assert {places(memory)[name] for name in ("text_encoder", "vae")} == {"cpu"}


def test_cpu_only_never_touches_the_device() -> None:
    memory, loaders = memory_of(CPU, ACCELERATOR)
    assert walk(memory)[-1] == dict.fromkeys(COMPONENTS, "cpu")
    assert all(loader.calls == [(torch.device("cpu"), torch.float32)] for loader in loaders.values())


def test_a_component_in_use_does_not_leave() -> None:
    memory, _ = memory_of(BALANCED, ACCELERATOR)
    with memory.use("unet"), memory.use("vae"):
        assert places(memory) == {"unet": "meta", "vae": "meta"}
    with memory.use("text_encoder"):
        pass
    with memory.use("vae"):
        assert places(memory)["unet"] == "cpu"


def test_forward_after_offload_brings_the_module_by_itself() -> None:
    """That is accelerate's hook at work, not use()."""
    memory, _ = memory_of(BALANCED, ACCELERATOR)
    with memory.use("unet") as unet:
        pass
    with memory.use("vae"):
        pass
    assert places(memory)["unet"] == "cpu" and hasattr(unet, "_hf_hook")
    assert unet(torch.zeros(1, 4, device="meta", dtype=torch.bfloat16)).is_meta
    assert places(memory)["unet"] == "meta"


@pytest.mark.parametrize("profile", [FULL, BALANCED, UNET, CPU], ids=lambda p: p.name)
def test_every_profile_gives_the_same_numbers_on_a_cpu(profile: MemoryProfileConfig) -> None:
    memory, loaders = memory_of(profile, Hardware("cpu"))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    expected = Loader()(torch.device("cpu"), torch.float32)
    for _ in range(2):
        for name in COMPONENTS:
            assert (memory.device(name).type, memory.dtype(name)) == ("cpu", torch.float32)
            with memory.use(name) as module:
                assert torch.equal(module(x), expected(x))
                assert torch.equal(module.decode(x), expected.decode(x))  # type: ignore[operator]
    assert [len(loader.calls) for loader in loaders.values()] == [1, 1, 1]
    hooked = [component.hook is not None for component in memory._components.values()]
    assert any(hooked) == (profile.cleanup is Cleanup.phases)


@pytest.mark.parametrize(
    ("hw", "profile", "half", "expected"),
    [
        (Hardware("cuda", capability=(8, 6)), BALANCED, Dtype.bfloat16, torch.bfloat16),
        (Hardware("cuda", capability=(7, 5)), BALANCED, Dtype.bfloat16, torch.float16),
        (Hardware("cuda", capability=(8, 6)), BALANCED, Dtype.float16, torch.float16),
        (Hardware("cuda", capability=(8, 6)), replace(BALANCED, half=False), Dtype.bfloat16, torch.float32),
        (Hardware("cuda", dtype=Dtype.float32), BALANCED, Dtype.bfloat16, torch.float32),
        (Hardware("cuda", dtype=Dtype.float16), replace(BALANCED, half=False), Dtype.bfloat16, torch.float16),
        (Hardware("mps"), BALANCED, Dtype.float16, torch.float16),
        (Hardware("cpu"), BALANCED, Dtype.bfloat16, torch.float32),
        (Hardware("cpu", dtype=Dtype.bfloat16), CPU, Dtype.bfloat16, torch.bfloat16),
    ],
)
def test_number_formats(
    monkeypatch: pytest.MonkeyPatch, hw: Hardware, profile: MemoryProfileConfig, half: Dtype, expected: torch.dtype
) -> None:
    monkeypatch.setattr(memory_module, "allocator_of", lambda device: Allocator())
    memory, _ = memory_of(profile, hw, (*COMPONENTS, "safety"), half_dtype=half)
    assert memory.device("unet").type == hw.device if profile is not CPU else "cpu"
    assert memory.dtype("unet") is expected
    # What a card's profile leaves on the CPU computes in float32; with hardware=cpu all is alike.
    assert memory.dtype("text_encoder") is (expected if hw.device == "cpu" else torch.float32)
    assert memory.dtype("safety") is torch.float32, "float32=True was not obeyed"


def test_strict_runs_are_unbatched() -> None:
    memory = Memory(FULL, Hardware("cpu"))
    assert (memory.batch_guidance, memory.batch_size(64, 64), memory.tiled_decode) == (True, 4, False)
    strict = Memory(FULL, Hardware("cpu", deterministic=Determinism.strict))
    assert (strict.batch_guidance, strict.batch_size(64, 64)) == (False, 1)
    unet = Memory(UNET, Hardware("cpu"))
    assert (unet.batch_guidance, unet.batch_size(64, 64), unet.tiled_decode) == (False, 1, True)


@pytest.mark.parametrize(
    ("side", "together"), [(1536, 4), (1024, 9), (768, 16), (64, 16), (4096, 1)], ids=lambda value: str(value)
)
def test_smaller_pictures_are_made_more_at_once(side: int, together: int) -> None:
    full = load_group("memory_profile")["full_gpu"]
    assert profile_batch_size(full, side, side) == together
    assert profile_batch_size(replace(full, batch_size=3), side, side) == 3, "what is given is obeyed"


class Cache(Allocator):
    """An allocator with `held` bytes in its cache, that counts how often it is emptied."""

    def __init__(self, held: int) -> None:
        self.held = held
        self.emptied = 0

    def releasable(self) -> int:
        return self.held

    def empty(self) -> None:
        self.emptied += 1


def test_the_allocator_is_told_the_budget_before_each_run() -> None:
    told: list[int | None] = []

    class Limited(Allocator):
        def limit(self, nbytes: int | None) -> None:
            told.append(nbytes)

    memory = Memory(replace(FULL, budget_gib=1.5), ACCELERATOR, allocator=Limited())
    memory.start()
    Memory(FULL, ACCELERATOR, allocator=Limited())  # lifts the limit of the run before
    assert told == [3 << 29, 3 << 29, None]


def with_cache(monkeypatch: pytest.MonkeyPatch, profile: MemoryProfileConfig, held: int) -> tuple[Memory, Cache]:
    cache = Cache(held)
    monkeypatch.setattr(memory_module, "allocator_of", lambda device: cache)
    return memory_of(profile, ACCELERATOR)[0], cache


@pytest.mark.parametrize(
    ("profile", "held", "emptied"),
    [
        (UNET, 1 << 30, 2),  # 20 steps, every 10
        (UNET, 1 << 10, 0),  # nothing to free
        (replace(UNET, cleanup_every=1), 1 << 30, 20),
        (BALANCED, 1 << 30, 0),
    ],
)
def test_cleanup_every(monkeypatch: pytest.MonkeyPatch, profile: MemoryProfileConfig, held: int, emptied: int) -> None:
    memory, cache = with_cache(monkeypatch, profile, held)
    counts = []
    for step in range(20):
        memory.after_step(step)
        counts.append(cache.emptied)
    assert counts[-1] == emptied
    if profile.cleanup_every == 10 and emptied:
        assert counts[8:10] == [0, 1], "not after the tenth step"


def test_the_cache_is_emptied_only_where_something_left(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, cache = with_cache(monkeypatch, BALANCED, 1 << 30)
    with memory.use("text_encoder"):
        pass
    with memory.use("unet"):
        pass
    assert cache.emptied == 0, "the text encoder was never on the device"
    with memory.use("vae"):
        pass
    assert cache.emptied == 1


def test_release_all_lets_go_and_the_next_use_loads_again() -> None:
    memory, loaders = memory_of(BALANCED, Hardware("cpu"))
    alive = []
    for name in COMPONENTS:
        with memory.use(name) as module:
            alive.append(weakref.ref(module))
    del module
    memory.release_all()
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3 and places(memory) == {}
    with memory.use("unet"):
        pass
    assert len(loaders["unet"].calls) == 2


def exhausted(message: str) -> Callable[[], None]:
    def fail() -> None:
        tensor = torch.zeros(4)
        FRAMES.append(weakref.ref(tensor))
        raise (torch.OutOfMemoryError if "CUDA" in message else RuntimeError)(message)

    return fail


FRAMES: list[weakref.ref[Tensor]] = []


@pytest.mark.parametrize(
    ("profile", "name", "message", "words"),
    [
        (FULL, "unet", "CUDA out of memory. Tried to allocate 20 GiB", "try memory_profile=balanced"),
        (
            UNET,
            "text_encoder",
            "DefaultCPUAllocator: can't allocate memory",
            "smaller",
        ),
        (CPU, "vae", "DefaultCPUAllocator: can't allocate memory", "programs, memory_profile.tiled_decode=true or"),
        (CPU, "unet", "DefaultCPUAllocator: can't allocate memory", "programs, memory_profile.batch_size=1 or"),
        (FULL, "vae", "MPS backend out of memory (MPS allocated: 8 GB)", "memory_profile.tiled_decode=true"),
    ],
)
def test_out_of_memory_is_one_line_of_advice(profile: MemoryProfileConfig, name: str, message: str, words: str) -> None:
    fallback = lighter_profile(profile, PROFILES, NEEDS)
    memory, loaders = memory_of(profile, ACCELERATOR, fallback=fallback)
    with pytest.raises(RunError) as error, memory.use(name):
        exhausted(message)()
    text = str(error.value)
    assert "\n" not in text and error.value.exit_status == 1
    assert f"out of memory in the {name}" in text and f"memory_profile={profile.name}" in text and words in text
    gc.collect()
    assert FRAMES.pop()() is None, "the failed frame still holds its tensors"
    # Nothing is left half moved: the next job of a sweep starts afresh.
    assert places(memory) == {}
    with memory.use(name):
        assert len(loaders[name].calls) == 2


def test_out_of_memory_while_loading() -> None:
    memory = Memory(replace(FULL, tiled_decode=False), ACCELERATOR)

    def load(device: torch.device, dtype: torch.dtype) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    memory.add("vae", load, tileable=True)
    with pytest.raises(RunError, match=r"in the vae.*tiled_decode=true"), memory.use("vae"):
        pytest.fail("the block was entered")


def test_other_errors_pass_unchanged() -> None:
    memory, _ = memory_of(FULL, Hardware("cpu"))
    with pytest.raises(RuntimeError, match="shapes") as error, memory.use("unet") as unet:
        unet(torch.zeros(1, 3))
    assert not isinstance(error.value, RunError)
    with pytest.raises(KeyError), memory.use("unet"):
        raise KeyError("x")
    assert memory._components["unet"].users == 0


def test_a_component_that_the_model_has_not() -> None:
    memory, loaders = memory_of(replace(BALANCED, on_device=["unet", "vea"]), Hardware("cpu"))
    said = "on_device names vea, which this model has not; it has text_encoder, unet, vae"
    with pytest.raises(ConfigError, match=said), memory.use("unet"):
        pytest.fail("the block was entered")
    assert loaders["unet"].calls == []


def test_peaks_are_of_the_run() -> None:
    memory, _ = memory_of(CPU, Hardware("cpu"))
    big = torch.ones(200 << 20, dtype=torch.uint8)
    during = memory.peaks()
    assert during["peak_gib"] == 0 and during["rss_peak_gib"] > 0.2
    del big
    memory.start()
    after = memory.peaks()["rss_peak_gib"]
    try:
        open("/proc/self/clear_refs", "w").close()
    except OSError:
        return  # this system counts from the process's start
    assert after < during["rss_peak_gib"] - 0.15


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_real_placement_on_a_card() -> None:
    hw = Hardware("cuda", name="card", vram_free_gib=8.0, capability=torch.cuda.get_device_capability(0))

    def load(device: torch.device, dtype: torch.dtype) -> nn.Module:
        return nn.Linear(4096, 4096, device=device, dtype=dtype).requires_grad_(False)

    memory = Memory(BALANCED, hw)
    for name in COMPONENTS:
        memory.add(name, load)
    results = []
    for _ in range(2):
        for name in COMPONENTS:
            with memory.use(name) as module:
                x = torch.ones(1, 4096, device=memory.device(name), dtype=memory.dtype(name))
                results.append(module(x).float().cpu())
                on_card = [n for n in COMPONENTS if places(memory).get(n) == "cuda"]
                assert len(on_card) <= 1 and (name == "text_encoder" or on_card == [name])
                assert torch.cuda.memory_allocated() < 40 << 20, "more than one layer is on the card"
    assert all(torch.equal(a, b) for a, b in zip(results[:3], results[3:], strict=True)), "weights changed on the way"
    assert memory.peaks()["peak_gib"] > 0.03
    memory.release_all()
    del module, x
    assert torch.cuda.memory_allocated() < 1 << 20
