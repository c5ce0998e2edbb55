"""Triton kernels without a GPU: interpreted on CPU tensors, and compiled to machine code.

`interpreted` runs the kernels of a module in Triton's interpreter, `compile_kernel` gives what the
compiler makes of one for a GPU that need not be there. Both work in one process, side by side.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
from triton.runtime.jit import JITFunction

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


# --- interpreter ---------------------------------------------------------------------------------


@contextmanager
def interpreted(*modules: ModuleType) -> Iterator[None]:
    """Inside, every `@triton.jit` function of `modules` is interpreted, on CPU tensors.

    Triton decides at the decorator, so the functions are exchanged in the modules' namespaces, and
    those of Triton's own library with them: a kernel finds its helpers, and `tl.sum`, by name. The
    interpreter also learns to round float32 to bfloat16 (it truncates) and to fuse a multiply-add
    (it rounds twice). TRITON_INTERPRET is set, for code that asks for it.

    The interpreter patches Triton's language at every call of every helper, which is half of its
    time; here it does so once, and what it has rewritten is kept.
    """
    patched = set()

    def patch_once(fn: Any) -> Any:
        names = frozenset(name for name in ("tl", "core") if name in fn.__globals__)
        if names not in patched:
            patched.add(names)
            _patch_lang_as_shipped(fn)  # `_restored` undoes it
        return interpreter._LangPatchScope()

    with pytest.MonkeyPatch.context() as patch, _restored():
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(InterpreterBuilder, "cast_impl", _cast)
        patch.setattr(InterpreterBuilder, "create_fma", _fma)
        patch.setattr(interpreter, "_patch_lang_tensor", _patch_tensor)
        patch.setattr(interpreter, "_patch_lang", patch_once)
        # Of Triton's own functions not: they find names in a module that is restored behind them.
        for fn in [fn for fn in _rewritten if fn.__module__ == tl.standard.__name__]:
            del _rewritten[fn]
        patch.setattr(InterpretedFunction, "rewritten_fn", _rewritten)
        for module in (tl, tl.standard, *modules):
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    patch.setattr(module, name, InterpretedFunction(value.fn))
        yield


@contextmanager
def _restored() -> Iterator[None]:
    """Undo what the interpreter leaves changed in Triton's language after a call of a helper.

    Nothing compiles in this process otherwise.
    """
    places: list[Any] = [tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype]
    places += [getattr(tl.core, name) for name in ("tensor_descriptor_base", "tensor_descriptor")]
    before = [dict(vars(place)) for place in places]
    try:
        yield
    finally:
        for place, values in zip(places, before, strict=True):
            for name, value in list(vars(place).items()):
                if name not in values:
                    delattr(place, name)
                elif value is not values[name]:
                    setattr(place, name, values[name])


_cast_as_shipped = InterpreterBuilder.cast_impl
_patch_tensor_as_shipped = interpreter._patch_lang_tensor
_patch_lang_as_shipped = interpreter._patch_lang
_rewritten: dict[Any, Any] = {}


def _cast(builder: Any, source: Any, to: Any) -> Any:
    if source.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
        return _cast_as_shipped(builder, source, to)
    return TensorHandle(round_to_bfloat16(source.data), tl.bfloat16)


def round_to_bfloat16(values: Any) -> Any:
    """Float32 -> the bits of bfloat16 (uint16), to nearest, ties to even, NaN kept."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _patch_tensor(tensor: Any, *scope: Any) -> None:
    _patch_tensor_as_shipped(tensor, *scope)
    # Triton 3.6 converts an array of one element, which NumPy 2.4 has ceased to do.
    tensor.__index__ = lambda self: int(self.handle.data.item())


def _fma(_builder: Any, x: Any, y: Any, z: Any) -> Any:
    assert z.dtype.scalar == tl.float32
    return TensorHandle(fma(x.data, y.data, z.data), tl.float32)


def fma(x: Any, y: Any, z: Any) -> Any:
    """float32 x * y + z, rounded once.

    The product is exact in float64. Its sum with z is rounded to odd there, which makes the second
    rounding, to float32, that of the exact sum (Boldo and Melquiond 2008).
    """
    product = np.asarray(x, np.float64) * np.asarray(y, np.float64)
    product, addend = np.broadcast_arrays(product, np.asarray(z, np.float64))
    total = np.asarray(product + addend)
    with np.errstate(invalid="ignore"):
        virtual = total - product
        error = (product - (total - virtual)) + (addend - virtual)  # Knuth's TwoSum
    bits = np.ascontiguousarray(total).view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)  # of zero: where bits grow
    odd = bits + np.where(inexact, np.where(away, 1, -1), 0)
    return odd.view(np.float64).astype(np.float32)


# --- compiler ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """One kernel's machine code, and what a block of it takes."""

    ttgir: str  # Triton's last level that knows of layouts
    ptx: str
    sass: str
    registers: int  # a thread
    stack_bytes: int  # a thread; with local_bytes, where spilled registers would go
    local_bytes: int
    shared_bytes: int  # a block, as launched
    threads: int  # a block

    def count(self, pattern: str) -> int:
        """Instructions whose name, with its suffixes, matches the regular expression."""
        return sum(bool(re.match(pattern, name)) for name in self.instructions())

    def instructions(self) -> list[str]:
        """The names, in order, without predicates: `LDG.E.128`, ..."""
        found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", self.sass)
        return [name for name in found if name != "NOP"]


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    divisible_by_16: Sequence[str] = (),
    *,
    capability: int = 90,
    num_warps: int = 4,
    **options: Any,
) -> Compiled:
    """Compile `kernel` for compute capability `capability` (80: 8.0).

    Args:
        kernel: a `@triton.jit` function.
        signature: Triton's type of every argument that is not a constexpr: "*u8", "i32", "fp32".
        constexprs: the values of the others, None included.
        divisible_by_16: the arguments, addresses among them, that a launch would find to be so.
        options: of the launch: `num_stages`, `enable_fp_fusion`, ...
    """
    assert isinstance(kernel, JITFunction), "an interpreted function does not compile"
    names = kernel.arg_names
    assert set(signature) | set(constexprs) == set(names), "an argument has neither type nor value"
    kinds = {name: signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible_by_16}
    done = triton.compile(
        ASTSource(fn=kernel, signature=kinds, constexprs=dict(constexprs), attrs=attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, **options},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        sass = _tool("nvdisasm", "-c", file.name)
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
    (line,) = [line for line in usage.splitlines() if "REG:" in line]
    used = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
    return Compiled(
        ttgir=done.asm["ttgir"],
        ptx=done.asm["ptx"],
        sass=sass,
        registers=used["REG"],
        stack_bytes=used["STACK"],
        local_bytes=used["LOCAL"],
        shared_bytes=done.metadata.shared,
        threads=32 * num_warps,
    )


_TYPES = {
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True)
class Launch:
    """A launch that did not take place, with its arguments by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def compile(self, capability: int = 90) -> Compiled:
        """What would have run: the same types, values, alignments and options."""
        signature, constexprs, divisible = {}, {}, []
        for parameter in self.kernel.params:
            name, value = parameter.name, self.arguments[parameter.name]
            free = not parameter.do_not_specialize
            if (
                parameter.is_constexpr
                or value is None
                or (free and type(value) is int and value == 1)
            ):
                constexprs[name] = value
            elif isinstance(value, torch.Tensor):
                signature[name] = "*" + _TYPES[value.dtype]
                divisible += [name] if value.data_ptr() % 16 == 0 else []
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
                divisible += [name] if free and signature[name] == "i32" and value % 16 == 0 else []
        return compile_kernel(
            self.kernel, signature, constexprs, divisible, capability=capability, **self.options
        )


@contextmanager
def recorded(*modules: ModuleType) -> Iterator[list[Launch]]:
    """Inside, launches of the modules' kernels are noted down instead: no GPU is asked for."""
    found: list[Launch] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # for code that asks whether CPU tensors will do
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    patch.setattr(module, name, _Recorder(value, found))
        yield found


@dataclass(frozen=True)
class _Recorder:
    kernel: Any
    found: list[Launch]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            names = self.kernel.arg_names
            arguments = dict(zip(names, args, strict=False))
            arguments |= {name: options.pop(name) for name in names if name in options}
            assert set(arguments) == set(names), "arguments are missing"
            self.found.append(Launch(self.kernel, grid, arguments, options))

        return launch


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run(
        [str(BIN / name), *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout


__all__ = [
    "Compiled",
    "Launch",
    "compile_kernel",
    "fma",
    "interpreted",
    "recorded",
    "round_to_bfloat16",
]
