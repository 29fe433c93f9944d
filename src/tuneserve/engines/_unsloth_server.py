"""Unsloth as a server: ``python _unsloth_server.py PORT CONFIG``, run by the interpreter that has Unsloth.

It uses nothing of tuneserve, which that interpreter does not have. CONFIG is JSON: ``model``, ``adapter`` (of the model
itself), ``adapters`` (by name), ``context`` and ``dtype``. The key that requests must bring is in the environment. One
sequence is computed at a time, the others wait. ``POST /generate`` answers with an event for each token.
"""

import hmac
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "TUNESERVE_ENGINE_KEY"
_MAX_BODY = 64 * 2**20


class Runner:
    """The model, and the one sequence that it computes."""

    def __init__(self, config: dict[str, Any]) -> None:
        # Unsloth first: it changes what the others do.
        import torch
        import unsloth

        self._torch = torch
        self._lock = threading.Lock()
        self._fixed = config["adapter"] is not None
        self._names = set(config["adapters"])
        dtype = None if config["dtype"] == "auto" else getattr(torch, config["dtype"])
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            config["model"], max_seq_length=config["context"], dtype=dtype, load_in_4bit=False, trust_remote_code=False
        )
        self._base = model
        adapters = {"default": config["adapter"]} if self._fixed else config["adapters"]
        for name, directory in adapters.items():
            model = self._attach(model, name, directory)
        unsloth.FastLanguageModel.for_inference(model)
        from transformers import GenerationConfig

        # The model's own defaults are the gateway's to apply.
        model.generation_config = GenerationConfig()
        self._base.generation_config = model.generation_config
        self._model = model
        self.running = self.waiting = 0

    @staticmethod
    def _attach(model: Any, name: str, directory: str) -> Any:
        if hasattr(model, "peft_config"):
            model.load_adapter(directory, adapter_name=name)
            return model
        from peft import PeftModel

        return PeftModel.from_pretrained(model, directory, adapter_name=name)

    @property
    def facts(self) -> dict[str, Any]:
        """What is served."""
        weights = list(self._model.parameters())
        return {
            "vocab_size": int(self._model.get_output_embeddings().weight.shape[0]),
            "dtype": str(next(weight.dtype for weight in weights if weight.is_floating_point())).removeprefix("torch."),
            "device": str(weights[0].device),
            "weight_bytes": sum(weight.numel() * weight.element_size() for weight in weights),
        }

    def generate(self, body: dict[str, Any], emit: Any) -> None:
        """Compute one sequence; ``emit`` is given each event, and returns whether somebody still listens."""
        self.waiting += 1
        with self._lock:
            self.waiting -= 1
            self.running = 1
            try:
                self._generate(body, emit)
            finally:
                self.running = 0

    def _generate(self, body: dict[str, Any], emit: Any) -> None:
        from transformers import StoppingCriteriaList

        torch, whole = self._torch, body["logprobs"] is not None
        listening = [True]

        class Streamer:
            """Hands tokens on; the first that it is given is the prompt."""

            def __init__(self) -> None:
                self.prompt = True

            def put(self, value: Any) -> None:
                if not self.prompt and not whole and listening[0]:
                    listening[0] = emit({"token_ids": value.reshape(-1).tolist()})
                self.prompt = False

            def end(self) -> None:
                """Nothing follows."""

        def left(input_ids: Any, *_: Any, **__: Any) -> Any:
            return torch.full((input_ids.shape[0],), not listening[0], device=input_ids.device)

        if body["seed"] is not None:
            torch.manual_seed(body["seed"])
        prompt = torch.tensor([body["prompt_ids"]], device=self._model.get_input_embeddings().weight.device)
        stops = body["stop_token_ids"]
        with torch.inference_mode(), self._adapter(body["adapter"]):
            out = self._model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                streamer=Streamer(),
                stopping_criteria=StoppingCriteriaList([left]),
                eos_token_id=stops or None,
                pad_token_id=stops[0] if stops else 0,
                return_dict_in_generate=True,
                output_logits=whole,
                **body["sampling"],
            )
        ids = out.sequences[0, prompt.shape[1] :].tolist()
        reason = "stop" if ids and ids[-1] in stops else "length"
        if whole:
            emit({"token_ids": ids, "logprobs": self._logprobs(ids, out.logits, body["logprobs"]), "reason": reason})
        else:
            emit({"token_ids": [], "reason": reason})

    def _adapter(self, name: str | None) -> Any:
        import contextlib

        if name is not None:
            self._model.set_adapter(name)
        elif self._names:
            return self._model.disable_adapter()
        return contextlib.nullcontext()

    @staticmethod
    def _logprobs(ids: list[int], logits: Any, count: int) -> list[Any]:
        found = []
        for index, step in zip(ids, logits, strict=True):
            logprobs = step[0].float().log_softmax(-1)
            top = logprobs.topk(count) if count else None
            pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top is not None else []
            found.append([index, float(logprobs[index]), pairs])
        return found


class Handler(BaseHTTPRequestHandler):
    """``GET /health`` and ``/info``, ``POST /generate``."""

    runner: Runner

    def log_message(self, *_: object) -> None:
        """Say nothing: requests are the gateway's to log."""

    def do_GET(self) -> None:
        """Answer with what is served, and the load."""
        if not self._allowed():
            return
        runner = self.runner
        values = {"/health": {}, "/info": runner.facts, "/load": {"running": runner.running, "waiting": runner.waiting}}
        found = values.get(self.path)
        self._answer(404 if found is None else 200, found or {})

    def do_POST(self) -> None:
        """Generate."""
        length = int(self.headers.get("Content-Length") or 0)
        if not self._allowed():
            return
        if self.path != "/generate" or not 0 < length <= _MAX_BODY:
            self._answer(404, {})
            return
        body = json.loads(self.rfile.read(length))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self.runner.generate(body, self._emit)
        # Whatever it is, it concerns this sequence; the others go on.
        except Exception as error:
            message = str(error).partition("\n")[0] or type(error).__name__
            self._emit({"error": message})
            raise

    def _emit(self, event: Any) -> bool:
        try:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()
        except OSError:
            return False
        return True

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization") or ""
        if hmac.compare_digest(given.encode(), f"Bearer {os.environ[KEY]}".encode()):
            return True
        self._answer(401, {})
        return False

    def _answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Load the model, then serve."""
    # The modules beside this one have names of packages.
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != here]
    Handler.runner = Runner(json.loads(sys.argv[2]))
    _Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
