"""The private names of Ray Data that this room uses, in one place.

tests/repo/test_private_names.py says which of them has moved when an upgrade breaks this import.
"""

from ray.data import Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import TaskContext
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.data._internal.logical.interfaces import LogicalOperator, LogicalPlan, Rule
from ray.data._internal.logical.operators import Limit, Read
from ray.data._internal.logical.optimizers import get_logical_ruleset
from ray.data._internal.logical.rules import LimitPushdownRule

__all__ = [
    "ExecutionCallback",
    "Limit",
    "LimitPushdownRule",
    "LogicalOperator",
    "LogicalPlan",
    "Read",
    "Rule",
    "StreamingExecutor",
    "TaskContext",
    "get_logical_ruleset",
    "operator_names",
    "operator_progress",
]


def operator_names(dataset: Dataset) -> str:
    """Returns the names of a dataset's steps, for errors: "ReadPickles -> MapBatches(Embed)"."""
    names = [operator.name for operator in dataset._logical_plan.dag.post_order_iter()]
    return " -> ".join(names)


def operator_progress(executor: StreamingExecutor) -> list[tuple[str, int, int]]:
    """Returns the name of each running operator, how often it made progress, and the number of its tasks in flight."""
    return [
        (
            operator.name,
            operator.metrics.num_task_outputs_generated + operator.metrics.num_tasks_finished,
            operator.metrics.num_tasks_running,
        )
        for operator in executor._topology or ()
    ]
