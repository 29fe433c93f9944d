"""The exceptions of tuneserve.

::

    TuneserveError              anything tuneserve raises on purpose; exit code 2
    ├── InputError              what the user gave cannot be used as it is
    │   ├── SourceError         a source name that leads to no usable files
    │   ├── CheckpointError     a weight file that is missing, truncated or malformed
    │   ├── SpecError           a model configuration that is malformed or not supported
    │   │   └── UnsupportedModelError   one that is well-formed and that the native decoder does not compute
    │   ├── AdapterError        an adapter that is malformed, not understood, or made for another base
    │   ├── TextError           a tokenizer or chat template that is missing, broken or unsafe
    │   ├── RequestError        a generation request that cannot be honoured
    │   ├── HardwareError       hardware that does not exist, or on which the model cannot be served
    │   └── OutputError         an output path that cannot be written
    ├── ParityError             checked, and not the model that was trained; exit code 1
    └── EngineError             an engine that did not start, died, or answered nonsense

The message of each is one sentence that says what is wrong and what to do about it.
"""


class TuneserveError(Exception):
    """Base of every exception raised on purpose; ``exit_code`` is what the command line returns for it."""

    exit_code = 2


class InputError(TuneserveError):
    """What the user gave cannot be used as it is."""


class SourceError(InputError):
    """A source name leads to no usable files."""


class CheckpointError(InputError):
    """A weight file is missing, truncated or malformed."""


class SpecError(InputError):
    """A model configuration is malformed or not supported."""


class UnsupportedModelError(SpecError):
    """A model configuration asks for something that the native decoder does not compute."""


class AdapterError(InputError):
    """An adapter is malformed, not understood, or made for another base."""


class TextError(InputError):
    """A tokenizer or chat template is missing, broken or unsafe."""


class RequestError(InputError):
    """A generation request cannot be honoured; ``param`` names the offending field where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class HardwareError(InputError):
    """There is no such hardware, or the model cannot be served on it as asked."""


class OutputError(InputError):
    """An output path cannot be written."""


class ParityError(TuneserveError):
    """The candidate was checked and is not the model that was trained."""

    exit_code = 1


class EngineError(TuneserveError):
    """An engine did not start, died, or answered something that is not in its contract."""
