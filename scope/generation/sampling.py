"""How the next token is chosen: the likeliest, or one drawn by noise that names alone decide."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scope.kernels import argmax, sample
from scope.kernels.tensors import mixed


@dataclass(frozen=True)
class Sampler:
    """Draws every token from the model's predictions.

    The largest of logits / temperature plus Gumbel noise is a draw from their softmax. The noise
    depends on a text's number, the place of the token in the text, and the token, so neither the
    batch nor the order of the texts changes what is drawn.

    Attributes:
        numbers: of each prompt of a session: what its text's noise depends on.
        temperature: above 0.
        top_k: only so many of the likeliest tokens are drawn; 0 for all.
        top_p: only the likeliest tokens that together have this probability, after ``top_k``.
    """

    numbers: Sequence[int]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def choose(self, logits: Tensor, numbers: Tensor, places: Tensor) -> Tensor:
        """Next tokens ``[B]``, without waiting for the device.

        Args:
            logits: ``[B, vocabulary]``.
            numbers: ``[B]`` int64, each row's of ``self.numbers``.
            places: ``[B]`` int64, tokens that each text has already.
        """
        scores = logits.float() / self.temperature
        if self.top_k or self.top_p < 1:
            scores = scores.masked_fill(scores < self._least(scores), -torch.inf)
        return sample(scores, mixed(numbers + mixed(places)))

    def _least(self, scores: Tensor) -> Tensor:
        """``[B, 1]`` the lowest score that may be drawn; its equals may be, too."""
        top_k = min(self.top_k or scores.shape[1], scores.shape[1])
        likeliest = scores.topk(top_k, dim=-1).values
        if self.top_p >= 1:
            return likeliest[:, -1:]
        probabilities = likeliest.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1, dtype=torch.float64) - probabilities
        return likeliest.masked_fill(before >= self.top_p, torch.inf).amin(dim=-1, keepdim=True)


def text_number(seed: int, example: int, number: int) -> int:
    """A well mixed number of one of an example's texts, for `Sampler.numbers`."""
    mixed_so_far = torch.zeros((), dtype=torch.int64)
    for part in (seed, example, number):
        mixed_so_far = mixed(mixed_so_far + part)
    return int(mixed_so_far)


def choose(sampler: Sampler | None, logits: Tensor, numbers: Tensor, places: Tensor) -> Tensor:
    """The likeliest tokens ``[B]``, or those that a sampler draws."""
    if sampler is None:
        return argmax(logits)
    return sampler.choose(logits, numbers, places)
