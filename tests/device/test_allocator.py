"""The memory of this process: what tensors free is kept for the next ones."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from textwrap import dedent

import pytest

from diffuse.device.allocator import CUDA_CONTEXT, allocator_share


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
@pytest.mark.parametrize("own", [False, True])
def test_freed_memory_is_kept_unless_the_user_has_said_otherwise(own: bool) -> None:
    script = """
        import ctypes, resource, statistics, torch
        from diffuse.device import hardware
        from diffuse.device.hardware import Hardware
        hardware.apply(Hardware("cpu", threads=1))
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would count once
        counts = []
        for _ in range(21):  # now and then the heap grows, since something else has taken a piece of the freed block
            before = faults()
            torch.ones(6 << 20)  # 24 MiB
            counts.append(faults() - before)
        print(statistics.median_low(counts))
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    env |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)} if own else {}
    done = subprocess.run([sys.executable, "-c", dedent(script)], env=env, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 5000) == own  # pages of 4 KiB


def test_the_share_of_a_card_that_a_budget_is() -> None:
    """Without the bytes that the allocator does not count."""
    card = 24 << 30
    assert allocator_share(None, card) == 1
    assert allocator_share(6 << 30, card) == (6 - 0.5) / 24
    assert allocator_share(card + CUDA_CONTEXT, card) == allocator_share(2 * card, card) == 1
    assert allocator_share(CUDA_CONTEXT // 2, card) == 0
