"""A tiny random Llama in a .gguf file, whole or damaged."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel

_HIDDEN, _MIDDLE, _KV = 32, 48, 16
_TOKENS = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "w1"]
_BLOCK = {
    "attn_norm": (_HIDDEN,),
    "ffn_norm": (_HIDDEN,),
    "attn_q": (_HIDDEN, _HIDDEN),
    "attn_k": (_KV, _HIDDEN),
    "attn_v": (_KV, _HIDDEN),
    "attn_output": (_HIDDEN, _HIDDEN),
    "ffn_gate": (_MIDDLE, _HIDDEN),
    "ffn_up": (_MIDDLE, _HIDDEN),
    "ffn_down": (_HIDDEN, _MIDDLE),
}


def write_gguf(
    path: Path, layers: int = 2, leave_out: Collection[str] = (), add: Collection[str] = ()
) -> Path:
    """Two blocks of weights under a configuration of so many layers."""
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_MIDDLE)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(_TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(_TOKENS)
    writer.add_token_types([3, 3, 3, *([1] * (len(_TOKENS) - 3))])
    writer.add_token_merges(["w 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd.weight": (len(_TOKENS), _HIDDEN), "output_norm.weight": (_HIDDEN,)}
    for block in range(2):
        shapes |= {f"blk.{block}.{name}.weight": shape for name, shape in _BLOCK.items()}
    shapes |= dict.fromkeys(add, (_HIDDEN,))
    generator = np.random.default_rng(0)
    for name in shapes.keys() - set(leave_out):
        writer.add_tensor(name, generator.standard_normal(shapes[name]).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
