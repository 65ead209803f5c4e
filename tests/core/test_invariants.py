"""What holds for every method and strategy, at every step, whatever the attention is."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor

from scope import SlotCache, patch
from tests.core.tiny import PAIRS, compression_of, left_padded, random_tokens, tiny_model

C, W, R, T, P, ONE_IN = 12, 8, 3, 20, 4, 2
ZETA = (T - R) / (W - R)
PYRAMIDS = ("PyramidKV", "PyramidInfer", "pyramidinfer")
UNEVEN = (*PYRAMIDS, "ZigZagKV")
UNIFIED = ("h2o", "slm", "pyramidinfer", "lococo")
MODELS_AND_LENGTHS = [("mha", [24]), ("gqa", [24, 9, 17])]


@dataclass
class Trace:
    """One generation, told by what every head held.

    Attributes:
        held: positions ``[step][row][layer][head]``; step 0 is after the prompt.
        prompt_states: keys and values of the slots that the prompt took, then and at the end.
        slots: ``[layer]`` slots allocated.
    """

    method: str
    strategy: str
    prompt_lengths: list[int]
    held: list[list[list[list[set[int]]]]]
    prompt_states: tuple[list[Tensor], list[Tensor]]
    slots: list[int]

    def rows(self) -> Iterator[tuple[int, int, list[list[set[int]]], list[list[set[int]]]]]:
        """Prompt length, step t, and what ``[layer][head]`` held before and after it."""
        for step in range(1, T + 1):
            for row, length in enumerate(self.prompt_lengths):
                yield length, step, self.held[step - 1][row], self.held[step][row]

    def capacity(self, prompt_length: int) -> int:
        return prompt_length if self.method == "ALLKV" else C


@pytest.fixture(
    scope="module",
    params=product(PAIRS, MODELS_AND_LENGTHS),
    ids=lambda param: f"{'-'.join(param[0])}-{param[1][0]}-batch{len(param[1][1])}",
)
def trace(request: pytest.FixtureRequest) -> Trace:
    (method, strategy), (model_name, lengths) = request.param
    model = tiny_model(model_name)
    compression = compression_of(method, strategy, C, 3, W, R, period=P, keep_one_in=ONE_IN)
    cache = SlotCache(model.config, compression, T)
    forced = torch.tensor([random_tokens(T, seed=n) for n in lengths])
    with patch(model), torch.inference_mode():
        model(**left_padded([random_tokens(n, seed=n) for n in lengths]), past_key_values=cache)
        held, states = [_held(cache)], _states(cache, lengths)
        for tokens in forced.T:
            model(input_ids=tokens[:, None], past_key_values=cache)
            held.append(_held(cache))
    slots = [layer.opened().keys.shape[2] for layer in cache.layers]
    return Trace(method, strategy, lengths, held, (states, _states(cache, lengths)), slots)


def _held(cache: SlotCache) -> list[list[list[set[int]]]]:
    rows = range(len(cache.schedule.prompt_lengths))
    layers = [layer.opened().positions for layer in cache.layers]
    return [
        [[set(head) - {-1} for head in positions[row].tolist()] for positions in layers]
        for row in rows
    ]


def _states(cache: SlotCache, prompt_lengths: list[int]) -> list[Tensor]:
    """Keys and values of every slot whose token is of the prompt, zeros elsewhere."""
    ends = torch.tensor(prompt_lengths)[:, None, None]
    return [
        states * ((layer.positions >= 0) & (layer.positions < ends))[..., None]
        for layer in (layer.opened() for layer in cache.layers)
        for states in (layer.keys, layer.values)
    ]


def test_heads_of_a_layer_hold_equally_many(trace: Trace) -> None:
    for _, _, _, after in trace.rows():
        for heads in after:
            assert len({len(head) for head in heads}) == 1


def test_prompt_is_cut_to_the_budget(trace: Trace) -> None:
    for length, layers in zip(trace.prompt_lengths, trace.held[0], strict=True):
        kept = [len(heads[0]) for heads in layers]
        budget = min(length, trace.capacity(length))
        if trace.method in UNEVEN and length > C:
            assert sum(kept) == len(kept) * budget
            assert kept[0] > kept[-1] or trace.method not in PYRAMIDS
        else:
            assert kept == [budget] * len(kept)


def test_physical_length_stays_within_the_budget(trace: Trace) -> None:
    highest = [0] * len(trace.slots)
    for length, step, before, _ in trace.rows():
        attended = [len(heads[0]) + 1 for heads in before]
        highest = [max(pair) for pair in zip(highest, attended, strict=True)]
        pool = {"None": step, "refreshkv": step, "periodic": W + P, "rpc": R + step / ONE_IN + P}
        budget = trace.capacity(length) + pool.get(trace.strategy, W + 1)
        if trace.strategy == "discontinuous":
            budget += ZETA
        assert sum(attended) <= len(attended) * budget
        if trace.method not in UNEVEN and trace.strategy not in UNEVEN:
            assert max(attended) == min(attended)
    if trace.method != "ZigZagKV":  # whose slots are allocated together
        assert highest == trace.slots, "as many slots as are ever used"


def test_decode_pool_is_what_the_strategy_allows(trace: Trace) -> None:
    for length, step, _, after in trace.rows():
        grown = R + max(0, (step - R) * (W - R) // (T - R))
        pools = {"slide": W, "adaptive": grown, "discontinuous": grown + ZETA}
        pools |= {"periodic": W + P - 1, "rpc": R + step // ONE_IN + P - 1}
        most = pools.get(trace.strategy, T)
        for head in (head for heads in after for head in heads):
            generated = sum(position >= length for position in head)
            assert generated <= most
            if trace.strategy not in (*UNIFIED, "discontinuous", "periodic", "rpc"):
                assert generated == min(step, most)


def test_scope_never_touches_the_prompt(trace: Trace) -> None:
    if trace.strategy in UNIFIED:
        return
    for then, now in zip(*trace.prompt_states, strict=True):
        assert torch.equal(then, now)


def test_last_r_stay(trace: Trace) -> None:
    for length, step, _, after in trace.rows():
        end = length + step
        recent = set(range(max(length, end - R), end))
        assert all(recent <= head for heads in after for head in heads)


def test_nothing_leaves_before_the_pool_is_full(trace: Trace) -> None:
    if trace.strategy == "pyramidinfer":
        return  # every layer has a budget of its own: test_reference checks it
    for length, step, before, after in trace.rows():
        spare = max(0, trace.capacity(length) - length)  # of a prompt shorter than its budget
        quiet = {
            "None": T,
            "refreshkv": T,
            "slide": W,
            "adaptive": R,
            "discontinuous": R + ZETA,
            "rpc": P - 1,
        }
        if step <= quiet.get(trace.strategy, W + spare):
            for old, new in zip(before, after, strict=True):
                assert all(o < n for o, n in zip(old, new, strict=True))
