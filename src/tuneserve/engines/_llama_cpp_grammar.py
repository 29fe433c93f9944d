"""Grammars in the forms that llama.cpp takes: llguidance's where it was built with that, else its own GBNF."""

import json
import re
from typing import Any

from tuneserve.engines.contract import Grammar
from tuneserve.errors import RequestError

# What llama.cpp tells the two forms apart by.
_MARK = "%llguidance"
_SLASH = re.compile(r"(\\.)|/", re.DOTALL)


def llguidance_text(grammar: Grammar) -> str:
    """Return ``grammar`` in llguidance's form.

    Raises:
        RequestError: it is malformed; llama.cpp itself would go on without it.
    """
    from llguidance import LLMatcher

    text = _lark(grammar)
    if not text.startswith(_MARK):
        text = f"{_MARK} {{}}\n{text}"
    try:
        problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(text))
    except UnicodeEncodeError:
        problem = "half of a surrogate pair is not text"
    if problem:
        shown = " ".join(problem.split())[:300].rstrip(".")
        raise RequestError(f"the grammar cannot be used ({shown}); correct it.", "grammar")
    return text


def gbnf_text(grammar: Grammar) -> str:
    """Return a ``choice`` or ``json_object`` as GBNF, llama.cpp's own form."""
    if grammar.kind == "choice":
        return "root ::= " + " | ".join(map(_literal, _choices(grammar)))
    assert grammar.kind == "json_object", "others are lacking"
    return _JSON_OBJECT


def _literal(text: str) -> str:
    def escaped(character: str) -> str:
        if character in '"\\':
            return "\\" + character
        return character if character.isprintable() else f"\\U{ord(character):08X}"

    return '"' + "".join(map(escaped, text)) + '"'


def _lark(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_object":
            return 'start: %json {"type": "object"}'
        case "json_schema":
            return f"start: %json {json.dumps(_parsed(grammar))}"
        case "regex":
            return "start: /" + _SLASH.sub(lambda found: found[1] or "\\/", grammar.text).replace("\n", "\\n") + "/"
        case "choice":
            return "start: " + " | ".join(json.dumps(choice) for choice in _choices(grammar))
        case "lark":
            return grammar.text


def _choices(grammar: Grammar) -> list[str]:
    choices = _parsed(grammar)
    if not (isinstance(choices, list) and choices and all(isinstance(choice, str) and choice for choice in choices)):
        raise RequestError("the choices are not a list of strings; send at least one.", "grammar")
    return choices


def _parsed(grammar: Grammar) -> Any:
    try:
        return json.loads(grammar.text)
    except (ValueError, RecursionError):
        raise RequestError(f"the {grammar.kind} is not JSON; correct it.", "grammar") from None


_JSON_OBJECT = r"""root ::= object
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws ( string ws ":" ws value ws ( "," ws string ws ":" ws value ws )* )? "}"
array ::= "[" ws ( value ws ( "," ws value ws )* )? "]"
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" ( ["\\bfnrt/] | "u" [0-9a-fA-F]{4} ) )* "\""
number ::= "-"? ( "0" | [1-9] [0-9]{0,15} ) ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,2} )?
ws ::= [ \t\n]{0,20}
"""
