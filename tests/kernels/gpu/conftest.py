"""Triton's kernels run in its interpreter, on the CPU; that is decided before they are imported."""

import os

os.environ["TRITON_INTERPRET"] = "1"
