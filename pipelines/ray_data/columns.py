"""The values of a part as a column of a block, in a worker.

Arrays become tensor columns without being decoded one by one: their elements are copied from the parts into one buffer.
Other values become Arrow's types where these hold them unchanged, else a column of Python objects, as Ray Data has it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data.extensions import ArrowPythonObjectArray, ArrowTensorArray

from dray.shards.arguments import as_bool
from dray.shards.errors import DamagedError, RefusedError
from dray.shards.parsing.arrays import HEAD_BYTES, ArrayLayout, layout_of
from dray.shards.parts import is_pickled

if TYPE_CHECKING:
    from dray.shards.codecs.decode import Decoder

Bytes = bytes | memoryview
_TENSOR_KINDS = "biuf"  # kinds of dtypes that Arrow and Ray Data keep: bool, integers, floats
_MAX_ITEM_BYTES = 8
_ARROW_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.large_binary()}


class Elements(NamedTuple):
    """The elements of an array in C order, in the part that holds them."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    @property
    def array(self) -> NDArray[Any]:
        """The array, read-only."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class PartDecoder:
    """Decodes parts to columns. It is sent to the workers, which load torch only for parts that need it.

    Attributes:
        allow: Full names that pickles may use besides the safe list.
        allow_pickle: Whether pickles may run any code.
    """

    allow: Collection[str] = ()
    allow_pickle: bool = False

    @classmethod
    def of(cls, *, allow: Collection[str], allow_pickle: bool) -> "PartDecoder":
        """Returns a decoder for the arguments of a call.

        Raises:
            CallError: `allow` is not a collection of full names.
        """
        if allow:  # the check loads torch
            from dray.shards.codecs.pickles.unpickle import check_allow

            allow = check_allow(allow)
        return cls(allow=allow, allow_pickle=as_bool("allow_pickle", allow_pickle))

    def column(
        self,
        parts: Sequence[Bytes | None],
        suffixes: Sequence[str | None],
        place_of: Callable[[int], Mapping[str, Any]],
        *,
        may_lack: bool,
    ) -> pa.Array:
        """Returns the decoded values of a part.

        Args:
            parts: The n parts; None where a sample lacks it.
            suffixes: The n suffixes of the parts.
            place_of: Returns where a part is, for errors.
            may_lack: Whether another block of the column may lack values.

        Raises:
            RefusedError: A pickle holds something that is not on the safe list; names the part and `allow`.
            DamagedError: A part is not what its suffix says.
        """
        found: list[Any] = [None] * len(parts)
        for row, (data, suffix) in enumerate(zip(parts, suffixes, strict=True)):
            if data is None or suffix is None:
                continue
            try:
                found[row] = self._value(suffix, data)
            except (DamagedError, RefusedError) as exc:
                raise exc.at(**place_of(row), suffix=suffix) from exc
        return to_column(found, may_lack=may_lack)

    def _value(self, suffix: str, data: Bytes) -> Any:
        elements = _npy_elements(suffix, data)
        if elements is None and is_pickled(suffix):
            elements = _pickled_elements(data)
        return self._decoder.part(suffix, data) if elements is None else elements

    @cached_property
    def _decoder(self) -> "Decoder":
        from dray.shards.codecs.decode import Decoder  # loads torch

        return Decoder(allow=self.allow, allow_pickle=self.allow_pickle)


def _npy_elements(suffix: str, data: Bytes) -> Elements | None:
    layout = layout_of(suffix, data[:HEAD_BYTES], len(data))
    return None if layout is None else Elements(layout.dtype, layout.shape, memoryview(data)[layout.data_offset :])


def _pickled_elements(data: Bytes) -> Elements | None:
    """Returns the elements of a pickle of one contiguous array or tensor; None for any other pickle."""
    from dray.shards.codecs.npy import NUMPY_DTYPES  # loads torch
    from dray.shards.codecs.pickles.layout import find_layout

    layout = find_layout(data)
    if layout is None:
        return None
    dtype = layout.dtype if isinstance(layout.dtype, np.dtype) else NUMPY_DTYPES.get(layout.dtype)
    if dtype is None:
        return None
    return Elements(dtype.str, layout.shape, memoryview(data)[layout.start : layout.stop])


def bytes_column(parts: Sequence[Bytes | None]) -> pa.Array:
    """Returns parts as they are stored; null where a sample lacks the part."""
    return pa.array(parts, pa.large_binary())


def stacked_parts(parts: Sequence[Bytes | None], layout: ArrayLayout) -> pa.Array:
    """Returns the arrays in `.npy` parts of one layout as a tensor column."""
    data = b"".join([part[layout.data_offset :] for part in parts if part is not None])
    return _tensors(np.frombuffer(data, layout.dtype).reshape(len(parts), *layout.shape))


def is_tensor_dtype(dtype: str) -> bool:
    """Returns whether a tensor column holds arrays of this dtype unchanged."""
    found = np.dtype(dtype)
    return found.kind in _TENSOR_KINDS and found.itemsize <= _MAX_ITEM_BYTES


def to_column(values: Sequence[Any], *, may_lack: bool = False) -> pa.Array:
    """Returns values as a column that gives them back unchanged, but tensors as arrays.

    Arrays of one dtype and number of axes, of bools, integers or floats, become a tensor column; numbers, text and
    bytes of one type become Arrow's types. Everything else becomes Python objects. So do arrays in a column that may
    lack values, as Ray Data has no tensor columns with nulls.

    Args:
        values: The values; `Elements` stands for an array. None is null.
        may_lack: Whether another block of the column may lack values.
    """
    present = [value for value in values if value is not None]
    if not present:
        return pa.nulls(len(values))
    if may_lack or len(present) < len(values):
        return _scalars(values, present) or _objects(values)
    return _stacked(values) or _scalars(values, present) or _arrays(values) or _objects(values)


def _stacked(values: Sequence[Any]) -> pa.Array | None:
    """Returns `Elements` of one dtype and shape as a tensor column."""
    first = values[0]
    if not isinstance(first, Elements) or not is_tensor_dtype(first.dtype):
        return None
    kind = first[:2]
    if not all(isinstance(value, Elements) and value[:2] == kind for value in values):
        return None
    data = b"".join([value.data for value in values])
    return _tensors(np.frombuffer(data, first.dtype).reshape(len(values), *first.shape))


def _scalars(values: Sequence[Any], present: Sequence[Any]) -> pa.Array | None:
    """Returns Python's numbers, text or bytes of one type as an Arrow column; None if one does not fit."""
    types = set(map(type, present))
    arrow_type = _ARROW_TYPES.get(types.pop()) if len(types) == 1 else None
    if arrow_type is None:
        return None
    try:
        return pa.array(values, arrow_type)
    except (pa.ArrowInvalid, OverflowError, UnicodeError):  # an integer of more bits, half a surrogate pair
        return None


def _arrays(values: Sequence[Any]) -> pa.Array | None:
    """Returns arrays of one dtype and number of axes as a tensor column."""
    arrays = [_as_array(value) for value in values]
    first = arrays[0]
    if first is None or not is_tensor_dtype(first.dtype.str):
        return None
    if not all(array is not None and (array.dtype, array.ndim) == (first.dtype, first.ndim) for array in arrays):
        return None
    if len({array.shape for array in _present(arrays)}) == 1:
        return _tensors(np.stack([*_present(arrays)]))
    ragged = np.empty(len(arrays), object)
    for row, array in enumerate(arrays):
        ragged[row] = array
    return ArrowTensorArray.from_numpy(ragged)


def _present(arrays: Sequence[NDArray[Any] | None]) -> Iterator[NDArray[Any]]:
    return (array for array in arrays if array is not None)


def _as_array(value: Any) -> NDArray[Any] | None:
    """Returns a tensor, array or numpy scalar as an array in native byte order; None for other values."""
    if isinstance(value, Elements):
        return value.array
    if type(value).__module__.partition(".")[0] == "torch":
        from dray.shards.codecs.npy import NUMPY_DTYPES  # torch is loaded

        if getattr(value, "dtype", None) not in NUMPY_DTYPES or not hasattr(value, "numpy"):
            return None
        value = value.numpy(force=True)
    if not isinstance(value, np.ndarray | np.generic):
        return None
    return np.asarray(value, value.dtype.newbyteorder("="))


def _tensors(rows: NDArray[Any]) -> pa.Array:
    return pa.array(rows) if rows.ndim == 1 else ArrowTensorArray.from_numpy(rows)


def _objects(values: Sequence[Any]) -> pa.Array:
    return ArrowPythonObjectArray.from_objects([_as_object(value) for value in values])


def _as_object(value: Any) -> Any:
    """Returns a value, but a tensor as an array if numpy has its dtype."""
    array = None if isinstance(value, np.generic) else _as_array(value)
    return value if array is None else array
