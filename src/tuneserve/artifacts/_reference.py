"""What an export's results are compared with."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneserve.adapters import check_patterns_end
from tuneserve.artifacts._plan import Blend, ExportPlan
from tuneserve.errors import InputError
from tuneserve.parity import quiet, unloadable
from tuneserve.sources import ResolvedSource
from tuneserve.spec import check_buildable

_NAME = "combined"


@contextmanager
def reference(plan: ExportPlan) -> Iterator[ResolvedSource]:
    """Yield the source that was trained: the export's own, or for several or weighted adapters PEFT's combination.

    PEFT combines what the adapters hold, on a base without data, so this takes no more memory than they do and shares
    nothing with the merge that is to be checked.

    Raises:
        SourceError: Transformers or PEFT cannot load or combine them.
    """
    if plan.blend is None:
        yield plan.source
        return
    with tempfile.TemporaryDirectory(prefix="tuneserve-blend-") as scratch:
        try:
            with quiet():
                _combine(plan, plan.blend, Path(scratch))
        except InputError:
            raise
        # Of what makes no sense to them, each class of the two libraries complains in its own way.
        except Exception as error:
            raise unloadable(plan.source.name, error) from error
        yield replace(plan.source, adapter_dir=Path(scratch) / _NAME)


def _combine(plan: ExportPlan, blend: Blend, directory: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    check_buildable(plan.model.config)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(plan.source.model_dir, local_files_only=True, trust_remote_code=False)
        base: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # Memory that is asked for and never touched takes none.
    base.to_empty(device="cpu")
    for adapter in plan.adapter_dirs:
        check_patterns_end(adapter, (module for module, _ in base.named_modules()))
    names = [f"adapter{index}" for index in range(len(plan.adapter_dirs))]
    model = PeftModel.from_pretrained(base, str(plan.adapter_dirs[0]), adapter_name=names[0])
    for name, adapter in zip(names[1:], plan.adapter_dirs[1:], strict=True):
        model.load_adapter(str(adapter), adapter_name=name)
    rank = {"svd_rank": blend.combination.rank} if blend.combination.rank else {}
    model.add_weighted_adapter(names, list(blend.weights), _NAME, combination_type=blend.combination.kind, **rank)
    model.save_pretrained(directory, selected_adapters=[_NAME])
