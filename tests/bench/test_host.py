"""The table of the host's time: a row a case, with launches that go to the stand-in where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from bench import host


def test_a_row_has_the_parts_of_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert host.main(["--cases", "bias_gelu", "ln_train", "--calls", "2"]) == 0
    first, *_, inference, training = capsys.readouterr().out.splitlines()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "stand-in"
    assert first.startswith("microseconds of the host") and where in first
    for line, name in ((inference, "bias_gelu"), (training, "ln_train")):
        case, *numbers = line.split()
        eager, call, dynamo, _, graphs = map(float, numbers)
        assert case == name and min(eager, dynamo, graphs) > 0 and call > graphs


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_launches_reach_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []
    monkeypatch.setattr(host._STAND_IN, "_launch_kernel", lambda *arguments: launched.append(len(arguments)))
    host.main(["--cases", "bias_gelu", "--calls", "1"])
    assert len(launched) >= 2 * (host.ROUNDS + 1) and set(launched) == {9}
