"""An engine that tells the exact probabilities of a Transformers model, for checks of what checks engines."""

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, TokenChunk, TokenLogprob


class ModelEngine:
    """Serves the model in ``directory``, and those in ``adapters`` by name; always one token, the likeliest."""

    def __init__(
        self,
        directory: Path,
        adapters: Mapping[str, Path] | None = None,
        lacks: tuple[str, ...] = (),
        context_length: int = 128,
    ) -> None:
        names: dict[str | None, Path] = {None: directory}
        names.update(adapters or {})
        self._models = {
            name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for name, path in names.items()
        }
        self.ready = True
        self.closed = False
        self.prompts: list[list[int]] = []
        self.info = EngineInfo(
            engine="exact", version="1", context_length=context_length, vocab_size=256, dtype="float32", device="cpu",
            weight_bytes=1, max_running=1, lacks=lacks, adapters=tuple(adapters or ()),
        )  # fmt: skip

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        assert len(request.prompt_ids) < self.info.context_length
        self.prompts.append(request.prompt_ids)
        with torch.inference_mode():
            logits = self._models[request.adapter](input_ids=torch.tensor([request.prompt_ids])).logits[0]
        *old, new = self._places(logits.log_softmax(-1), request)
        asked, old_asked = request.params.logprobs is not None, request.params.prompt_logprobs is not None
        assert not old_asked or "prompt_logprobs" not in self.info.lacks
        yield TokenChunk(
            token_ids=[new.token_id],
            finish_reason="length",
            logprobs=[new] if asked and "silent" not in self.info.lacks else None,
            prompt_logprobs=old if old_asked and "silent" not in self.info.lacks else None,
        )

    @staticmethod
    def _places(logprobs: torch.Tensor, request: GenerationRequest) -> list[TokenLogprob]:
        count = request.params.logprobs or 0
        tops = [
            list(zip(row.indices.tolist(), row.values.tolist(), strict=True))
            for row in (each.topk(count) for each in logprobs)
        ]
        tokens = [*request.prompt_ids[1:], int(logprobs[-1].argmax())]
        return [
            TokenLogprob(token, float(row[token]), top) for token, row, top in zip(tokens, logprobs, tops, strict=True)
        ]

    async def stats(self) -> EngineStats:
        return EngineStats(running=0, waiting=0, cache_usage=0)

    async def close(self) -> None:
        self.closed = True
