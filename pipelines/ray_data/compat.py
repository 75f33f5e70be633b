"""The private names of Ray Data that this room uses, in one place.

tests/repo/test_private_names.py says which of them has moved when an upgrade breaks this import.
"""

from ray.data import Dataset
from ray.data._internal.logical.interfaces import LogicalOperator, LogicalPlan, Rule
from ray.data._internal.logical.operators import Limit, Read
from ray.data._internal.logical.optimizers import get_logical_ruleset
from ray.data._internal.logical.rules import LimitPushdownRule

__all__ = [
    "Limit",
    "LimitPushdownRule",
    "LogicalOperator",
    "LogicalPlan",
    "Read",
    "Rule",
    "get_logical_ruleset",
    "operator_names",
    "source_bytes",
]


def operator_names(dataset: Dataset) -> str:
    """Returns the names of a dataset's steps, for errors: "ReadPickles -> MapBatches(Embed)"."""
    names = [operator.name for operator in dataset._logical_plan.dag.post_order_iter()]
    return " -> ".join(names)


def source_bytes(dataset: Dataset) -> int | None:
    """Returns the size of what the steps of a dataset read, as far as known beforehand; None if it is unknown."""
    operators = [one for one in dataset._logical_plan.dag.post_order_iter() if not one.input_dependencies]
    sizes = [one.infer_metadata().size_bytes for one in operators]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
