"""Run llama.cpp's own HTTP server out of the package xllamacpp, which has it as a library and not as a program.

Run by the interpreter of that package's environment, alone, with one argument: a JSON
object of ``xllamacpp.CommonParams``. The API key comes in the environment, as llama-server's does.
"""

import importlib
import json
import os
import signal
import sys


def main() -> None:
    """Serve until a signal ends the process."""
    settings = json.loads(sys.argv[1])
    library = importlib.import_module("xllamacpp")
    params = library.CommonParams()
    params.model.path = settings.pop("model")
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    params.lora_adapters = [library.CommonAdapterLoraInfo(path, 1.0) for path in settings.pop("lora_adapters")]
    for name, value in settings.items():
        setattr(params, name, value)
    try:
        server = library.Server(params)
    except RuntimeError as error:
        sys.exit(str(error))
    # The library's handlers end its own loop and leave this process behind.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while server.listening_address:
        signal.pause()


if __name__ == "__main__":
    main()
