"""What a LoRA configuration means for the modules of a model, by PEFT's rules (``check_target_module_exists``)."""

import math

from tuneserve.adapters._config import LoraConfig
from tuneserve.adapters._match import Matcher, Modules, PatternValues, layer_index

_ALL_LINEAR = "all-linear"


class Rules:
    """Answers questions about dotted module paths.

    Raises:
        AdapterError: (from each method) a pattern is no regular expression, or takes too long to match.
    """

    def __init__(self, config: LoraConfig) -> None:
        self._config = config
        self._matcher = Matcher()
        self._targets = Modules(config.target_modules or (), self._matcher)
        self._excluded = Modules(config.exclude_modules or (), self._matcher)
        self._parameters = Modules(config.target_parameters, self._matcher)
        self._ranks = PatternValues(config.rank_pattern, self._matcher)
        self._alphas = PatternValues(config.alpha_pattern, self._matcher)

    def rank(self, module: str) -> int:
        """Return the rank of the delta of ``module``."""
        return self._ranks.get(module, self._config.r)

    def scaling(self, module: str) -> float:
        """Return the factor of B @ A for ``module``: alpha/r, or alpha/sqrt(r) for rsLoRA (arXiv:2312.03732)."""
        alpha, rank = self._alphas.get(module, self._config.alpha), self.rank(module)
        return alpha / math.sqrt(rank) if self._config.use_rslora else alpha / rank

    def is_target(self, module: str) -> bool:
        """Return whether training put a delta on ``module``."""
        config = self._config
        if config.exclude_modules and module in self._excluded:
            return False
        if any(self._matcher.full_match(rf"(^|.*\.){name}($|\..*)", module) for name in config.modules_to_save):
            return False
        if config.target_modules is None:
            return False
        if self.is_all_linear:
            return layer_index(module, (), self._matcher) is not None
        if module not in self._targets:
            return False
        if config.layers_to_transform is None or self._targets.names_whole(module):
            return True
        return layer_index(module, config.layers_pattern, self._matcher) in config.layers_to_transform

    @property
    def is_all_linear(self) -> bool:
        """Whether the targets are all linear layers, which only the model that was trained could list."""
        targets = self._config.target_modules
        return isinstance(targets, str) and targets.lower() == _ALL_LINEAR

    def is_target_parameter(self, parameter: str) -> bool:
        """Return whether training put a delta on the bare parameter ``parameter``."""
        return parameter in self._parameters

    def is_saved(self, parameter: str) -> bool:
        """Return whether ``parameter`` belongs to a module that was trained in full (``modules_to_save``)."""
        return bool(self._config.modules_to_save) and self.belongs(parameter, self._config.modules_to_save)

    def belongs(self, parameter: str, endings: str | tuple[str, ...]) -> bool:
        """Return whether ``parameter`` is in a module whose path ends with one of ``endings``."""
        module = parameter
        while "." in module:
            module = module.rpartition(".")[0]
            if module.endswith(endings):
                return True
        return False
