"""Two layers of three known models with random bfloat16 weights, as functions of token ids.

    logits = llama(hidden=1024, heads=16, kv_heads=4, intermediate=2816, vocabulary=32000)(ids)

They are built on torch's current default device, by transformers, which is imported only here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Model = Callable[[torch.Tensor], torch.Tensor]
LAYERS = 2


def _ready(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Built in bfloat16, not converted: a conversion replaces parameters, which fake tensors do not allow."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return build().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _llama(hidden: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        num_hidden_layers=LAYERS,
        use_cache=False,
    )
    return _ready(lambda: LlamaForCausalLM(config))


def llama(hidden: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int) -> Model:
    """Logits of a Llama."""
    model = _llama(hidden, heads, kv_heads, intermediate, vocabulary)

    def llama_logits(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(ids, use_cache=False).logits
        return logits

    return llama_logits


def llama_loss(**sizes: int) -> tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tuple[torch.Tensor, ...]]:
    """The loss of a Llama, of token ids and the ids that follow them, and the parameters it depends on."""
    model = _llama(**sizes).requires_grad_(True)

    def loss(ids: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), following.flatten())

    return loss, tuple(model.parameters())


def bert(hidden: int, heads: int, vocabulary: int) -> Model:
    """Last hidden state of a BERT."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        vocab_size=vocabulary,
        num_hidden_layers=LAYERS,
    )
    model = _ready(lambda: BertModel(config, add_pooling_layer=False))

    def bert_states(ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = model(ids).last_hidden_state
        return states

    return bert_states


def gpt2(hidden: int, heads: int, vocabulary: int) -> Model:
    """Logits of a GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=hidden, n_head=heads, vocab_size=vocabulary, n_layer=LAYERS, use_cache=False)
    model = _ready(lambda: GPT2LMHeadModel(config))

    def gpt2_logits(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(ids, use_cache=False).logits
        return logits

    return gpt2_logits
