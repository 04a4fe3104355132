"""Blocks that pass over the device: how many are there at each moment, and that nothing changes on the way."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from memory_profiles import BALANCED, CPU, FULL
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffuse.device import streaming
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.device.streaming import BlockStream, CopyingTransfer
from diffuse.errors import ConfigError
from diffuse.layers.packed import Conv1d
from diffuse.schema import Compile, MemoryProfileConfig

WIDTH, BLOCKS = 32, 6
BLOCK_BYTES = 4 * (WIDTH * WIDTH + WIDTH)
CPU_HARDWARE = Hardware("cpu")
STREAMED = replace(FULL, name="streaming", streamed=["*"])


class Block(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x) + x
        return result if self.scale is None else result * self.scale


class Net(nn.Module):
    """Layers around a row of blocks, one of which holds another, and an order that can be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.blocks[1].linear = Block()  # type: ignore[union-attr]
        del self.blocks[2].scale
        self.blocks[2].register_buffer("scale", torch.full((WIDTH,), 0.5), persistent=False)  # type: ignore[operator]
        self.order = list(range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for index in self.order:
            x = self.blocks[index](x)
        return x


def net() -> Net:
    torch.manual_seed(3)
    return Net().requires_grad_(False).eval()


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that were made inside and are still alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and func is torch.ops.aten.empty_like.default:  # the copies of weights
                storage = tensor.untyped_storage()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return result

    def _gone(self, nbytes: int) -> None:
        self.now -= nbytes


@pytest.mark.usefixtures("copying")
@pytest.mark.parametrize("resident", [0, 1, 3, BLOCKS, 1000])
def test_the_result_is_that_of_a_resident_module_and_memory_that_of_the_blocks_allowed(resident: int) -> None:
    expected_by = net()
    x = torch.randn(2, WIDTH)
    module = net()
    before = {name: (value.data_ptr(), value.clone()) for name, value in module.state_dict().items()}
    with LiveBytes() as live:
        stream = BlockStream(module, (Block,), torch.device("cpu"), resident)
        stream.arrive()
        for _ in range(3):
            assert torch.equal(module(x), expected_by(x))
        kept = min(resident, BLOCKS)
        assert stream.present_blocks == kept
        largest = min(kept + 1, BLOCKS)
        # The entry is there all the time. The block with another inside has as much as the others; one has a buffer.
        assert (1 + kept) * BLOCK_BYTES <= live.now <= live.peak <= (1 + largest) * BLOCK_BYTES + 4 * WIDTH
        stream.leave()
        gc.collect()
        assert live.now == 0
    after = module.state_dict()
    assert all(
        after[name].data_ptr() == place and torch.equal(after[name], value) for name, (place, value) in before.items()
    )


def test_what_is_not_a_block_is_on_the_device_all_the_time() -> None:
    module = net()
    stream = BlockStream(module, (Block,), torch.device("meta"), 2)
    places = lambda: [all(t.is_meta for t in block.parameters()) for block in module.blocks]  # noqa: E731
    stream.arrive()
    assert module.entry.weight.is_meta and places() == [True, True, *[False] * 4]
    seen: list[list[bool]] = []
    for block in module.blocks:
        block.register_forward_hook(lambda *_: seen.append(places()))  # after the stream's own: that block has left
    module(torch.empty(1, WIDTH, device="meta"))
    assert seen == [[True, True, *[False] * 4]] * BLOCKS
    stream.leave()
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


class Ahead(CopyingTransfer):
    """Copies on the CPU, ahead as a card's, and a list of them."""

    looks_ahead = True
    numbers: ClassVar[dict[int, int]] = {}
    copied: ClassVar[list[int]] = []

    def prepare(self, blocks: list[Any]) -> None:
        self.copied.clear()
        self.numbers.update({id(block): number for number, block in enumerate(blocks)})

    def copy(self, block: Any) -> None:
        self.copied += [self.numbers[id(block)]] if id(block) in self.numbers else []
        super().copy(block)


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets weights be copied to a CPU as they are to another device, so that what comes back can be compared."""
    monkeypatch.setattr(streaming, "transfer_to", CopyingTransfer)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets a CPU look ahead as a card does; the numbers of the blocks as they are copied."""
    monkeypatch.setattr(streaming, "transfer_to", Ahead)
    return Ahead.copied


def test_the_next_block_is_copied_before_it_is_called(ahead: list[int]) -> None:
    module, expected_by = net(), net()
    stream = BlockStream(module, (Block,), torch.device("cpu"), 0)
    stream.arrive()
    x = torch.randn(1, WIDTH)
    called: list[tuple[int, list[int]]] = []
    for number, block in enumerate(module.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: called.append((number, list(ahead))))
    for _ in range(3):
        assert torch.equal(module(x), expected_by(x))
        assert stream.present_blocks <= 2
    # In the first pass each is copied when it is called. Then the one after it is, and the first after the last.
    assert [made[-1] for number, made in called[:BLOCKS]] == list(range(BLOCKS))
    assert [made[-1] for number, made in called[BLOCKS:-1]] == [(n + 1) % BLOCKS for n, _ in called[BLOCKS:-1]]
    assert len(ahead) <= 3 * BLOCKS + 1, "a block was copied twice for one call"


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [0, 2, 4], [3, 3, 3], [1, 5, 1, 5, 0]])
@pytest.mark.parametrize("transfer", ["copying", "ahead"])
def test_the_order_may_change_between_calls(request: pytest.FixtureRequest, order: list[int], transfer: str) -> None:
    request.getfixturevalue(transfer)
    module, expected_by = net(), net()
    stream = BlockStream(module, (Block,), torch.device("cpu"), 1)
    stream.arrive()
    x = torch.randn(1, WIDTH)
    for chosen in (list(range(BLOCKS)), order, order, list(range(BLOCKS))):
        module.order = expected_by.order = chosen
        assert torch.equal(module(x), expected_by(x))
        assert stream.present_blocks <= 3


@pytest.mark.usefixtures("copying")
def test_a_call_that_fails_leaves_nothing_behind() -> None:
    module, expected_by = net(), net()
    stream = BlockStream(module, (Block,), torch.device("cpu"), 0)
    stream.arrive()
    failing = module.blocks[3].register_forward_hook(lambda *_: 1 / 0)
    x = torch.randn(1, WIDTH)
    with pytest.raises(ZeroDivisionError):
        module(x)
    failing.remove()
    assert torch.equal(module(x), expected_by(x))
    assert stream.present_blocks == 0


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv1d(512, 512, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x)
        return result


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """What is there already is left out of `gc.get_objects`, which is most of a million."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("resident", [0, 1, 2])
def test_packed_weights_are_dropped_after_their_block(resident: int, only_new_objects: None) -> None:
    torch.manual_seed(3)
    module = nn.Sequential(*(Packing() for _ in range(4))).requires_grad_(False)
    published = [part.conv.weight for part in module]  # type: ignore[union-attr]
    x = torch.randn(1, 512, 4)
    expected = copy.deepcopy(module)(x)
    stream = BlockStream(module, (Packing,), torch.device("cpu"), resident)
    stream.arrive()
    packed: list[int] = []
    for part in module:
        part.register_forward_hook(lambda *_: packed.append(len(packed_weights())))
    for _ in range(2):
        assert torch.equal(module(x), expected)
    gc.collect()
    assert len(packed_weights()) == resident and max(packed) <= resident + 1
    stream.leave()
    assert not packed_weights()
    assert all(part.conv.weight is weight for part, weight in zip(module, published, strict=True))  # type: ignore[union-attr]


def packed_weights() -> list[Tensor]:
    """Those that are alive."""
    return [each for each in gc.get_objects() if isinstance(each, nn.Parameter) and each.is_mkldnn]


def memory_of(profile: MemoryProfileConfig, hw: Hardware = CPU_HARDWARE) -> Memory:
    def load(device: torch.device, dtype: torch.dtype) -> nn.Module:
        assert device == torch.device("cpu") or not memory.profile.streamed
        return net().to(dtype)

    memory = Memory(profile, hw)
    memory.add("unet", load, blocks=(Block,))
    memory.add("vae", load, blocks=(Block,))
    return memory


def test_a_profile_decides_what_streams() -> None:
    memory = memory_of(replace(STREAMED, streamed=["unet"], resident_blocks=2))
    streams: Callable[[str], Any] = lambda name: memory._components[name].stream  # noqa: E731
    with memory.use("unet"), memory.use("vae"):
        assert streams("unet").present_blocks == 2 and streams("vae") is None
    memory.release_all()
    assert streams("unet") is None


def test_a_streamed_component_leaves_when_its_phase_ends() -> None:
    memory = memory_of(replace(BALANCED, name="streaming", streamed=["unet", "vae"], resident_blocks=2))
    with memory.use("unet"):
        pass
    with memory.use("vae"):
        assert memory._components["unet"].stream.present_blocks == 0  # type: ignore[union-attr]
    x = torch.randn(1, WIDTH)
    with memory.use("unet") as module:
        assert memory._components["unet"].stream.present_blocks == 2  # type: ignore[union-attr]
        assert torch.equal(module(x), net()(x))


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (replace(STREAMED, streamed=["unett"]), "memory_profile.streamed names unett, which this model has not"),
        (replace(BALANCED, streamed=["text_encoder"]), "names text_encoder, which this model has not"),
        (replace(BALANCED, on_device=["vae"], streamed=["unet"]), "which memory_profile.on_device does not"),
        (replace(CPU, streamed=["*"]), "memory_profile.on_device is empty"),
        (replace(FULL, resident_blocks=3), "resident_blocks has no effect without memory_profile.streamed"),
    ],
)
def test_what_does_not_go_together_is_refused(profile: MemoryProfileConfig, message: str) -> None:
    memory = memory_of(profile)
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        memory.check()


def test_a_component_without_blocks_and_compiled_blocks_are_refused() -> None:
    memory = Memory(replace(STREAMED, streamed=["unet"]), Hardware("cpu"))
    with pytest.raises(ConfigError, match="unet, which has no repeated blocks"):
        memory.add("unet", lambda device, dtype: nn.Linear(1, 1))
    compiled = memory_of(STREAMED, replace(Hardware("cpu"), compile=Compile.regional))
    with pytest.raises(ConfigError, match="cannot compile blocks that stream"):
        compiled.check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("resident", [0, 2])
def test_a_card_holds_the_resident_blocks_and_two(resident: int) -> None:
    torch.manual_seed(3)
    module = nn.Sequential(*(Block(2048) for _ in range(12))).requires_grad_(False)
    x = torch.randn(8, 2048, device="cuda")
    block_bytes = 4 * (2048 * 2048 + 2048)
    stream = BlockStream(module, (Block,), torch.device("cuda", 0), resident)
    stream.arrive()
    torch.cuda.reset_peak_memory_stats()
    results = [module(x) for _ in range(5)]
    peak = torch.cuda.max_memory_allocated()
    stream.leave()
    assert all(torch.equal(result, results[0]) for result in results)
    assert peak < (resident + 2.5) * block_bytes
    assert torch.equal(module.to("cuda")(x), results[0])
