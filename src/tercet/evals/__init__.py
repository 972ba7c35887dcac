"""Evaluate: what models are asked, how answers become scores with errors, and how two checkpoints are compared."""

from tercet.evals.compare import compare
from tercet.evals.fakes import EchoGenerator, OracleGenerator
from tercet.evals.suite import SUITES, TASKS, needs, task, tasks
from tercet.evals.task import Generated, Item, Task, TaskError
from tercet.stats import CompareError, Comparison, GateError

__all__ = [
    "SUITES",
    "TASKS",
    "CompareError",
    "Comparison",
    "EchoGenerator",
    "GateError",
    "Generated",
    "Item",
    "OracleGenerator",
    "Task",
    "TaskError",
    "compare",
    "needs",
    "task",
    "tasks",
]
