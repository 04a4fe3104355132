"""Finding and describing the device, with NVML's answers given by an object that behaves like it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_nvml import AMPERE, TURING, Nvml

from diffuse.device import hardware, host
from diffuse.device.gpus import GIB
from diffuse.device.hardware import Hardware
from diffuse.errors import HardwareError
from diffuse.schema import Determinism, Device, Dtype, HardwareConfig


def cuda(monkeypatch: pytest.MonkeyPatch, uuid: str = "", capability: tuple[int, int] = (8, 6)) -> None:
    """Let torch say that it has one CUDA device."""
    properties = SimpleNamespace(name="card", uuid=uuid, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


def config(**values: Any) -> HardwareConfig:
    return HardwareConfig(name="test", **values)


def test_cpu() -> None:
    found = hardware.detect(config(device=Device.cpu), nvml=Nvml(AMPERE))
    assert (found.device, found.vram_free_gib, found.capability, found.driver) == ("cpu", None, None, None)
    assert found.name == host.cpu_name() != ""


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is an accelerator")
def test_auto_without_an_accelerator_is_the_cpu() -> None:
    assert hardware.detect(config(), nvml=Nvml(driver=False)).device == "cpu"


def test_auto_prefers_cuda_and_describes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library = Nvml(AMPERE, TURING)
    found = hardware.detect(config(), nvml=library)
    assert (found.device, found.name, found.capability, found.driver) == ("cuda", "NVIDIA A10", (8, 6), "550.54")
    assert (found.vram_total_gib, found.vram_free_gib) == (22.5, 9.5)
    assert library.open == 0, "NVML was left open"


def test_auto_takes_metal_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 * GIB)
    found = hardware.detect(config(), nvml=Nvml(driver=False))
    assert (found.device, found.vram_total_gib, found.vram_free_gib) == ("mps", 12, 10)


def test_torch_says_which_card_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA may order unlike cards differently from NVML; the UUID settles it."""
    cuda(monkeypatch, uuid=AMPERE[1].removeprefix("GPU-"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.detect(config(), nvml=Nvml(TURING, AMPERE)).name == "NVIDIA A10"


def test_a_card_that_nvml_cannot_see_is_described_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, capability=(7, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3 * GIB, 4 * GIB))
    found = hardware.detect(config(), nvml=Nvml(driver=False))
    assert (found.name, found.vram_free_gib, found.vram_total_gib) == ("card", 3, 4)
    assert (found.capability, found.driver) == ((7, 0), None)


def test_vram_gb_plans_for_another_card(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch)
    found = hardware.detect(config(vram_gb=6.0), nvml=Nvml(AMPERE))
    assert (found.vram_total_gib, found.vram_free_gib, found.planned) == (6, 6, True)
    on_cpu = hardware.detect(config(device=Device.cpu, vram_gb=8.0), nvml=Nvml())
    assert (on_cpu.device, on_cpu.vram_free_gib, on_cpu.planned) == ("cpu", 8, True)


def one_line(error: pytest.ExceptionInfo[HardwareError]) -> str:
    text = str(error.value)
    assert "\n" not in text and error.value.exit_status == 2
    return text


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_cuda_asked_of_a_torch_without_it() -> None:
    with pytest.raises(HardwareError) as error:
        hardware.detect(config(device=Device.cuda), nvml=Nvml(AMPERE))
    text = one_line(error)
    assert "NVIDIA A10" in text and "without CUDA" in text and "hardware=cpu" in text


@pytest.mark.parametrize(
    ("library", "visible", "words"),
    [
        (Nvml(driver=False), None, "no NVIDIA driver"),
        (Nvml(AMPERE), "-1", "CUDA_VISIBLE_DEVICES='-1' hides"),
        (Nvml(AMPERE), None, "driver 550.54"),
    ],
)
def test_cuda_asked_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, library: Nvml, visible: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(HardwareError) as error:
        hardware.detect(config(device=Device.cuda), nvml=library)
    assert words in one_line(error)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is Metal")
def test_metal_asked_where_there_is_none() -> None:
    with pytest.raises(HardwareError) as error:
        hardware.detect(config(device=Device.mps), nvml=Nvml())
    assert "hardware=mps" in one_line(error)


@pytest.mark.parametrize(
    "bad", [{"vram_gb": 0.0}, {"vram_gb": float("nan")}, {"vram_gb": 1e30}, {"threads": 0}, {"threads": 10**6}]
)
def test_numbers_that_make_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(HardwareError) as error:
        hardware.detect(config(device=Device.cpu, **bad), nvml=Nvml())
    assert f"hardware.{next(iter(bad))}" in one_line(error)


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(HardwareError) as error:
        hardware.detect(config(device=Device.cpu, dtype=Dtype.float16), nvml=Nvml())
    assert "GFLOP/s" in one_line(error)


@pytest.mark.parametrize(("has_unit", "warned"), [(False, True), (True, False), (None, False)])
def test_bfloat16_on_a_cpu_is_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_unit: bool | None, warned: bool
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: has_unit)
    found = hardware.detect(config(device=Device.cpu, dtype=Dtype.bfloat16), nvml=Nvml())
    assert found.dtype is Dtype.bfloat16
    assert ("slower than float32" in caplog.text) == warned


def test_bfloat16_on_an_old_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, it is refused; as a model's half precision it becomes float16."""
    cuda(monkeypatch, capability=(7, 5))
    with pytest.raises(HardwareError) as error:
        hardware.detect(config(dtype=Dtype.bfloat16), nvml=Nvml(TURING))
    assert "7.5" in one_line(error) and "NVIDIA T4" in str(error.value)
    found = hardware.detect(config(), nvml=Nvml(TURING))
    assert found.half(Dtype.bfloat16) is Dtype.float16
    assert found.half(Dtype.float32) is Dtype.float32
    assert Hardware("cuda", capability=(8, 0)).half(Dtype.bfloat16) is Dtype.bfloat16
    assert Hardware("cpu").half(Dtype.bfloat16) is Dtype.bfloat16


@pytest.fixture
def torch_switches() -> Any:
    """Put back what apply() sets."""
    threads = torch.get_num_threads()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    workspace = os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    yield
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = False
    torch.backends.mkldnn.deterministic = False  # type: ignore[assignment]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if workspace is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


@pytest.mark.usefixtures("torch_switches")
@pytest.mark.parametrize("warn_only", [False, True])
def test_the_switches_of_who_calls_stay(warn_only: bool) -> None:
    def switches() -> tuple[Any, ...]:
        mode, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn
        return (
            mode,
            cudnn.deterministic,
            cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.get_num_threads(),
        )

    torch.set_deterministic_debug_mode("warn" if warn_only else "error")
    torch.set_num_threads(2)
    torch.backends.cuda.matmul.allow_tf32 = warn_only
    before = switches()
    with hardware.kept_switches():
        with hardware.kept_switches():  # of another thread
            hardware.apply(Hardware("cuda", threads=3))
        assert torch.get_num_threads() == 3
        hardware.apply(Hardware("cpu"))
        assert torch.get_num_threads() == 2  # torch's own are those that the caller has set
        hardware.apply(Hardware("cpu", deterministic=Determinism.strict, threads=1))
    assert switches() == before


@pytest.mark.usefixtures("torch_switches")
def test_strict_then_relaxed_leaves_nothing_behind() -> None:
    hardware.apply(Hardware("cuda"))
    threads = torch.get_num_threads()
    hardware.apply(Hardware("cuda", deterministic=Determinism.strict, threads=3))
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert torch.get_num_threads() == 3
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"

    hardware.apply(Hardware("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    assert torch.get_num_threads() == threads

    hardware.apply(Hardware("cpu"))
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("torch_switches")
def test_strict_refuses_an_operation_that_has_no_deterministic_form() -> None:
    """The switch is the real one: torch itself raises."""

    def operation() -> None:
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]))

    hardware.apply(Hardware("cpu", deterministic=Determinism.strict))
    with pytest.raises(RuntimeError, match="deterministic"):
        operation()
    hardware.apply(Hardware("cpu"))
    operation()


def test_strict_does_not_import_the_compiler() -> None:
    """It would take longer than making a small picture."""
    code = (
        "import sys; from diffuse.device import hardware; from diffuse.schema import Determinism as D\n"
        "hardware.apply(hardware.Hardware('cpu', deterministic=D.strict))\n"
        "assert 'torch' in sys.modules and 'torch._inductor' not in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, diffuse.device.hardware; assert 'torch' not in sys.modules and 'pynvml' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_record_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    cuda(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = hardware.detect(config(deterministic=Determinism.strict), nvml=Nvml(AMPERE))
    record = json.loads(json.dumps(found.as_record()))
    assert record["name"] == "NVIDIA A10" and record["capability"] == "8.6" and record["driver"] == "550.54"
    assert record["vram_free_gib"] == 9.5 and record["deterministic"] == "strict" and record["dtype"] == "auto"
    assert record["threads"] == torch.get_num_threads()


def test_the_key_ignores_free_memory() -> None:
    assert Hardware("cuda", vram_free_gib=3.0).key == Hardware("cuda", vram_free_gib=9.0).key
    assert Hardware("cuda").key != Hardware("cuda", deterministic=Determinism.strict).key
    assert Hardware("cuda").key != Hardware("cuda", dtype=Dtype.float32).key


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_real_card() -> None:
    found = hardware.detect(config(device=Device.cuda))
    assert found.name == torch.cuda.get_device_name(0)
    assert found.capability == torch.cuda.get_device_capability(0)
    assert found.vram_total_gib is not None and found.vram_free_gib is not None
    assert 0 < found.vram_free_gib <= found.vram_total_gib
    held = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    again = hardware.detect(config(device=Device.cuda))
    assert again.vram_free_gib == found.vram_free_gib, f"own use ({held.nbytes} bytes) was counted"
