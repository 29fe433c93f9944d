"""Regular expressions from files that strangers wrote."""

import math

import regex

_MAX_CHARACTERS = 10_000
_MAX_REPETITIONS = 1000


def compile_pattern(pattern: str) -> "regex.Pattern[str]":
    """Compile a pattern in bounded time; a match must still be given a timeout.

    Raises:
        ValueError: it is no regular expression, or would take too long to compile.
    """
    # Compiling writes repetitions out, so that nested ones multiply; each could be nested in all others.
    counts = [max(map(int, regex.findall("[0-9]+", count)), default=1) for count in regex.findall("{[^}]*}", pattern)]
    repetitions = 2 ** min(pattern.count("+"), 64) * math.prod(count + 1 for count in counts[:64])
    if len(pattern) > _MAX_CHARACTERS or len(counts) > 64 or repetitions > _MAX_REPETITIONS:
        raise ValueError("it repeats too often")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError):
        raise ValueError("it is not a regular expression") from None
