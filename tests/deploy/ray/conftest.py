"""Ray Serve, imported once with the warnings that its own code gives rise to."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401
