"""What a pickle says of a tensor is held against its storage."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoint_files import message

from diffuse.checkpoints.torch_files import declarations
from diffuse.checkpoints.torch_files.archive import Record
from diffuse.checkpoints.torch_files.declarations import declare_tensors, first_tensor_below
from diffuse.checkpoints.torch_files.unpickle import Global, Product, Reference


def tensor(shape: Any, strides: Any, offset: Any = 0, count: Any = 24, key: Any = "0") -> Product:
    storage = Reference(("storage", Global("torch.FloatStorage"), key, "cpu", count))
    return Product("torch._utils._rebuild_tensor_v2", (storage, offset, shape, strides, False, {}))


def declare(*values: Any, size: int = 1000) -> Any:
    found = declare_tensors({str(place): value for place, value in enumerate(values)}, STORAGES, size, "FILE")
    return list(found.values())


STORAGES = {"0": Record(64, 96)}


def test_places_and_axes() -> None:
    plain, view, turned, one, empty = declare(
        tensor((2, 3, 4), (12, 4, 1)),
        tensor((4,), (1,), 20),
        tensor((4, 6), (1, 4)),
        tensor((3, 1, 1, 8), (8, 7, 99, 1)),  # the strides of an axis of one mean nothing
        tensor((0, 5), (5, 1)),
    )
    assert (plain.start, plain.nbytes, plain.axes, plain.dtype) == (64, 96, None, "F32")
    assert (view.start, view.nbytes) == (64 + 80, 16)
    assert turned.axes == (1, 0)
    assert one.axes is None and empty.nbytes == 0
    assert declare(tensor((1, 4, 1, 6), (9, 1, 9, 4)))[0].axes == (0, 2, 3, 1)


@pytest.mark.parametrize(
    "value",
    [
        tensor((25,), (1,)),
        tensor((4,), (1,), 21),
        tensor((4,), (1,), -1),
        tensor((-4,), (1,)),
        tensor((2, 12), (0, 1)),  # expanded
        tensor((2, 3), (12, 1)),  # with gaps
        tensor((4,), (2,)),
        tensor((1 << 40, 1 << 40), (1 << 40, 1)),
        tensor((4, 1), (1,)),
        tensor((1,) * 9, (1,) * 9),  # more axes than any weight has
        tensor([4], [1]),
        tensor((True,), (1,)),
        tensor((4.0,), (1,)),
        tensor(4, 1),
        tensor((4,), (1,), key="1"),
        tensor((4,), (1,), key=["0"]),
        tensor((4,), (1,), count=48),
        Product("torch._utils._rebuild_tensor_v2", ()),
        Product("torch._utils._rebuild_parameter", (3, True, {})),
        Product("torch._utils._rebuild_tensor_v2", (Reference(("storage", Global("torch.X"), "0", "", 24)), 0, (), ())),
        Product("torch._utils._rebuild_tensor_v2", (Reference("0"), 0, (), ())),
    ],
)
def test_what_cannot_be(value: Any) -> None:
    assert message(lambda: declare(value)).startswith("FILE: says of 0 what cannot be")


def test_tensors_are_not_far_more_than_the_file() -> None:
    many = [tensor((24,), (1,))] * 11
    assert len(declare(*many, size=600)) == 11
    assert "far larger than the file" in message(lambda: declare(*many, size=500))


def test_tensors_in_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    one = tensor((), ())
    made = Product("builtins.set", ([one],))
    for value, expected in (
        ({"a": {"b": {"c": {"d": {"e": one}}}}}, "a.b.c.d.e"),
        ({"a": 3, "b": [(), (1, one)]}, "b.1.1"),
        ({"a": {1: made}}, "a.1.arguments.0.0"),
        ({"a": {"b": 3}, "c": [None, Global("torch.Size")]}, None),
    ):
        assert first_tensor_below(value, "FILE") == expected
    made.arguments, made.state = (), {"weight": one}
    assert first_tensor_below([made], "FILE") == "0.state.weight"
    made.state, made.items = None, {"weight": one}
    assert first_tensor_below([made], "FILE") == "0.items.weight"
    endless: list[Any] = []
    endless += [endless, {"x" * 4000: {"y": one}}]
    found = first_tensor_below(endless, "FILE")
    assert found is not None and found.startswith("1.xxx") and len(found) < 200
    monkeypatch.setattr(declarations, "_MOST_CONTAINERS", 100)
    assert first_tensor_below([[1]] * 1000, "FILE") is None
    text = message(lambda: first_tensor_below([[1] for _ in range(100)], "FILE"))
    assert text == "FILE: has more beside its weights than any file; it is refused"
