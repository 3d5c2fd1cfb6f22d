"""Capture: a Python function and its inputs become an FX graph of aten ops, with names a reader knows."""
