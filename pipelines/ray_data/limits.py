"""Gives a limit to the read below it: `ds.take(5)` reads 5 samples.

Ray Data limits a read only where another step is between the two, and then each of its tasks by itself.
"""

from dataclasses import replace

from dray.pipelines.ray_data.compat import (
    Limit,
    LimitPushdownRule,
    LogicalOperator,
    LogicalPlan,
    Read,
    Rule,
    get_logical_ruleset,
)
from dray.pipelines.ray_data.datasource import SampleDatasource


class LimitReads(Rule):
    """Limits each read of samples whose rows go to a limit and nowhere else."""

    @classmethod
    def dependencies(cls) -> list[type[Rule]]:
        """Returns the rule that moves a limit down to its read."""
        return [LimitPushdownRule]

    def apply(self, plan: LogicalPlan) -> LogicalPlan:  # type: ignore[override]
        """Returns the plan with limited reads."""
        return LogicalPlan(plan.dag._apply_transform(_limited), plan.context)


def _limited(operator: LogicalOperator) -> LogicalOperator:
    if not isinstance(operator, Limit):
        return operator
    read = operator.input_dependencies[0]
    if not isinstance(read, Read) or not isinstance(read.datasource, SampleDatasource):
        return operator
    datasource = read.datasource.limited(operator.limit)
    limited = replace(read, datasource=datasource, datasource_or_legacy_reader=datasource)
    return Limit(operator.limit, input_dependencies=[limited])


def install() -> None:
    """Adds the rule to those by which this process optimizes; once."""
    rules = get_logical_ruleset()
    if LimitReads not in rules:
        rules.add(LimitReads)
