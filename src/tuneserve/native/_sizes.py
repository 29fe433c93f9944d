"""How large the cache of a decoder is, and how many sequences run in it."""

import torch

from tuneserve.errors import InputError
from tuneserve.hardware import available_memory
from tuneserve.native._blocks import BLOCK_SIZE, blocks_for
from tuneserve.native._cache import bytes_per_block
from tuneserve.native._decoders import LoadedDecoder
from tuneserve.native._load import EngineConfig, default_running
from tuneserve.native._states import bytes_per_slot
from tuneserve.native._transformers import TransformersDecoder

# The rest is for activations, and for whatever else runs on the machine.
_CACHE_SHARE = 0.6


def free_memory(device: torch.device) -> int:
    """Return the bytes of a device's memory that nobody uses."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available_memory()


def cache_blocks(config: EngineConfig, decoder: LoadedDecoder, free: int | None = None) -> int:
    """Return how many blocks the cache has, the one included that is never used.

    ``free`` bytes of memory are left on each device of several, None is those of the only one.

    Raises:
        InputError: what was asked for does not fit in memory, or does not hold one sequence of full length.
    """
    each, state = _block_and_state_bytes(decoder)
    running, context = _meant_to_run(config, decoder), decoder.context_length
    states = running * state
    usable = _usable_bytes(decoder.device) if free is None else int(free * _CACHE_SHARE)
    if states > usable:
        raise InputError(
            f"the states of {running} sequences take {states / 1e9:.1f} GB and {usable / 1e9:.1f} GB can be used; "
            "choose a smaller max_running."
        )
    usable -= states
    fitting = usable // each - 1
    wanted = min(fitting, running * blocks_for(context))
    if config.cache_tokens is not None:
        wanted = config.cache_tokens // BLOCK_SIZE
    if wanted > fitting:
        raise InputError(
            f"a cache of {wanted * BLOCK_SIZE} tokens takes {wanted * each / 1e9:.1f} GB and {usable / 1e9:.1f} GB can "
            "be used; choose fewer cache_tokens."
        )
    if wanted < blocks_for(context):
        limit = (
            f"the memory that can be used ({usable / 1e9:.1f} GB)" if config.cache_tokens is None else "cache_tokens"
        )
        raise InputError(
            f"{limit} has room for {max(0, wanted * BLOCK_SIZE)} tokens, and one sequence of the context takes "
            f"{blocks_for(context) * BLOCK_SIZE}; choose a shorter context or a larger cache."
        )
    return wanted + 1


def running_limit(config: EngineConfig, decoder: LoadedDecoder, blocks: int) -> int:
    """Return how many sequences are computed together.

    Raises:
        InputError: it is none, or more than the cache has blocks for.
    """
    usable = blocks - 1
    wanted = min(_meant_to_run(config, decoder), usable) if config.max_running is None else config.max_running
    if not 1 <= wanted <= usable:
        raise InputError(
            f"max_running is {wanted} and the cache has {usable} blocks, of which each sequence takes one or more; "
            f"choose from 1 to {usable}."
        )
    return wanted


def _meant_to_run(config: EngineConfig, decoder: LoadedDecoder) -> int:
    """Return how many sequences run if the cache holds them; as many as usual if half the memory has their states."""
    if config.max_running:
        return config.max_running
    each = _block_and_state_bytes(decoder)[1]
    usual = default_running(decoder.device)
    return min(usual, max(1, _usable_bytes(decoder.device) // (2 * each))) if each else usual


def _block_and_state_bytes(decoder: LoadedDecoder) -> tuple[int, int]:
    """Return what a block of the cache takes, and what a sequence keeps beside it."""
    if isinstance(decoder, TransformersDecoder):
        return max(1, BLOCK_SIZE * decoder.token_bytes), decoder.state_bytes
    return max(1, bytes_per_block(decoder.spec, decoder.dtype)), bytes_per_slot(decoder.spec, decoder.dtype)


def _usable_bytes(device: torch.device) -> int:
    return int(free_memory(device) * _CACHE_SHARE)
