"""Scheduling: which nests share a kernel, how each kernel is tiled, where each buffer lives."""

from fusec.schedule.memory import plan_memory
from fusec.schedule.scheduler import schedule
from fusec.schedule.simplify import simplify

__all__ = ["plan_memory", "schedule", "simplify"]
