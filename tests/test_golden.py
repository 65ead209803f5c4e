"""The published code's own runs, where they are at hand, and small cases of our own."""

from pathlib import Path

import pytest

from scope import patch
from tests.golden import Golden, main, replay

TESTS = Path(__file__).parent
PUBLISHED = TESTS.parents[1] / "shared" / "reference" / "golden"


published = pytest.mark.skipif(
    not PUBLISHED.exists(), reason=f"the golden runs of the published code are not at {PUBLISHED}"
)


@published
def test_published_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(PUBLISHED), "--attn_implementation", "sdpa"])
    assert code == 0, capsys.readouterr().out


@published
def test_published_runs_begin_the_same_with_eager_attention() -> None:
    """The model's own attention is asked for prompts alone."""
    golden = Golden.open(PUBLISHED)
    models = {name: golden.model(name, "eager") for name in golden.manifest["models"]}
    for name in golden.cases():
        with patch(models[golden.manifest["cases"][name]["model"]]) as model:
            assert replay(model, golden.case(name), first=3) == [], name


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_own_cases(attn_implementation: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(TESTS / "golden_cases"), "--attn_implementation", attn_implementation])
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("array", "what"),
    [
        ("logits", "logits"),
        ("cache_len", "cache length"),
        ("attended_len", "attended length"),
        ("kept_mask", "kept positions"),
    ],
)
def test_any_difference_is_told(array: str, what: str) -> None:
    golden = Golden.open(TESTS / "golden_cases")
    case = golden.case("llama_kv1__h2o__h2o__L10")
    case.expected[array].flat[-1] += 1
    with patch(golden.model("llama_kv1", "sdpa")) as model:
        (line,) = replay(model, case)
    assert line.startswith(f"{what} at step 40")


def test_a_worse_choice_is_no_tie() -> None:
    golden = Golden.open(TESTS / "golden_cases")
    case = golden.case("llama_kv1__snapkv__slide__L24")
    with patch(golden.model("llama_kv1", "sdpa")) as model:
        assert replay(model, case) == []
        best_of_head = case.expected["prefill_kept_0"][:, 0]
        best_of_head[0] = case.expected["prefill_score_0"][0].argmin()
        assert replay(model, case)[0] == "prefill scores at step 0: layer 0 head 0"
