"""Finding NVIDIA cards, with NVML's answers given by an object that behaves like it."""

from __future__ import annotations

import pytest
from fake_nvml import AMPERE, TURING, Nvml

from diffuse.device import gpus


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, ["NVIDIA T4", "NVIDIA A10"]),
        ("1", ["NVIDIA A10"]),
        ("1,0", ["NVIDIA A10", "NVIDIA T4"]),
        (" 1 , 0", ["NVIDIA A10", "NVIDIA T4"]),
        ("GPU-bbbb", ["NVIDIA A10"]),
        ("GPU-bbbb2222-0000,0", ["NVIDIA A10", "NVIDIA T4"]),
        ("0,7,1", ["NVIDIA T4"]),  # CUDA stops at the first that is not there
        ("-1", []),
        ("", []),
        ("GPU-", []),  # could be either
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices(spec: str | None, expected: list[str]) -> None:
    environ = {} if spec is None else {"CUDA_VISIBLE_DEVICES": spec}
    assert [card.name for card in gpus.visible_gpus(Nvml(TURING, AMPERE), environ)] == expected


def test_part_of_a_card() -> None:
    """A MIG device is found by its UUID and does not answer every question."""

    class Mig(Nvml):
        def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
            raise self.NVMLError("Not Supported")

    part = ("NVIDIA A100 MIG 1g.5gb", "MIG-cccc", 4.75, 4.5, (8, 0))
    found = gpus.visible_gpus(Mig(part), {"CUDA_VISIBLE_DEVICES": "MIG-cccc"})
    assert [(card.name, card.free_gib, card.capability) for card in found] == [("NVIDIA A100 MIG 1g.5gb", 4.5, None)]
    assert gpus.visible_gpus(Mig(part), {"CUDA_VISIBLE_DEVICES": "MIG-dddd"}) == []
