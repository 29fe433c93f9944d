#!/usr/bin/env python3
"""Run local optimised inference on a model or adapter.

With a prompt, answer it: ``unsloth-inference_tool.py outputs/my-adapter "Where is my parcel?"``; without, chat in the
terminal. The options are those of ``tuneserve generate`` and ``tuneserve chat``.
"""

import sys

from tuneserve.cli import main

if __name__ == "__main__":
    names = [argument for argument in sys.argv[1:3] if not argument.startswith("-")]
    sys.argv.insert(1, "generate" if len(names) == 2 or "--help" in sys.argv else "chat")
    main()
