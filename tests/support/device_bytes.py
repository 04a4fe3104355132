"""Counts the bytes that a profile has on the device while a pipeline runs, on a CPU as well; the measure of budgets."""

from __future__ import annotations

from collections.abc import Iterator

from real_bytes import RealBytes

from diffuse.device.memory import Memory


class DeviceBytes(RealBytes):
    """Counts as `RealBytes`, and in `device_peak` without what the profile has in main memory.

    That are the weights of components whose phase is over, and of blocks that stream, as they were loaded. All
    components of the profile have to be on the device (`has_all`).
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.device_peak = 0
        self._state: object = None
        self._on_host: list[int] = []
        for component in memory._components.values():
            if component.module is not None:
                self._see([*component.module.parameters(), *component.module.buffers()])

    @staticmethod
    def has_all(memory: Memory) -> bool:
        """Returns whether all components are on the device."""
        return all(each.on_device for each in memory._components.values())

    def _rise(self) -> None:
        components = list(self.memory._components.values())
        state = [(id(each.module), each.present) for each in components]
        if state != self._state:
            self._state, self._on_host = state, [id(owner) for owner in self._host_owners()]
        host = sum(self.alive.get(owner, 0) for owner in self._on_host)
        self.device_peak = max(self.device_peak, self.now - host)

    def _host_owners(self) -> Iterator[object]:
        assert self.has_all(self.memory)
        for component in self.memory._components.values():
            if component.stream is not None:
                parts = [component.stream._rest, *component.stream._blocks]
                tensors = [value for part in parts for _, _, value in part.host]
            elif component.module is not None and not component.present:
                tensors = [*component.module.parameters(), *component.module.buffers()]
            else:
                continue
            for tensor in tensors:
                yield tensor if tensor.is_mkldnn else tensor.untyped_storage()
