"""The synthetic recall task: copy every record of the prompt in order, and add up along references.

Prompt (shuffled records, then the number to begin with)::

    <bos> K7 falcon 3 X5   K5 planet 4 NONE   K6 guitar 9 X5   RECALL K5

Answer (records in order of their numbers, each with its sum and its word spelled)::

    K5 planet 4 NONE 4 p l a n e t   K6 guitar 9 X5 3 g u i t a r   K7 falcon 3 X5 7 ... <eos>

A record ``K_i w d X_r`` refers to the earlier answer r, and its sum is ``s = (d + s_r) mod 10``, or
``d`` without reference. Every prompt record is needed once, some late; the sums of a few *hubs* are
needed again and again; all other generated tokens are soon useless, the spelling at once.
"""

from dataclasses import dataclass

import numpy as np

from scope.errors import ScopeError
from scope.recall.vocabulary import BOS, INDICES, NONE, RECALL, TOKEN_ID, WORDS

REFERENCE_PROBABILITY = 0.7
RECORD_FIELDS = 4  # K w d X
WORD, DIGIT, REFERENCE, SUM = 1, 2, 3, 4  # places in an answer, after K and before the filler
SPELLING = np.array([[TOKEN_ID[letter] for letter in word] for word in WORDS])


@dataclass(frozen=True)
class RecallTask:
    """One size of the task.

    records: number n of records, 1 to 64.
    filler: letters of the word that each answer spells, 0 to 6; never needed again.
    hubs: number of answers, drawn from the first ``2 * hubs``, that the others refer to; 0 lets
        them refer to any earlier answer.
    addends: the digits of records that refer are below this, 1 to 10; a help in training.

    Raises ScopeError for a value out of range.
    """

    records: int = 32
    filler: int = 6
    hubs: int = 4
    addends: int = 10

    def __post_init__(self) -> None:
        for name, low, high in (
            ("records", 1, INDICES),
            ("filler", 0, len(WORDS[0])),
            ("hubs", 0, INDICES // 2),
            ("addends", 1, 10),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ScopeError(f"recall {name} must be {low} to {high}, not {value}")

    @property
    def answer_fields(self) -> int:
        """Tokens of one answer: K w d X s and the filler."""
        return RECORD_FIELDS + 1 + self.filler

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt: <bos>, the records, RECALL and the first K."""
        return self.records * RECORD_FIELDS + 3

    @property
    def answer_length(self) -> int:
        """Tokens to generate: the answers without the K that the prompt gives, and <eos>."""
        return self.records * self.answer_fields

    def sample(self, rng: np.random.Generator, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``batch`` examples as token ids.

        Returns the prompts [B, prompt_length], whose records are shuffled, and the answers
        [B, n, answer_fields], which are in index order. The first index is random and indices wrap
        around at 64, so that all of them occur equally often.
        """
        n = self.records
        keys = (rng.integers(INDICES, size=(batch, 1)) + np.arange(n)) % INDICES
        words = rng.integers(len(WORDS), size=(batch, n))
        sources = self._draw_sources(rng, batch)
        digits = rng.integers(np.where(sources >= 0, self.addends, 10))

        rows = np.arange(batch)
        sums = np.zeros((batch, n + 1), dtype=np.int64)  # source -1 reads the 0 at the end
        for i in range(n):
            sums[:, i] = (digits[:, i] + sums[rows, sources[:, i]]) % 10
        none = np.full((batch, 1), TOKEN_ID[NONE])
        references = np.concatenate([TOKEN_ID["X0"] + keys, none], axis=1)

        answers = np.concatenate(
            [
                (TOKEN_ID["K0"] + keys)[..., None],
                (TOKEN_ID[WORDS[0]] + words)[..., None],
                (TOKEN_ID["0"] + digits)[..., None],
                references[rows[:, None], sources][..., None],
                (TOKEN_ID["0"] + sums[:, :n])[..., None],
                SPELLING[words, : self.filler],
            ],
            axis=-1,
        )
        order = rng.random((batch, n)).argsort(axis=1)
        records = answers[rows[:, None], order, :RECORD_FIELDS].reshape(batch, -1)
        bos, recall = (np.full((batch, 1), TOKEN_ID[token]) for token in (BOS, RECALL))
        return np.concatenate([bos, records, recall, answers[:, 0, :1]], axis=1), answers

    def _draw_sources(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Which earlier answer each record refers to [B, n]; -1 is none.

        The answer after a hub refers to that hub, any other with probability 0.7 to one of the hubs
        before it. Without hubs it is one of all answers before it.
        """
        n = self.records
        index = np.arange(n)
        draws = rng.random((2, batch, n))
        refers = draws[0] < REFERENCE_PROBABILITY
        if self.hubs == 0:
            return np.where(refers & (index > 0), (draws[1] * index).astype(np.int64), -1)

        places = np.tile(np.arange(2 * self.hubs), (batch, 1))
        hubs = np.sort(rng.permuted(places, axis=1)[:, : self.hubs], axis=1)
        hubs_before = (hubs[:, None] < index[:, None]).sum(axis=-1)
        follows_hub = (hubs[:, None] == index[:, None] - 1).any(axis=-1)
        choice = np.where(follows_hub, hubs_before - 1, (draws[1] * hubs_before).astype(np.int64))
        refers = follows_hub | (refers & (hubs_before > 0))
        return np.where(refers, np.take_along_axis(hubs, np.maximum(choice, 0), axis=1), -1)
