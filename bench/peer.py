"""What TorchInductor does on the metered cases: the figures that fusec is held against.

Counted from the code that TorchInductor of torch 2.13 generates with its defaults for sm_90, one step each. The ratios
are defined in bench/metered.py. They are constants: the peer generates GPU code only where torch knows CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "TorchInductor, torch 2.13 defaults, code generated for sm_90"


@dataclass(frozen=True)
class Peer:
    """kernels and calls: launches of one step, generated ones and library calls.

    bytes_ratio: None where library calls move most of the bytes: it then follows from what as many calls move and
    from `avoidable` (`bench.metered.implied`).
    All are None where the peer's code was not counted.
    """

    kernels: int | None
    calls: int | None
    bytes_ratio: float | None
    avoidable: float | None
    requested_ratio: float | None


NOT_COUNTED = Peer(None, None, None, None, None)


PEER: dict[str, Peer] = {
    "bias_gelu": Peer(1, 0, 1.00, 0.00, 1.50),
    "transpose_pointwise": Peer(1, 0, 1.00, 0.00, 1.00),
    "split_heads_scale": Peer(3, 0, 1.00, 0.50, 1.50),
    "rms": Peer(1, 0, 1.00, 0.00, 1.53),
    "group_norm_silu_nhwc": Peer(2, 0, 1.50, 0.50, 1.02),
    "softmax_8192": Peer(1, 0, 1.00, 0.00, 1.50),
    "softmax_131072": Peer(1, 0, 1.00, 0.00, 1.50),
    "sum_all_axes_scaled": Peer(3, 1, 2.06, 0.97, 1.00),
    "quant_fp8_rowwise": Peer(1, 0, 1.00, 0.00, 1.67),
    "clip_grad_norm": Peer(51, 0, 1.50, 0.50, 1.00),
    "adamw_foreach": Peer(3, 0, 1.00, 0.00, 1.00),
    "adamw_step": NOT_COUNTED,
    "clip_adamw_step": NOT_COUNTED,
    "sgd_momentum_step": NOT_COUNTED,
    "rms_32768": NOT_COUNTED,
    "rms_262144": NOT_COUNTED,
    "rms_train": NOT_COUNTED,
    "ln_16384_train": NOT_COUNTED,
    "geglu_train": NOT_COUNTED,
    "softmax_train": NOT_COUNTED,
    "batch_norm_relu_nhwc_train": NOT_COUNTED,
    "xent_131072_train": NOT_COUNTED,
    "xent_262144_train": NOT_COUNTED,
    "embedding_large_train": NOT_COUNTED,
    "relative_bias_train": NOT_COUNTED,
    "llama_infer": Peer(17, 17, None, 0.22, 1.53),
    "bert_infer": Peer(7, 14, None, 0.15, 1.05),
    "gpt2_infer": Peer(11, 11, None, 0.33, 1.21),
    "swiglu_train": Peer(2, 0, 1.33, 0.00, 1.00),
    "rope_qk_train": Peer(4, 0, 1.01, 0.01, 2.47),
    "ln_train": Peer(4, 2, 1.38, 0.00, 1.22),
    "residual_dropout_ln_train": Peer(6, 3, 1.71, 0.11, 1.01),
    "group_norm_silu_train": Peer(6, 0, 3.25, 1.60, 2.54),
    "batch_norm_relu_train": Peer(7, 0, 2.38, 0.58, 2.89),
    "masked_attn_softmax_train": Peer(2, 0, 1.26, 0.00, 1.18),
    "xent_32000_train": Peer(3, 0, 1.50, 0.00, 1.00),
    "huber_train": Peer(3, 0, 1.67, 0.00, 1.00),
    "embedding_train": Peer(4, 0, 3.82, 2.82, 1.17),
    "max_pool_relu_train": Peer(5, 0, 3.75, 1.50, 1.06),
    "llama_train": Peer(42, 54, None, 1.35, 1.06),
}
