"""Memory profiles like those that ship, with thresholds that only tests use."""

from __future__ import annotations

from diffuse.schema import Cleanup, GuidanceMode, MemoryProfileConfig

ALL = ["*"]
FULL = MemoryProfileConfig(name="full_gpu", on_device=ALL, batch_size=4)
BALANCED = MemoryProfileConfig(name="balanced", on_device=["unet", "vae"], cleanup=Cleanup.phases, batch_size=2)
UNET = MemoryProfileConfig(
    name="unet_gpu",
    on_device=["unet"],
    cleanup=Cleanup.phases,
    cleanup_every=10,
    guidance=GuidanceMode.sequential,
    tiled_decode=True,
    max_side=1024,
)
CPU = MemoryProfileConfig(name="cpu_only", half=False, guidance=GuidanceMode.sequential, max_side=768)
PROFILES = {"auto": MemoryProfileConfig(name="auto"), **{p.name: p for p in (FULL, BALANCED, UNET, CPU)}}
NEEDS = {"full_gpu": 16.0, "balanced": 10.0, "unet_gpu": 6.0, "cpu_only": 0.0}
