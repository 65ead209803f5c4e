"""The tiny Llama of the recall task, with the initial weights that let it learn to look up."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from scope.errors import ScopeError
from scope.recall.vocabulary import BOS, EOS, PAD, TOKEN_ID, VOCABULARY


@dataclass(frozen=True)
class LlamaSize:
    """Shape of the model; the default has 261,312 parameters.

    Raises ScopeError if no Llama can have that shape.
    """

    layers: int = 4
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 192

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ScopeError(f"{name} must be at least 1, not {value}")
        if self.heads % self.kv_heads:
            raise ScopeError(
                f"heads must be a multiple of kv_heads {self.kv_heads}, not {self.heads}"
            )
        if self.head_dim % 2:
            raise ScopeError(f"head_dim must be even, not {self.head_dim}")


def build_model(size: LlamaSize, seed: int) -> LlamaForCausalLM:
    """A LlamaForCausalLM in float32 with random weights that depend on ``seed`` alone.

    Standard deviations: 1/sqrt(fan_in); o_proj and down_proj, which write to the residual stream,
    also / sqrt(2 * layers); embeddings 1/sqrt(hidden). With the usual 0.02 attention starts out
    nearly uniform at this width, which leaves the lookup little to grow from.
    """
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=size.hidden,
        intermediate_size=size.ffn,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=TOKEN_ID[BOS],
        eos_token_id=TOKEN_ID[EOS],
        pad_token_id=TOKEN_ID[PAD],
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            std = module.in_features**-0.5
            if name.endswith(("o_proj", "down_proj")):
                std *= (2 * size.layers) ** -0.5
            nn.init.normal_(module.weight, std=std, generator=generator)
    nn.init.normal_(model.model.embed_tokens.weight, std=size.hidden**-0.5, generator=generator)
    return model
