"""Collates decoded samples into a batch: each part becomes a stacked tensor or a list."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dray.loaders.batching.tensor_kinds import NUMBERS, TensorKind
from dray.shards.errors import CallError

SampleValues = Mapping[str, Any]
Batch = dict[str, Any]
_MOST = torch.iinfo(torch.int64).max

Where = Callable[[int], str]  # names a sample of a batch, for messages


def _number(row: int) -> str:
    return f"sample {row} of the batch"


def collate(
    samples: Sequence[SampleValues],
    *,
    stack: bool | Collection[str] = True,
    may_lack: bool = False,
    where: Where = _number,
) -> Batch:
    """Returns the batch of n samples: part -> a tensor (n, ...) or a list of n values; see `stacked`.

    Args:
        samples: Dicts of part -> value.
        stack: Whether parts are stacked, or the names of the parts to stack; the others are lists.
        may_lack: Whether a sample may lack a part that others have; its value is then None.
        where: Returns the name of the sample in a row, for messages.

    Raises:
        CallError: A sample is not a mapping, lacks a part, or has a part that cannot be stacked with the others.
    """
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise CallError(f"transform returned {type(sample).__name__}, not a dict of parts: give collate= as well")
    parts = dict.fromkeys(part for sample in samples for part in sample)
    for row, sample in enumerate(samples if not may_lack else ()):
        if len(sample) < len(parts):
            lacking = next(part for part in parts if part not in sample)
            raise CallError(f"transform returned no {lacking!r} for {where(row)}: only missing='none' allows that")
    batch: Batch = {part: [sample.get(part) for sample in samples] for part in parts}
    return {part: stacked(batch[part], part, where) if is_stacked(part, stack) else batch[part] for part in batch}


def check_stack(stack: bool | Collection[str], parts: Collection[str] | None) -> bool | frozenset[str]:
    """Returns a valid `stack` argument; names of parts become a frozenset.

    Args:
        stack: See `collate`.
        parts: Names of a batch's parts; None if the caller's own function chooses them.

    Raises:
        CallError: `stack` is neither a bool nor a collection of names, or names an unknown part.
    """
    if isinstance(stack, bool):
        return stack
    if isinstance(stack, str) or not isinstance(stack, Collection) or not all(isinstance(name, str) for name in stack):
        raise CallError(f"stack={stack!r}: expected True, False, or a set of part names")
    if unknown := sorted(set(stack) - set(stack if parts is None else parts)):
        raise CallError(f"stack names {unknown[0]!r}: a batch has the parts {', '.join(parts or ())}")
    return frozenset(stack)


def is_stacked(part: str, stack: bool | Collection[str]) -> bool:
    """Returns whether a part is to be stacked."""
    return stack if isinstance(stack, bool) else part in stack


def stacked(values: list[Any], part: str = "", where: Where = _number) -> torch.Tensor | list[Any]:
    """Returns n values as a tensor (n, ...), or the list if one of them cannot be stacked.

    Tensors, numpy arrays and scalars, and numbers (bool, int64, float64) can be stacked. Values that have no dtype in
    torch, such as text, bytes, dicts and None, cannot.

    Raises:
        CallError: All can be stacked, but dtypes or shapes differ; the message names two such samples.
    """
    types = set(map(type, values))
    if types in ({bool}, {float}) or (types == {int} and min(values) >= -_MOST and max(values) <= _MOST):
        return torch.tensor(values, dtype=NUMBERS[types.pop()])
    if types <= {str, bytes, dict}:
        return values
    kinds = [TensorKind.of(value) for value in values]
    first = kinds[0] if kinds else None
    if first is None or None in kinds:
        return values
    other = next((row for row, kind in enumerate(kinds) if kind != first), None)
    if other is None:
        return _tensor(values, first)
    raise CallError(
        f"part {part!r} cannot be stacked: it is {first} in {where(0)}, but {kinds[other]} in {where(other)}. Give "
        "stack=False for lists (or the names of the parts to stack), make dtypes and shapes equal in transform=, or "
        "give your own collate="
    )


def _tensor(values: list[Any], kind: TensorKind) -> torch.Tensor:
    """Returns values of one kind as a tensor."""
    if all(isinstance(value, torch.Tensor) for value in values):
        with torch.no_grad():
            return torch.stack(values)
    if not kind.shape and not any(isinstance(value, torch.Tensor | np.ndarray | np.generic) for value in values):
        return torch.tensor(values, dtype=kind.dtype)
    arrays = [value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value) for value in values]
    whole = np.stack(arrays)
    return torch.from_numpy(whole.astype(whole.dtype.newbyteorder("="), copy=False))


def no_rows(batch: Any) -> Any:
    """Returns a batch of no samples, made from a batch of one.

    A list of one item is taken as the batch's only row, a list of several items as its columns, as torch's
    `default_collate` makes from tuples.

    Raises:
        CallError: The batch holds a value that has no rows.
    """
    if isinstance(batch, torch.Tensor | np.ndarray) and batch.ndim:
        return batch[:0]
    if type(batch) is list:
        return [no_rows(column) for column in batch] if len(batch) > 1 else []
    if isinstance(batch, dict):
        return {part: no_rows(values) for part, values in batch.items()}
    if type(batch) is tuple:
        return tuple(no_rows(values) for values in batch)
    raise CallError(
        f"remainder='keep' leaves this rank without a sample in the last step, and the {type(batch).__name__} that "
        "collate returned cannot be cut to 0 rows: return tensors, arrays or lists, or dicts or tuples of them"
    )
