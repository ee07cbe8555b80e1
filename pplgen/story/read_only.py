"""Data that are not written to: an operation that would change them is refused before it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pplgen.errors import InputError

__all__ = ["ReadOnly"]


class ReadOnly(TorchDispatchMode):
    """Refuse operations that write into the memory of the tensors among arguments, or of views of them.

    Parameters
    ----------
    data
        Arguments of a model, which may be containers of tensors.
    """

    def __init__(self, data: tuple[Any, ...]) -> None:
        super().__init__()
        self.memory = {_memory(tensor) for tensor in _tensors(data)} - {None}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # avoids importing dynamo, which takes most of a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, unless it writes into the data."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for index, argument in enumerate(func._schema.arguments):
                written = args[index] if index < len(args) else kwargs.get(argument.name)
                if argument.is_write and any(_memory(each) in self.memory for each in _tensors(written)):
                    name = str(func.overloadpacket.__name__)
                    raise InputError(
                        f"the model or guide writes into its data, by the operation {name!r}; expected data that stay "
                        "as they are: write into a copy, such as y = y.clone()"
                    )
        return func(*args, **kwargs)


def _memory(tensor: Tensor) -> int | None:
    """Return the address of a tensor's storage, ``None`` for tensors without one, such as sparse ones."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


def _tensors(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in a value and the containers in it."""
    if isinstance(value, Tensor):
        yield value
        return
    inner: Iterable[Any] = ()
    if isinstance(value, (list, tuple)):
        inner = value
    elif isinstance(value, Mapping):
        inner = value.values()
    elif hasattr(value, "__dataclass_fields__"):
        inner = vars(value).values()
    for each in inner:
        yield from _tensors(each)
