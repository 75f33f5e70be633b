"""The private names of Python and torch that the unpicklers use, all in one place.

tests/repo/test_private_names.py says which of them has moved when a new version of either breaks this import.
"""

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from copyreg import _reconstructor  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2, _rebuild_tensor_v3

if TYPE_CHECKING:

    class PythonUnpickler(pickle.Unpickler):
        """The standard library's unpickler in Python; typeshed does not declare these attributes."""

        dispatch: ClassVar[dict[int, Any]]
        stack: list[Any]
        append: Callable[[Any], None]
        proto: int
        pop_mark: Callable[[], list[Any]]
        read: Callable[[int], bytes]
        readline: Callable[[], bytes]

        def load_build(self) -> None:
            """Run the opcode BUILD."""

else:
    PythonUnpickler = pickle._Unpickler

reconstruct_object: Callable[..., Any] = _reconstructor
"""Makes the objects of protocols 0 and 1."""

python_3_modules: Mapping[str, str] = IMPORT_MAPPING
python_3_names: Mapping[tuple[str, str], tuple[str, str]] = NAME_MAPPING
"""What pickles before protocol 3 name, and the names in Python 3: modules, and (module, name)."""

rebuild_tensor_v2: Callable[..., torch.Tensor] = _rebuild_tensor_v2
rebuild_tensor_v3: Callable[..., torch.Tensor] = _rebuild_tensor_v3
rebuild_parameter: Callable[..., torch.nn.Parameter] = _rebuild_parameter

reconstruct_array: Any = np.zeros(0).__reduce__()[0]
make_scalar: Any = np.float32(0).__reduce__()[0]
"""numpy's own functions, whose module differs between its versions."""


def typed_storage(untyped: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
    """Return the storage with a dtype, without torch's warning that typed storages are deprecated."""
    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]


def storage_nbytes(storage: torch.storage.TypedStorage) -> int:
    """Return the size of a typed storage, without that warning."""
    return storage._untyped_storage.nbytes()
