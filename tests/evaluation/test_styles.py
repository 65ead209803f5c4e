"""What configurations look like in a report: each its own way, in whatever order they come."""

from math import gcd

from scope.evaluation.styles import COLOURS, MARKERS, looks_of

SCORES = ["current", "cumulative", "max_decay", "recent", "random", "snapkv_decode", "rkv", "rpc"]
NAMES = [f"{method}+slide ({score})" for method in ("ALLKV", "H2O", "SnapKV") for score in SCORES]


def test_no_two_look_the_same() -> None:
    assert gcd(len(set(COLOURS)), len(set(MARKERS))) == 1
    looks = looks_of(NAMES)
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(NAMES) == 24


def test_a_few_differ_without_colours() -> None:
    looks = looks_of(NAMES[:11])
    assert len({look["marker"] for look in looks.values()}) == 11


def test_neither_order_nor_repetition_changes_anything() -> None:
    assert looks_of([*NAMES[::-1], NAMES[3]]) == looks_of(NAMES)
