"""How much a model is to think, in the variables of its chat template."""

from typing import Any

from tuneserve.gateway._errors import ApiError
from tuneserve.text import ChatTemplate

_SWITCHES = ("enable_thinking", "thinking")


def effort_variables(template: ChatTemplate, effort: str | None) -> dict[str, Any]:
    """Return the variables that ask for ``effort``: a level where the template knows levels, else on or off.

    Raises:
        ApiError: the template knows neither, and thinking is asked for.
    """
    if effort is None:
        return {}
    names = template.variables
    switches = {name: effort != "none" for name in _SWITCHES if name in names}
    if "reasoning_effort" in names:
        return {**switches, "reasoning_effort": effort}
    if not switches and effort != "none":
        message = "This model's chat template has no levels of thinking for 'reasoning_effort'; leave it out."
        raise ApiError(400, message, param="reasoning_effort", code="unsupported_parameter")
    return switches
