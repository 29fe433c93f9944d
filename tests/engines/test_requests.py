"""Protects: what no engine can compute is refused before it is asked, by the name of the field."""

from typing import Any

import pytest

from tuneserve.engines.contract import EngineInfo, GenerationRequest, Grammar, SamplingParams
from tuneserve.engines.requests import check_request
from tuneserve.errors import RequestError

INFO = EngineInfo(
    engine="some", version="1", context_length=8, vocab_size=10, dtype="float32", device="cpu", weight_bytes=1,
    max_running=1, lacks=("typical_p", "grammar:lark"), adapters=("tickets",),
)  # fmt: skip


def request(ids: list[int], adapter: str | None = None, **params: Any) -> GenerationRequest:
    return GenerationRequest(id="r", prompt_ids=ids, params=SamplingParams(**params), adapter=adapter)


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        (request([]), "prompt", "no tokens"),
        (request([1] * 8), "prompt", "8 tokens, which leaves no room in the context of 8"),
        (request([-1]), "prompt", "outside 0 to 9"),
        (request([10]), "prompt", "outside 0 to 9"),
        (request([1], stop_token_ids=(10,)), "stop_token_ids", "outside 0 to 9"),
        (request([1], logit_bias={-1: 1.0}), "logit_bias", "outside 0 to 9"),
        (request([1], bad_words=((1, 10),)), "bad_words", "outside 0 to 9"),
        (request([1], "other" * 100), "adapter", r"'(other){20}' is not being served"),
        (request([1], temperature=-1), "temperature", "outside 0 to 100"),
        (request([1], typical_p=0.5), "typical_p", "some does not have typical_p"),
        (request([1], grammar=Grammar(kind="lark", text="x")), "grammar", "does not have grammar lark"),
    ],
)
def test_it_is_refused_with_its_name(asked: GenerationRequest, param: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        check_request(asked, INFO)
    assert caught.value.param == param


def test_all_else_is_let_through() -> None:
    grammar = Grammar(kind="regex", text="a+")
    check_request(request([0, 9] * 3, "tickets", grammar=grammar, stop_token_ids=(9,), bad_words=((0,),)), INFO)
