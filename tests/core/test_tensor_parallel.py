"""A model split over two processes decodes as one that is whole."""

from datetime import timedelta
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import LlamaConfig

from scope import patch
from scope.attention import joined as joined_module
from scope.attention.splitting import allowed_ranks, split_over_ranks
from scope.cache import writing
from scope.generation.fused import fused_step
from scope.generation.session import Session
from tests.core.tiny import backend, compression_of, random_tokens, tiny_model

pytest.importorskip("triton", reason="the kernels need Triton")

PROMPTS = [random_tokens(length, seed=length) for length in (60, 25)]
FUSED = not torch.cuda.is_available()  # Triton interprets no tensors of a CPU where it compiles
CASES = [
    ("gqa", ("H2O", "h2o"), False),
    ("qwen2", ("SnapKV", "slide"), FUSED),
    ("qwen3", ("SnapKV", "slide"), FUSED),
]
STEPS = 4


def decode(name: str, methods: tuple[str, str], fused: bool, split: bool = False) -> torch.Tensor:
    """Logits of greedy decoding; fused, on a CPU in Triton's interpreter."""
    model = tiny_model(name, num_layers=2)
    if split:
        split_over_ranks(model)
    logits: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as change, torch.inference_mode():
        change.setattr(writing, "backend_for", lambda keys: backend(fused))
        change.setattr(joined_module, "has_kernels_for", lambda keys: fused)
        with patch(model):
            session = Session(model, compression_of(*methods, 40, 8, 4, 2), PROMPTS, STEPS)
            logits.append(session.prefill())
            for _ in range(STEPS - 1):
                tokens = logits[-1].argmax(dim=-1)
                if fused:
                    session.cache.begin_forward(len(tokens), 1, None, tokens.device)
                    logits.append(fused_step(model, session.cache, tokens).clone())
                else:
                    logits.append(session.step(tokens))
            assert session.cache.layers[0].keys.shape[1] == model.config.num_key_value_heads
    return torch.stack(logits)


def rank(number: int, ranks: int, folder: Path) -> None:
    import_module("tests.conftest")  # as every test's process
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group(
        "gloo", store=store, rank=number, world_size=ranks, timeout=timedelta(seconds=120)
    )
    torch.set_num_threads(1)
    torch.save({case: decode(*case, split=True) for case in CASES}, folder / f"{number}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    mp.spawn(rank, (2, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    for case in CASES:
        whole = decode(*case)
        assert torch.equal(first[case], second[case])
        assert torch.equal(first[case].argmax(dim=-1), whole.argmax(dim=-1))
        torch.testing.assert_close(first[case], whole, rtol=0, atol=1e-4)


def test_allowed_ranks() -> None:
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8}
    assert allowed_ranks(LlamaConfig(**heads, intermediate_size=28672)) == [1, 2, 4, 8]
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}
    assert allowed_ranks(LlamaConfig(**heads, intermediate_size=18944)) == [1, 2, 4]
    assert allowed_ranks(LlamaConfig(**heads, intermediate_size=18946)) == [1, 2]
