"""A pretend GPU: its tensors hold their values on the CPU and say they are on cuda:0.

Inside `pretend_gpu()` code finds one CUDA device, and the device is as strict as a real one: an operation on tensors of
both devices is an error, a value reaches the host through a copy alone, and every wait of the host is noted with the
line that caused it. What it is not: C++ takes its tensors for ones of the CPU, so autocast follows the CPU's lists
(dtypes are checked on fake tensors instead), and it says nothing about speed.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

GPU = torch.device("cuda", 0)
_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = tuple(str(_ROOT / name) for name in ("nvg", "pipelines", "cluster", "eval"))
# The size of their results depends on values.
_SIZED_BY_VALUES = {"nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive"}
_OF_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass(frozen=True)
class Wait:
    """The host waited for the device: what made it wait, and the line of this project that asked."""

    what: str
    where: str


@dataclass
class Log:
    """Waits of the host, and how many bytes went to the device asynchronously."""

    waits: list[Wait] = field(default_factory=list)
    sent_bytes: int = 0

    def wait(self, what: str) -> None:
        self.waits.append(Wait(what, _where()))

    def places(self) -> set[str]:
        """Files of the project whose lines waited."""
        return {wait.where.partition(":")[0] for wait in self.waits}


class OnGpu(Tensor):
    """A tensor of the pretend device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("cpu"),  # autograd would ask a driver for streams
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if args and isinstance(args[0], Tensor):
            device, dtype = args[0].device, args[0].dtype
        else:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        value = self if dtype in (None, self.dtype) else Tensor.to(self, dtype)
        return value if device is None or device.type == "cuda" else value.cpu()

    def cpu(self, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        _state().log.wait("copy to the host")
        return _ToHost.apply(self) if self.requires_grad and torch.is_grad_enabled() else self.held.detach().clone()  # type: ignore[no-any-return]

    def cuda(self, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        return self

    def tolist(self) -> Any:
        _state().log.wait("tolist")
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        self.numpy()

    def pin_memory(self, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        raise RuntimeError("only dense CPU tensors can be pinned")

    def record_stream(self, *_: Any) -> None:
        pass

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        _state().log.wait("pickle")
        return self.held.detach().clone().__reduce_ex__(protocol)


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.held.clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return OnGpu(gradient)


class _State:
    """What the handlers share: the log, pinned tensors, and whether C++ is inside an operation of the device."""

    def __init__(self) -> None:
        self.log = Log()
        self.pinned: dict[int, Tensor] = {}
        self.threads = threading.local()

    @property
    def inside(self) -> bool:
        return getattr(self.threads, "inside", False)

    @inside.setter
    def inside(self, value: bool) -> None:
        self.threads.inside = value


_current: list[_State] = []


def _state() -> _State:
    return _current[-1]


class _Calls(TorchFunctionMode):
    """Sees what Python calls: what C++ makes inside an operation of the device lies on the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        state, kwargs = _state(), kwargs or {}
        # With a number: C++ would ask the driver for the current one.
        args = _map(_numbered, args) if func in (Tensor.to, Tensor.type) else args
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _numbered(kwargs["device"], any_string=True)}
        outer, state.inside = state.inside, _any_on_gpu((args, kwargs))
        try:
            return func(*args, **kwargs)
        finally:
            state.inside = outer


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, by what it does to devices."""
    name = func._schema.name.removeprefix("aten::")
    device = kwargs.get("device")
    if name in ("_to_copy", "copy_"):
        return _copy(name, func, args, kwargs, device)
    if "device" in kwargs:
        kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
        kwargs["device"] = torch.device("cpu")
    on_gpu = _any_on_gpu((args, kwargs))
    if not on_gpu:
        # A factory: Python asks for the device, or C++ inside an operation of the device does.
        here = (device is not None and torch.device(device).type == "cuda") or (
            _state().inside and next(_tensors(args), None) is None
        )
        made = func(*args, **kwargs)
        return _map(_wrap, made) if here else made
    _refuse_mix(name, args, kwargs)
    if name == "_local_scalar_dense":
        _state().log.wait("item")
        return func(args[0].held)
    if name in _SIZED_BY_VALUES or (name == "repeat_interleave" and func._overloadname == "Tensor"):
        _state().log.wait(name)
    if name in _OF_INDICES and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
        _state().log.wait("index by a mask")
    if name == "_conj":  # a mark that a wrapped tensor has no place for
        return _wrap(torch.conj_physical(args[0].held))
    owners = {id(value.held): value for value in _tensors((args, kwargs)) if isinstance(value, OnGpu)}
    held = func(*_map(_held, args), **_map(_held, kwargs))
    made = _map(lambda value: owners.get(id(value), _wrap(value)), held)
    return return_and_correct_aliasing(func, args, kwargs, made)


def _copy(name: str, func: Any, args: Any, kwargs: dict[str, Any], device: Any) -> Any:
    """Copies within the device, and across."""
    if name == "copy_":
        target, source = args[0], args[1]
        patient = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        _note_transfer(source, isinstance(target, OnGpu), patient)
        _held(target).copy_(_held(source))
        return target
    source = args[0]
    to_gpu = isinstance(source, OnGpu) if device is None else torch.device(device).type == "cuda"
    _note_transfer(source, to_gpu, not kwargs.get("non_blocking", False))
    kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
    made = func(_held(source), **kwargs)
    return _wrap(made) if to_gpu else made


def _numbered(value: Any, any_string: bool = False) -> Any:
    if isinstance(value, str) and (any_string or value.startswith("cuda")):
        value = torch.device(value)
    return GPU if isinstance(value, torch.device) and value.type == "cuda" else value


def _note_transfer(source: Tensor, to_gpu: bool, patient: bool) -> None:
    state = _state()
    if isinstance(source, OnGpu):
        if not to_gpu:
            state.log.wait("copy to the host")
    elif to_gpu:
        if patient or id(source) not in state.pinned:
            state.log.wait("copy to the device")
        else:
            state.log.sent_bytes += source.numel() * source.element_size()


def _refuse_mix(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """As CUDA does: tensors of the CPU are taken as indices (the host waits) and where they are scalars."""
    others = [value for value in _tensors((args, kwargs)) if not isinstance(value, OnGpu) and value.ndim > 0]
    if not others:
        return
    if name in _OF_INDICES and isinstance(args[0], OnGpu) and all(isinstance(v, OnGpu) for v in args[2:3]):
        _state().log.wait("index on the host")
        return
    shapes = [tuple(value.shape) for value in others]
    raise RuntimeError(
        f"{name}: expected all tensors to be on the same device, found cpu with shapes {shapes} and {GPU}"
    )


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from _tensors(value)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


def _any_on_gpu(tree: Any) -> bool:
    return any(isinstance(value, OnGpu) for value in _tensors(tree))


def _map(change: Any, tree: Any) -> Any:
    """A function on the leaves of tuples, lists and dictionaries; PyTorch's own takes twice the time of all else."""
    if type(tree) in (tuple, list):
        return type(tree)(_map(change, value) for value in tree)
    if type(tree) in (dict, OrderedDict):
        return type(tree)((name, _map(change, value)) for name, value in tree.items())
    return change(tree)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def _wrap(value: Any) -> Any:
    return OnGpu(value) if isinstance(value, Tensor) and not isinstance(value, OnGpu) else value


def _where() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGES):
            return f"{Path(frame.f_code.co_filename).relative_to(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


@contextmanager
def pretend_gpu(*, capability: tuple[int, int] = (9, 0)) -> Iterator[Log]:
    """Everything inside finds one CUDA device; the log says where the host waited for it."""
    state = _State()

    def pinned(value: Tensor, *_: Any) -> Tensor:
        copy = value.clone()
        state.pinned[id(copy)] = copy  # kept, so that nobody else gets the number
        return copy

    def from_host(function: Any) -> Any:
        def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
            if device is None or torch.device(device).type != "cuda":
                return function(data, *args, **kwargs)
            if isinstance(data, OnGpu):
                return data.to(kwargs.get("dtype")) if kwargs.get("dtype") else data
            state.log.wait("copy to the device")
            return _wrap(function(data, *args, **kwargs))

        return made

    def on_cpu(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu", *args, **kwargs)

    def stream(*_: Any) -> Any:
        nothing = dict.fromkeys(("wait_stream", "wait_event", "record", "wait", "synchronize"), lambda *_: None)
        return SimpleNamespace(is_capturing=lambda: False, query=lambda: True, cuda_stream=0, **nothing)

    def run(thread: threading.Thread) -> None:
        with _Operations(), _Calls():
            run_thread(thread)

    def loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        found = load(file, map_location="cpu", **kwargs)
        return _map(_wrap, found) if str(map_location).startswith("cuda") else found

    autocast, load, run_thread = torch.autocast, torch.load, threading.Thread.run
    properties = SimpleNamespace(name="Pretend GPU", uuid="GPU-pretend", major=9, minor=0, total_memory=80 * 2**30)
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "get_device_name": lambda _=None: properties.name,
        "get_device_properties": lambda _=None: properties,
        "get_device_capability": lambda _=None: capability,
        "is_bf16_supported": lambda *_, **__: capability >= (8, 0),
        "max_memory_allocated": lambda _=None: 0,
        "mem_get_info": lambda _=None: (properties.total_memory, properties.total_memory),
        "synchronize": lambda _=None: None,
        "is_current_stream_capturing": lambda: False,
        "current_stream": stream,
        "Stream": stream,
        "Event": stream,
        "stream": lambda _: nullcontext(),
    }
    replaced = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(torch.accelerator, "current_stream", stream))
        stack.enter_context(patch.object(threading.Thread, "run", run))  # modes are a thread's own
        stack.enter_context(patch.object(Tensor, "pin_memory", pinned))
        stack.enter_context(patch.object(torch, "autocast", on_cpu))
        stack.enter_context(patch.object(torch, "load", loaded))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(patch.object(torch, name, from_host(getattr(torch, name))))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, replaced)
        _current.append(state)
        stack.callback(_current.pop)
        stack.enter_context(_Operations())
        stack.enter_context(_Calls())
        yield state.log
