"""Rotary positions, in both forms in which configurations state them."""

from tuneserve.errors import SpecError
from tuneserve.spec._fields import Fields
from tuneserve.spec._spec import RopeScaling

_DEFAULT_THETA = 10000.0


def read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Return theta and the scaling, from ``rope_parameters`` (Transformers 5) or ``rope_theta`` and ``rope_scaling``.

    Raises:
        SpecError: a kind of scaling that the decoder does not implement.
    """
    parameters = fields.section("rope_parameters")
    if parameters is not None:
        theta = parameters.number("rope_theta", fields.number("rope_theta", _DEFAULT_THETA))
        return theta, _scaling(parameters)
    theta = fields.number("rope_theta", _DEFAULT_THETA)
    scaling = fields.section("rope_scaling")
    return theta, _scaling(scaling) if scaling else None


def _scaling(fields: Fields) -> RopeScaling | None:
    kind = fields.text("rope_type", fields.text("type", "default"))
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise SpecError("partial rotary positions are not in the native engine yet; use another engine.")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind=kind, factor=fields.number("factor"))
    if kind == "llama3":
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        if low >= high:
            raise SpecError("low_freq_factor is not below high_freq_factor in config.json; download the model again.")
        original = fields.size("original_max_position_embeddings")
        return RopeScaling(kind=kind, factor=fields.number("factor"), low=low, high=high, original_length=original)
    raise SpecError(f"the rope scaling {kind[:40]!r} is not in the native engine yet; use another engine.")
