"""Fine-tune the demo base on the training examples with LoRA; a few minutes on two CPU cores."""

import argparse
import hashlib
import json
import math
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tickets import ADAPTER_DIR, SYSTEM_PROMPT, TRAIN_FILE, Example, format_messages, load_jsonl
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tuneserve.sources import resolve

RANK, ALPHA = 8, 16
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH = 8
LEARNING_RATE = 1e-3
WARMUP_STEPS = 20
IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """Token ids of a prompt and of its answer, which ends with the token that ends a turn."""

    prompt: list[int]
    answer: list[int]


def make_sample(example: Example, tokenizer: Any, system: str | None) -> Sample:
    """Return ``example`` as tokens; without ``system`` the chat template puts its own system prompt there."""
    text = tokenizer.apply_chat_template(
        format_messages(example.message, system), tokenize=False, add_generation_prompt=True
    )
    answer = tokenizer(example.ticket.to_json(), add_special_tokens=False).input_ids
    return Sample(tokenizer(text, add_special_tokens=False).input_ids, [*answer, tokenizer.eos_token_id])


def make_batches(samples: list[Sample], rng: random.Random) -> list[list[Sample]]:
    """Return batches of similar length in random order, different ones each time."""
    order = sorted(samples, key=lambda sample: len(sample.prompt) + rng.uniform(0, 8))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    rng.shuffle(batches)
    return batches


def epochs_of(examples: list[Example], tokenizer: Any, epochs: int, rng: random.Random) -> Iterator[list[Sample]]:
    """Yield every batch of the run; a random half of the examples has the system prompt, another half each epoch."""
    for _ in range(epochs):
        systems = [SYSTEM_PROMPT, None] * ((len(examples) + 1) // 2)
        rng.shuffle(systems)
        samples = [make_sample(example, tokenizer, system) for example, system in zip(examples, systems, strict=False)]
        yield from make_batches(samples, rng)


def answer_loss(model: Any, batch: list[Sample], pad: int) -> Tensor:
    """Return the mean cross entropy of the answers' tokens; no other position meets the output matrix."""
    length = max(len(sample.prompt) + len(sample.answer) for sample in batch)
    ids = torch.full((len(batch), length), pad)
    labels = torch.full((len(batch), length), IGNORED)
    attention = torch.zeros((len(batch), length), dtype=torch.long)
    for row, sample in enumerate(batch):
        start, end = len(sample.prompt), len(sample.prompt) + len(sample.answer)
        ids[row, :end] = torch.tensor(sample.prompt + sample.answer)
        attention[row, :end] = 1
        labels[row, start - 1 : end - 1] = ids[row, start:end]
    wanted = labels != IGNORED
    hidden = model.model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
    return cross_entropy(model.lm_head(hidden[wanted]).float(), labels[wanted])


def learning_rate(step: int, steps: int) -> float:
    """Return the rate at ``step``: a linear warm-up, then a cosine down to zero."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)))


def train(examples: list[Example], epochs: int, seed: int) -> Any:
    """Return the base with trained LoRA layers."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    base_dir = resolve("demo").model_dir
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    # On CPUs the eager form of attention has a backward pass faster than the fused one's at these lengths.
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16, attn_implementation="eager")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEARS, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    batches = list(epochs_of(examples, tokenizer, epochs, rng))
    started, recent = time.monotonic(), 0.0
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(batches))
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(base, batch, tokenizer.eos_token_id)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent += loss.item()
        if (step + 1) % 20 == 0 or step + 1 == len(batches):
            count = step % 20 + 1
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{len(batches)}  loss {recent / count:.4f}  {seconds:.0f} s", flush=True)
            recent = 0.0
    return model


def save(model: Any, directory: Path, provenance: dict[str, str]) -> None:
    """Write the adapter in PEFT's form, in bf16, naming the base as the source ``demo``."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight.to(torch.bfloat16) for name, weight in get_peft_model_state_dict(model).items()}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt", **provenance})
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": "demo", "inference_mode": True, "target_modules": LINEARS}
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ADAPTER_DIR, help="where to write the adapter")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    model = train(load_jsonl(TRAIN_FILE), args.epochs, args.seed)
    data = hashlib.sha256(TRAIN_FILE.read_bytes()).hexdigest()
    save(model, args.out, {"epochs": str(args.epochs), "seed": str(args.seed), "train_sha256": data})
    print(f"saved to {args.out}")


if __name__ == "__main__":
    main()
