"""What a model's way of calling tools and of thinking means for a request."""

from collections.abc import Callable

from tuneserve.gateway._constraint import Constraint
from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._parts import PlainReader, Reader
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway.schemas import ChatRequest


def call_constraint(served: ServedModel, body: ChatRequest) -> Constraint | None:
    """Return the grammar that makes the model call what ``tool_choice`` asks for; None where it need not."""
    if body.tools and body.tool_choice != "none":
        message = f"'tools' are not something that the model {served.name!r} can call; leave them out."
        raise ApiError(400, message, param="tools", code="unsupported_parameter")
    return None


def make_reader(served: ServedModel, body: ChatRequest) -> Callable[[], Reader]:
    """Return what makes the reader of one sample."""
    return PlainReader
