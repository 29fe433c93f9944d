"""Makes the modules of the example importable under the names that its scripts use."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples" / "tickets"))
