"""Reads answers out of generated text: first by their printed number, then the value in each.

A text is cut at headings (``Answer_12:``, ``**Answer 12:**``, ...). The value follows the last
``answer is`` of the piece, or stands in ``\\boxed{}``, or is the piece's only line; read leniently,
it is else the piece's last number or option letter. Everything here takes time linear in the text
and never raises, because the text is whatever a model wrote.

An existing parser was tried for the values: math-verify 0.9 reads ``5%`` as 1/20 where GSM8K's gold
answer is 5, misses the typographic minus sign, and takes about a millisecond an answer.
"""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import pairwise

_HEADING = re.compile(
    r"(?P<word>Answer|Question)[_ ](?P<number>[0-9]{1,9})\**[ \t]*(?::|$)", re.MULTILINE
)
_STATEMENT = re.compile(r"\banswer(?: is:?|:)", re.IGNORECASE)
_VALUE_LENGTH = 300  # characters after "answer is" in which the value must stand

_MARKUP = str.maketrans({"−": "-", "–": "-"} | dict.fromkeys("*_`\"'“”‘’$€£{}\\"))
_NUMBER = re.compile(
    r"[\s:(]*(?P<sign>[-+]?)"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})?(?P<decimals>\.[0-9]{1,40})?"
    r"(?:/(?P<denominator>[0-9]{1,40}))?"
)
# What makes the number before it a part of something else: 3:30, 1,2, 2 and 3, 4 + x, 1.2.3, 1/2/3
_GOES_ON = re.compile(r"[0-9]|[.,/:][0-9]|\s*[-+*/×÷^:]\s*(?:[0-9.]|[a-z]\b)|(?:,| and| or) *[0-9]")

_LETTER = re.compile(r"[\s:]*(?:\((?P<inside>[A-Za-z])\)|(?P<bare>[A-Z])(?P<after>\)|\b))")
_ANY_NUMBER = re.compile(
    r"(?<![\w.,/:-])[-+]?(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})(?:\.[0-9]{1,40})?(?![0-9])"
)
_ANY_LETTER = re.compile(
    r"\((?P<inside>[A-J])\)|\b(?P<before>[A-J])\)|^(?P<head>[A-J])(?=[.,:;]|[ \t]*$)"
    r"|\b(?:is|be|choose|choice|option|letter|answer)[ :]{1,3}(?P<after>[A-J])(?![\w'])",
    re.MULTILINE,
)
_ARTICLE = re.compile(r"(?:the|an?|to) ")
_NOT_WORD = re.compile(r"[\W_]+")


def split_answers(text: str) -> dict[int, str]:
    """The text below each printed answer number.

    A number that is printed again before the next one begins counts with its last occurrence that
    says something; one that comes back later, as in a loop, does not count. A repeated
    ``Question_n:`` ends the answer before it.
    """
    pieces: dict[int, str] = {}
    current = None
    for heading, following in pairwise([*_HEADING.finditer(text), None]):
        if heading["word"] == "Question":
            continue
        number = int(heading["number"])
        piece = text[heading.end() : following.start() if following else None].strip()
        if number not in pieces or (number == current and piece):
            pieces[number] = piece
        current = number
    return pieces


def read_number(answer: str) -> Fraction | None:
    """The number an answer states, exactly.

    ``$1,250.50``, ``**-3**``, ``\\boxed{7}``, ``2/3`` and ``5%`` (which is 5) are read, and units
    may follow. Of an equation (``4 + 5 = 9 apples``) the number after the last ``=`` counts.
    """
    for statement in _statements(answer):
        line = statement.rpartition("=")[2]
        match = _NUMBER.match(line)
        if match is None or not (match["whole"] or match["decimals"]):
            continue
        if _GOES_ON.match(line, match.end()):
            continue
        digits = (match["whole"] or "0").replace(",", "") + (match["decimals"] or "")
        denominator = int(match["denominator"] or 1)
        if denominator:
            return Fraction(match["sign"] + digits) / denominator
    return None


def read_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The option an answer names: ``(B)``, ``B)``, ``B``, ``**B**``, or the option's own text.

    Args:
        answer: one piece of ``split_answers``.
        options: the question's options by letter, as ``read_options`` gives them; may be empty.
    """
    by_text = {_plain(text): letter for letter, text in options.items()}
    by_text.pop("", None)
    for line in _statements(answer):
        letter = _LETTER.match(line)
        if letter and (letter["inside"] or letter["after"] == ")"):
            return (letter["inside"] or letter["bare"]).upper()
        said = _plain(line) + " "
        named = [text for text in by_text if said.startswith(text + " ")]
        if named:
            return by_text[max(named, key=len)]
        if letter:
            return letter["bare"]
    return None


def hint_at_number(answer: str) -> Fraction | None:
    """The number that an answer states, or else the last one in it."""
    stated = read_number(answer)
    if stated is not None:
        return stated
    numbers = _ANY_NUMBER.findall(answer.translate(_MARKUP))
    return Fraction(numbers[-1].replace(",", "")) if numbers else None


def hint_at_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names, or else the last letter in it that can be one.

    That is ``(B)``, ``B)``, and ``B`` at the head of a line or after a word such as ``option``.
    """
    named = read_choice(answer, options)
    if named is not None:
        return named
    plain = answer.translate(_MARKUP)
    letters = [match[match.lastgroup or 0] for match in _ANY_LETTER.finditer(plain)]
    known = [letter for letter in letters if not options or letter in options]
    return known[-1] if known else None


def read_options(question: str) -> dict[str, str]:
    """The options ``(A) ... (B) ...`` by letter; (A) begins the last line that begins so."""
    options: dict[str, str] = {}
    _, found, rest = f"\n{question}".rpartition("\n(A)")
    for letter, following in pairwise("ABCDEFGHIJ"):
        if not found:
            break
        text, found, rest = rest.partition(f"({following})")
        options[letter] = text.strip()
    return options


def _statements(answer: str) -> Iterator[str]:
    """The line after each ``answer is`` or ``\\boxed``, no markup, the last first, none twice."""
    plain = answer.replace("\\boxed", "answer is").translate(_MARKUP)
    markers = list(_STATEMENT.finditer(plain))
    end = len(plain)
    said: set[str] = set()  # a loop says the same over and over
    for marker in reversed(markers):
        value = plain[marker.end() : min(end, marker.end() + _VALUE_LENGTH)]
        line = value.strip().partition("\n")[0]
        if line not in said:
            yield line
        said.add(line)
        end = marker.start()
    if not markers and "\n" not in plain:
        yield plain[:_VALUE_LENGTH]


def _plain(text: str) -> str:
    """Lower case, words only, one space between them, without a leading article."""
    return _ARTICLE.sub("", _NOT_WORD.sub(" ", text.casefold()).strip(), count=1)
