"""Methods that quantise by what the model does on the user's own text, through ``llmcompressor``.

That library pins its own PyTorch and Transformers, so it runs as a child process in an environment of its own. It holds
the whole merged model in memory: the bound that other methods keep does not hold here.
"""

from tuneserve.artifacts.calibrated._run import CALIBRATED, Calibrator, open_calibrator, run_calibrated
from tuneserve.artifacts.calibrated._text import CalibrationText

__all__ = ["CALIBRATED", "CalibrationText", "Calibrator", "open_calibrator", "run_calibrated"]
