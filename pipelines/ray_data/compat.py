"""The private names of Ray Data that `limits` uses, in one place.

tests/repo/test_private_names.py says which of them has moved when an upgrade breaks this import.
"""

from ray.data._internal.logical.interfaces import LogicalOperator, LogicalPlan, Rule
from ray.data._internal.logical.operators import Limit, Read
from ray.data._internal.logical.optimizers import get_logical_ruleset
from ray.data._internal.logical.rules import LimitPushdownRule

__all__ = ["Limit", "LimitPushdownRule", "LogicalOperator", "LogicalPlan", "Read", "Rule", "get_logical_ruleset"]
