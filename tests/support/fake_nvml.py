"""NVML as an object that answers like the library, with the cards that a test gives it."""

from __future__ import annotations

from types import SimpleNamespace

from diffuse.device.gpus import GIB


class Nvml:
    """NVML with the given cards: (name, uuid, total GiB, free GiB, capability)."""

    class NVMLError(Exception):
        pass

    def __init__(self, *cards: tuple[str, str, float, float, tuple[int, int]], driver: bool = True) -> None:
        self.cards = cards
        self.driver = driver
        self.open = 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        assert self.open
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        assert self.open
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        for index, card in enumerate(self.cards):
            if card[1] == uuid:
                return index
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.cards[handle][0]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.cards[handle][1]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=int(self.cards[handle][2] * GIB), free=int(self.cards[handle][3] * GIB))

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return self.cards[handle][4]

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"550.54"  # older releases of the library answer in bytes


TURING = ("NVIDIA T4", "GPU-aaaa1111-0000", 15.75, 15.0, (7, 5))
AMPERE = ("NVIDIA A10", "GPU-bbbb2222-0000", 22.5, 9.5, (8, 6))
