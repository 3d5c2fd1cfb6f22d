"""Names, source locations and the CapturedGraph's own checks."""

from __future__ import annotations

import pytest
import torch
from torch.fx import symbolic_trace

from fusec.capture.graph import CapturedGraph, is_symbolic, readable_name, trim_stack, user_location


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("L['x']", "x"),
        (
            "L['self']._modules['encoder']._modules['layer']._modules['0']._parameters['weight']",
            "encoder.layer.0.weight",
        ),
        ("L['self']._buffers['running_mean']", "running_mean"),
        ("L['batch']['ids']", "batch.ids"),
        ("L['xs'][1]", "xs.1"),
        ("L['state'].mean", "state.mean"),
        ("G['scale']", "scale"),
        ("L['args'][0]", "input"),
        ("L['args'][1]", "input_1"),
        ("L['kwargs']['input_ids']", "input_ids"),
        ("L['self'].param_groups[0]['params'][3].grad", "params.3.grad"),
        ("L['self'].state[list(dict.keys(L['self'].state))[1]]['exp_avg']", "exp_avg"),
        (
            "L['opt'].state[list(dict.keys(L['opt'].state))[0]]"
            "[list(dict.keys(L['opt'].state[list(dict.keys(L['opt'].state))[0]]))[2]]",
            "state.2",
        ),
        ("weird", "weird"),
    ],
)
def test_readable_name(source: str, expected: str) -> None:
    assert readable_name(source) == expected


def test_user_location_skips_frames_inside_torch() -> None:
    user = '  File "/home/u/model.py", line 31, in forward\n    y = f(x)\n'
    trace = user + f'  File "{torch.nn.functional.__file__}", line 7, in f\n    return g()\n'
    assert user_location(trace) == ("/home/u/model.py", 31, "y = f(x)")


def test_user_location_without_a_trace_is_empty() -> None:
    assert user_location(None) == ("", 0, "")


def test_captured_graph_needs_one_name_per_placeholder() -> None:
    gm = symbolic_trace(lambda x, y: x + y)
    with pytest.raises(AssertionError, match="2 placeholders, 1 inputs"):
        CapturedGraph(gm, (torch.ones(1),), ("x", "y"))


def test_static_inputs_are_not_symbolic() -> None:
    assert not is_symbolic([torch.ones(2, 3), 4])


def test_trim_stack_ends_at_the_users_frame() -> None:
    user = '  File "/home/u/model.py", line 31, in forward\n    y = f(x)\n'
    torch_frame = f'  File "{torch.nn.functional.__file__}", line 7, in f\n    return g()\n'
    assert trim_stack(user + torch_frame) == user
    assert trim_stack(torch_frame + user) == torch_frame + user
    assert trim_stack(torch_frame) == torch_frame
