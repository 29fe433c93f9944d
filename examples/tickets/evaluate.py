"""Measure the base and the tuned model on the held-out examples; a few minutes on two CPU cores.

For the committed adapter the result goes to results.json and into the table of README.md.
"""

import argparse
import hashlib
import json
import platform
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from tickets import (
    ADAPTER_DIR,
    FIELDS,
    HELDOUT_FILE,
    HERE,
    SYSTEM_PROMPT,
    TRAIN_FILE,
    Example,
    Scores,
    format_messages,
    load_jsonl,
    score,
)
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tuneserve.sources import resolve

RESULTS_FILE = HERE / "results.json"
README_FILE = HERE / "README.md"
MARKERS = ("<!-- results -->\n", "<!-- end of results -->\n")
BATCH = 15
MAX_NEW_TOKENS = 64
INSTRUCTIONS = """\
You read messages that customers of an online shop write and answer each with a ticket: one line of JSON with the \
keys category, priority, order and reply, and nothing else.
category: "billing" (payments, invoices, prices, refunds that are due), "delivery" (where a parcel is, how it got \
here, what it contained, its address), "returns" (sending back or exchanging), "account" (login, profile, newsletter), \
"product" (the article itself: faults, parts, questions on it) or "other" (anything else).
priority: "high" if the customer was charged wrongly or misses a refund, if someone is or could be hurt, if someone \
else uses the account or card, or if it is needed by a day or time that is named; "low" if it is only a general \
question, praise or an idea; otherwise "normal".
order: the order number as one capital letter and five digits in quotes, or null if there is none.
reply: "phone" if the customer asks to be called, otherwise "email".
Example of the form: {"category":"delivery","priority":"normal","order":"A12345","reply":"email"}"""
SHOT_KINDS = (
    ("billing", "high"),
    ("delivery", "normal"),
    ("returns", "normal"),
    ("account", "low"),
    ("product", "high"),
    ("other", "low"),
)


def choose_shots(examples: Sequence[Example]) -> list[Example]:
    """Return the first example of each of six kinds, one per category."""
    return [
        next(example for example in examples if (example.ticket.category, example.ticket.priority) == kind)
        for kind in SHOT_KINDS
    ]


def ask(message: str) -> str:
    """Return one message with all the instructions; as a system prompt the base overlooks them without examples."""
    return f"{INSTRUCTIONS}\n\nThe message:\n{message}\n\nAnswer with the ticket for this message only."


def answer_all(model: Any, tokenizer: Any, conversations: Sequence[list[dict[str, str]]]) -> list[str]:
    """Return the greedy answer to each conversation, without special tokens."""
    answers = []
    for start in range(0, len(conversations), BATCH):
        texts = [
            tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
            for conversation in conversations[start : start + BATCH]
        ]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
        answers += tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return answers


def measure(adapter: Path, examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """Return the answers and scores of the base (adapter off) and of the tuned model, by name of the system."""
    base_dir = resolve("demo").model_dir
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, adapter).eval()
    shots = choose_shots(load_jsonl(TRAIN_FILE))
    messages = [example.message for example in examples]
    systems = {
        "base, instructions": (False, [format_messages(ask(message)) for message in messages]),
        f"base, instructions and {len(shots)} examples": (
            False,
            [format_messages(message, INSTRUCTIONS, shots) for message in messages],
        ),
        "tuned, message only": (True, [format_messages(message) for message in messages]),
        "tuned, with its system prompt": (True, [format_messages(message, SYSTEM_PROMPT) for message in messages]),
    }
    results = {}
    for name, (tuned, conversations) in systems.items():
        with nullcontext() if tuned else model.disable_adapter():
            answers = answer_all(model, tokenizer, conversations)
        scores = score(answers, [example.ticket for example in examples])
        print(f"{name}: {scores.exact:.1%} exact", flush=True)
        results[name] = {"scores": asdict(scores), "answers": answers}
    return results


def make_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the scores as a Markdown table."""
    head = ["model and prompt", "valid", *FIELDS, "all fields exact"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, result in results.items():
        scores = Scores(**result["scores"])
        shares = [scores.valid, *scores.fields.values(), scores.exact]
        rows.append([name, *(f"{share:.1%}" for share in shares)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def sha256(path: Path) -> str:
    """Return the hex digest of the file at ``path``."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(adapter: Path, data: Path) -> dict[str, Any]:
    """Return what was measured, with what."""
    weights = adapter / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        training = {key: value for key, value in sorted(file.metadata().items()) if key != "format"}
    return {
        "adapter_sha256": sha256(weights),
        "data_sha256": sha256(data),
        "training": training,
        "decoding": f"greedy, at most {MAX_NEW_TOKENS} tokens, bf16, adapter unmerged",
        "platform": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def write_readme_table(table: str) -> None:
    """Put ``table`` between the markers in the README."""
    before, rest = README_FILE.read_text().split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    README_FILE.write_text(f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{after}")


def main() -> None:
    """Measure, print, and keep the result if it is the committed adapter's on the held-out examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", type=Path, default=ADAPTER_DIR, help="another adapter; its result is only printed")
    parser.add_argument("--data", type=Path, default=HELDOUT_FILE, help="other examples; the result is only printed")
    args = parser.parse_args()
    torch.set_num_threads(2)
    logging.disable_progress_bar()
    examples = load_jsonl(args.data)
    results = measure(args.adapter, examples)
    table = make_table(results)
    print(f"\n{table}")
    for example, answer in zip(examples, results["tuned, message only"]["answers"], strict=True):
        if score([answer], [example.ticket]).exact < 1:
            print(f"{example.id}: {answer}\n  instead of {example.ticket.to_json()}")
    if args.adapter.resolve() == ADAPTER_DIR and args.data.resolve() == HELDOUT_FILE:
        document = {**describe(args.adapter, args.data), "results": results}
        RESULTS_FILE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        write_readme_table(table)


if __name__ == "__main__":
    main()
