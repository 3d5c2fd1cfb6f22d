"""Codegen: a KernelPlan as readable Triton text, a Schedule as wrapper text."""
