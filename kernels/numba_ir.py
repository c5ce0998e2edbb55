"""LLVM instructions that numba has no name for: rounding to 16 bits, multiply-add, vectors of 16.

Arrays of bfloat16 and float16 are arrays of their bits here, told apart by signedness: numpy has no
bfloat16, and numba no float16 on the CPU.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

BF16_BITS, FP16_BITS = np.dtype(np.uint16), np.dtype(np.int16)
LANES = 16

_BYTE, _SHORT, _WORD, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def jit(fastmath: set[str] | bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """numba's njit without the GIL, kept in its cache where a folder for that can be written."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no writable folder for the cache: compile anew in every process
            return njit(**options)(function)

    return decorate


def _rounds_to_bfloat() -> bool:
    """Whether the CPU that numba compiles for does it in one instruction.

    Without, LLVM would call a function of a runtime library that numba does not link.
    """
    features: str | None = config.CPU_FEATURES  # type: ignore[attr-defined]  # the environment's
    if features is None:
        return bool(get_host_cpu_features().get("avx512bf16", False))
    return "+avx512bf16" in features


def _encode(builder: Any, number: Any, storage: Any, lanes: int = 1) -> Any:
    """A float32, or a vector of `lanes`, as `storage` holds it, rounded to nearest even."""

    def of(kind: ir.Type) -> ir.Type:
        return kind if lanes == 1 else ir.VectorType(kind, lanes)

    def constant(value: int) -> Any:
        return ir.Constant(of(_WORD), value if lanes == 1 else [value] * lanes)

    if storage == types.int16:
        return builder.bitcast(builder.fptrunc(number, of(ir.HalfType())), of(_SHORT))
    if storage == types.uint16 and _rounds_to_bfloat():
        return builder.bitcast(builder.fptrunc(number, of(_BFloat())), of(_SHORT))
    if storage == types.uint16:
        # Views are finite, so the carry of the rounding needs no case for NaN.
        bits = builder.bitcast(number, of(_WORD))
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.add(bits, builder.add(odd, constant(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, constant(16)), of(_SHORT))
    return number


def _store_as_typed(_typing: Any, _value: Any, out: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _encode(builder, args[0], out.dtype)

    return out.dtype(types.float32, out), codegen


def _fma_typed(_typing: Any, _a: Any, _b: Any, _c: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


def _affine_typed(
    _typing: Any, x: Any, _i: Any, scale: Any, shift: Any, _k: Any, out: Any, _j: Any
) -> Any:
    """No bounds are checked, as nowhere in code that numba compiles."""
    signature = types.void(x, types.intp, scale, shift, types.intp, out, types.intp)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args

        def pointer(array: int, index: int, element: ir.Type) -> Any:
            struct = context.make_array(kinds[array])(context, builder, args[array])
            place = cgutils.get_item_pointer(
                context, builder, kinds[array], struct, [args[index]], wraparound=False
            )
            return builder.bitcast(place, ir.VectorType(element, LANES).as_pointer())

        def load(array: int, index: int, element: ir.Type, align: int) -> Any:
            return builder.load(pointer(array, index, element), align=align)

        levels = builder.uitofp(load(0, 1, _BYTE, 1), ir.VectorType(_FLOAT, LANES))
        product = builder.fmul(levels, load(2, 4, _FLOAT, 4))
        view = _encode(builder, builder.fadd(product, load(3, 4, _FLOAT, 4)), out.dtype, LANES)
        size = 4 if out.dtype == types.float32 else 2
        builder.store(view, pointer(5, 6, view.type.element), align=size)
        return context.get_dummy_value()

    return signature, codegen


# numba hands the typing context to these; type checkers would ask the caller for it.

store_as: Any = intrinsic(_store_as_typed)
"""store_as(number, out): a float32 in the representation that the array `out` holds."""

fma: Any = intrinsic(_fma_typed)
"""fma(a, b, c): a * b + c, one rounding, on every CPU; one without the instruction is slow."""

affine: Any = intrinsic(_affine_typed)
"""affine(x, i, scale, shift, k, out, j): out[j : j + 16] = x[i : ] * scale[k : ] + shift[k : ].

Two roundings, as torch has it. `x` uint8, `scale` and `shift` float32, all flat and contiguous.
"""
