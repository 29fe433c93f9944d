"""A decoder that is Transformers' own modelling code, with a cache of its own for each sequence."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tuneserve.errors import SpecError
from tuneserve.native._transformers_load import FAILURES, reason_of

# Long enough that a wrong mask or a state that is not carried on shows; the rest of it is computed from the cache.
_PROBE, _PROBE_PREFILL = 14, 6
# Of the largest logit; a cache that is not heeded is wrong by about as much as that one.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
_CACHES = ("past_key_values", "cache_params")
_CONTEXTS = ("max_position_embeddings", "max_seq_len")


class TransformersDecoder:
    """Computes one sequence at a time.

    The model's own forward pass is used in two parts: up to the hidden states after the last norm, and from there to
    logits, whatever a family does with them. Whether the parts and the cache give what the whole gives is tried when
    it is made.

    Attributes:
        context_length: tokens per sequence.
        vocab_size: how many logits there are.
        token_bytes: of a sequence's cache, per token.
        state_bytes: of a sequence's cache, whatever its length.
    """

    def __init__(self, model: Any, context_length: int) -> None:
        """Take over ``model``, on its device.

        Raises:
            SpecError: the model cannot be computed in these parts.
        """
        self.model = model
        self.context_length = context_length
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._decoder = model.get_decoder()
        try:
            with torch.inference_mode():
                self._try_out()
        except FAILURES as error:
            raise SpecError(
                f"Transformers cannot run this model ({reason_of(error)}); download it again, or use another engine."
            ) from error

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory that the weights take."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())

    def forward(self, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Return the hidden states (tokens, hidden) of ``ids``, int64 (tokens), and the cache with them in it.

        ``cache`` is what the call before returned for the same sequence, None for its first tokens. It is changed.
        """
        given = {} if cache is None else {self._cache_name: cache}
        output = self._decoder(input_ids=ids[None], use_cache=True, **given)
        return output.last_hidden_state[0], output[self._cache_name]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (tokens, vocabulary)."""
        decoder, output = self._decoder, self._output(last_hidden_state=hidden[None])
        decoder.forward = lambda *_, **__: output
        try:
            ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
            # Sampling changes logits in place.
            logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
            return logits.to(torch.float32, copy=True)
        finally:
            del decoder.forward

    def _try_out(self) -> None:
        vocabulary = self.model.get_input_embeddings().num_embeddings
        count = min(_PROBE, self.context_length)
        ids = torch.arange(3, 3 + count, device=self.device) * 7 % vocabulary
        output = self._decoder(input_ids=ids[None, :1], use_cache=True)
        self._output = type(output)
        names = [name for name in _CACHES if output.get(name) is not None]
        if not names or not hasattr(output, "last_hidden_state"):
            raise _refused("it gives no cache to go on from")
        self._cache_name = names[0]
        whole = self.model(input_ids=ids[None], use_cache=False).logits[0].float()
        self.vocab_size = whole.shape[-1]
        if vocabulary < self.vocab_size:
            raise _refused(f"it knows {vocabulary} tokens and predicts {self.vocab_size}")
        prefill = min(_PROBE_PREFILL, count - 1)
        hidden, cache = self.forward(ids[:prefill], None)
        before = cache_bytes(cache)
        rows = [hidden[-1:]]
        for index in range(prefill, count):
            hidden, cache = self.forward(ids[index : index + 1], cache)
            rows.append(hidden)
        after = cache_bytes(cache)
        self.token_bytes = max(0, after - before) // (count - prefill)
        self.state_bytes = max(0, before - prefill * self.token_bytes)
        parts = self.logits(torch.cat(rows))
        wanted = whole[prefill - 1 :]
        errors = (parts - wanted).abs().amax(-1) / wanted.abs().amax(-1)
        # In 16 bits a token may be sent to another expert, so not every row has to agree.
        error = errors.median().item()
        if not error <= _TOLERANCE[self.dtype]:
            raise _refused(f"what it computes from its cache is off by {error:.1g} of the largest logit")


def context_limit(config: Any) -> int | None:
    """Return how many tokens a model was made for, None where its configuration does not say."""
    found = [getattr(config, name, None) for name in _CONTEXTS]
    return next((value for value in found if type(value) is int and value > 0), None)


def cache_bytes(cache: Any) -> int:
    """Return the bytes of all tensors in one of Transformers' caches."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in _tensors(cache)}.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif type(value).__module__.startswith("transformers.") and not hasattr(value, "model_type"):
        yield from _tensors(vars(value))


def _refused(problem: str) -> SpecError:
    return SpecError(f"the model cannot be run through Transformers: {problem}; use another engine.")
