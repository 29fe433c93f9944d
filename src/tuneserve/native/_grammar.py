"""Output that keeps to a grammar, through llguidance: compiled beside the steps, and a mask of tokens in each.

Compiling and each mask are bounded by llguidance's own limits, and grammars by their length.
"""

import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuneserve.engines.contract import Grammar
from tuneserve.errors import RequestError, TextError
from tuneserve.text import open_tokenizer

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

# A list of choices that long takes about a second.
_MAX_CHARACTERS = 200_000
_KEPT = 32
_THREADS = 2
_MOST_THREADS = 16
# The library follows references by recursion, up to 16 KiB for each of those that a grammar of that length can chain,
# and the process dies where its stack ends. Only what is touched takes memory.
_STACK_BYTES = 512 << 20
# Half of llguidance's defaults or less: a mask takes up to 10 ms, and the states of a lexer up to 40 MB.
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 25_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
TOO_COMPLEX = "the grammar became too complex to follow; simplify it."


class GrammarState:
    """How far a sequence has come in its grammar, over a tokenizer's ``vocabulary``."""

    def __init__(self, matcher: "LLMatcher", vocabulary: int) -> None:
        self.matcher = matcher
        self.vocabulary = vocabulary

    @property
    def ended(self) -> bool:
        """Whether nothing more can follow."""
        return self.matcher.is_stopped()

    @property
    def failed(self) -> bool:
        """Whether a limit was reached."""
        return self.matcher.is_error()

    def advance(self, token: int) -> None:
        """Take a token that the mask allowed."""
        self.matcher.consume_token(token)

    def allowed(self, tokens: list[int]) -> int:
        """Return how many of ``tokens`` may follow one after the other."""
        return self.matcher.validate_tokens(tokens)


def forbidden(states: Sequence[tuple["GrammarState", list[int]]], vocabulary: int) -> NDArray[np.bool_]:
    """Return which tokens may not follow, (rows, vocabulary): for each state a row, and one after each draft token.

    Args:
        states: each with a draft that it allows. Nothing is said of what comes after a draft's end token.
        vocabulary: tokens that there are logits for.
    """
    from llguidance import numpy as masks

    plain, drafted, rows = [], [], 0
    for state, draft in states:
        if draft:
            drafted.append((state.matcher, rows, draft))
        else:
            plain.append((state.matcher, rows))
        rows += 1 + len(draft)
    bits = masks.allocate_token_bitmask(rows, states[0][0].vocabulary)
    if plain:
        masks.fill_next_token_bitmask_par(_executor(), plain, bits)
    if drafted:
        masks.fill_next_token_bitmask_par_with_draft_tokens(_executor(), drafted, bits)
    return np.unpackbits(~bits.view(np.uint8), axis=1, count=vocabulary, bitorder="little").view(np.bool_)


@cache
def _executor() -> "LLExecutor":
    from llguidance import LLExecutor

    return LLExecutor(num_threads=min(_MOST_THREADS, len(os.sched_getaffinity(0))))


class Grammars:
    """Compiles grammars for one model, in threads of its own.

    Args:
        tokenizer_dir: where the tokenizer is; None where the model came without one.
        model_dir: where else the end tokens may be named.
        vocab_size: tokens that the model has logits for.
    """

    def __init__(self, tokenizer_dir: Path | None, model_dir: Path, vocab_size: int) -> None:
        self._tokenizer_dir = tokenizer_dir
        self._model_dir = model_dir
        self._vocab_size = vocab_size
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")
        self._compiled = lru_cache(_KEPT)(self._compile)

    def start(self, grammar: Grammar, past: list[int]) -> "Future[GrammarState]":
        """Return what will be the state of a sequence that has the tokens ``past``.

        Its result raises :class:`~tuneserve.errors.RequestError` where the grammar cannot be used.
        """
        # The pool starts its threads as it is given work.
        before = threading.stack_size(_STACK_BYTES)
        try:
            return self._threads.submit(self._state, grammar, past)
        finally:
            threading.stack_size(before)

    def _state(self, grammar: Grammar, past: list[int]) -> GrammarState:
        matcher = self._compiled(grammar.kind, grammar.text).deep_copy()
        state = GrammarState(matcher, self._tokenizer.vocab_size)
        for token in past:
            state.advance(token)
        return state

    def _compile(self, kind: str, text: str) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        tokenizer = self._tokenizer
        matcher = LLMatcher(tokenizer, _definition(kind, text), log_level=0, limits=LLParserLimits(**_LIMITS))
        if not matcher.is_error():
            # What allows no first token is only noticed now.
            matcher.compute_bitmask()
        if matcher.is_error():
            reason = " ".join(matcher.get_error().removesuffix("<non-verbose/>").split())[:300].rstrip(".")
            reason = "nothing matches it" if reason.startswith("NoExtension") else reason
            raise _refusal(reason)
        return matcher

    @cached_property
    def _tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer

        if self._tokenizer_dir is None:
            raise RequestError(
                "the model has no tokenizer, so its output cannot be constrained; leave the grammar out.", "grammar"
            )
        try:
            tokenizer = open_tokenizer(self._tokenizer_dir, self._model_dir)
            size = max(self._vocab_size, tokenizer.vocab_size)
            ends = sorted(token for token in tokenizer.end_token_ids if token < size)
            # One is needed; where the model has none, it is one that cannot come.
            return LLTokenizer(tokenizer.backend.to_str(), n_vocab=size if ends else size + 1, eos_token=ends or [size])
        except (ValueError, TextError) as error:
            reason = str(error).partition("\n")[0][:200].rstrip(".")
            raise RequestError(
                f"this model's tokenizer cannot be constrained ({reason}); leave the grammar out.", "grammar"
            ) from None


def _definition(kind: str, text: str) -> str:
    from llguidance import LLMatcher

    if len(text) > _MAX_CHARACTERS:
        raise _refusal(f"it has {len(text)} characters, more than {_MAX_CHARACTERS}")
    try:
        text.encode()
        if kind == "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}')
        if kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(text)
        if kind == "regex":
            return LLMatcher.grammar_from_regex(text)
        return LLMatcher.grammar_from_lark(_choices(text) if kind == "choice" else text)
    except (ValueError, RecursionError) as error:
        raise _refusal(str(error).partition("\n")[0][:300].rstrip(".")) from None


def _choices(text: str) -> str:
    choices = json.loads(text)
    if (
        not isinstance(choices, list)
        or not choices
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise ValueError("a choice is a JSON array of strings that are not empty")
    return "start: " + " | ".join(json.dumps(choice) for choice in choices)


def _refusal(reason: str) -> RequestError:
    return RequestError(f"the grammar cannot be used ({reason}); correct it.", "grammar")
