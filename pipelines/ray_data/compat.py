"""The private names of Ray Data that this room uses, in one place.

tests/repo/test_private_names.py says which of them has moved when an upgrade breaks this import.
"""

from ray.data import Dataset
from ray.data._internal.logical.interfaces import LogicalOperator, LogicalPlan, Rule
from ray.data._internal.logical.operators import AbstractFrom, AbstractOneToOne, InputData, Limit, Read, Union
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
    "keeps_order",
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


def keeps_order(dataset: Dataset) -> bool:
    """Whether each step gives its rows in the order of the rows that it gets: none sorts, shuffles or joins."""
    return all(isinstance(operator, _IN_ORDER) for operator in dataset._logical_plan.dag.post_order_iter())


_IN_ORDER = (AbstractFrom, AbstractOneToOne, InputData, Read, Union)
