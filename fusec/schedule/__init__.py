"""Scheduling: which nests share a kernel, how each kernel is tiled, where each buffer lives."""

from fusec.schedule.memory import plan_memory
from fusec.schedule.scheduler import group_error, schedule
from fusec.schedule.simplify import simplify

__all__ = ["group_error", "plan_memory", "schedule", "simplify"]
