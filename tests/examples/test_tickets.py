"""Protects the example: clean data, honest separation, fair scores, and a table that belongs to the adapter."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tickets import (
    ADAPTER_DIR,
    CATEGORIES,
    DEV_FILE,
    HELDOUT_FILE,
    HERE,
    PRIORITIES,
    REPLIES,
    TRAIN_FILE,
    Example,
    Ticket,
    find_object,
    format_messages,
    load_jsonl,
    parse_ticket,
    save_jsonl,
    score,
)

from tuneserve.adapters import LoraAdapter, WeightedAdapter, merge_model, open_adapter
from tuneserve.checkpoint import open_checkpoint
from tuneserve.sources import resolve

FILES = (TRAIN_FILE, DEV_FILE, HELDOUT_FILE)
NUMBER = re.compile(r"\b([A-Za-z])[- ]?(\d{5})\b")
WINDOW = 6
TICKET = Ticket("delivery", "high", "K12345", "email")


def numbers(message: str) -> set[str]:
    return {f"{letter.upper()}{digits}" for letter, digits in NUMBER.findall(message)}


def word_windows(examples: list[Example]) -> set[tuple[str, ...]]:
    windows: set[tuple[str, ...]] = set()
    for example in examples:
        words = re.findall(r"[a-z0-9']+", NUMBER.sub(" ordernumber ", example.message).lower())
        windows.update(tuple(words[at : at + WINDOW]) for at in range(len(words) - WINDOW + 1))
    return windows


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads((HERE / "results.json").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ids_and_messages_are_unique(path: Path) -> None:
    examples = load_jsonl(path)
    assert len({example.id for example in examples}) == len(examples)
    assert len({example.message.lower() for example in examples}) == len(examples)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_order_of_a_ticket_is_the_one_in_its_message(path: Path) -> None:
    for example in load_jsonl(path):
        assert numbers(example.message) == ({example.ticket.order} - {None}), example.id


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_label_occurs(path: Path) -> None:
    tickets = [example.ticket for example in load_jsonl(path)]
    assert {ticket.category for ticket in tickets} == set(CATEGORIES)
    assert {ticket.priority for ticket in tickets} == set(PRIORITIES)
    assert {ticket.reply for ticket in tickets} == set(REPLIES)


def test_there_are_enough_examples() -> None:
    assert len(load_jsonl(TRAIN_FILE)) >= 400
    assert len(load_jsonl(HELDOUT_FILE)) >= 80


@pytest.mark.parametrize("path", [DEV_FILE, HELDOUT_FILE], ids=lambda path: path.stem)
def test_no_six_words_in_a_row_come_from_training(path: Path) -> None:
    assert not word_windows(load_jsonl(path)) & word_windows(load_jsonl(TRAIN_FILE))


def test_the_generator_still_makes_the_committed_training_data(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import make_train; "
        "make_train.save_jsonl(Path(sys.argv[2]), make_train.make_examples())"
    )
    made = tmp_path / "train.jsonl"
    subprocess.run([sys.executable, "-c", code, HERE / "data", made], check=True)
    assert made.read_text() == TRAIN_FILE.read_text()


def test_examples_survive_a_round_trip_and_bad_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    save_jsonl(path, [Example("a", "Grüße", TICKET)])
    assert load_jsonl(path) == [Example("a", "Grüße", TICKET)]
    path.write_text(path.read_text().replace('"high"', '"urgent"'))
    with pytest.raises(ValueError, match="line 1"):
        load_jsonl(path)


def test_a_ticket_is_one_compact_line() -> None:
    assert TICKET.to_json() == '{"category":"delivery","priority":"high","order":"K12345","reply":"email"}'
    assert '"order":null' in Ticket("other", "low", None, "phone").to_json()


def test_parsing_is_kind_to_form_and_strict_on_labels() -> None:
    text = TICKET.to_json()
    assert parse_ticket(text) == TICKET
    assert parse_ticket(f"Here it is:\n```json\n{json.dumps(json.loads(text), indent=2)}\n```") == TICKET
    assert parse_ticket('{"reply":"email","order":"K12345","priority":"high","category":"delivery"}') == TICKET
    assert parse_ticket(text.replace("delivery", "shipping")) is None
    assert parse_ticket(text.replace("K12345", "k12345")) is None
    assert parse_ticket(text.replace('"K12345"', "12345")) is None
    assert parse_ticket(text.replace('"delivery"', '["delivery"]')) is None
    assert parse_ticket(text.replace(',"reply":"email"', "")) is None
    assert parse_ticket(text.replace("}", ',"note":"x"}')) is None
    assert parse_ticket("no ticket") is None
    assert find_object("[1] {broken") == {}


def test_scores_count_what_is_right() -> None:
    answers = [
        TICKET.to_json(),
        TICKET.to_json().replace("high", "low"),
        TICKET.to_json().replace("high", "urgent").replace('"K12345"', "null"),
        "I am sorry to hear that.",
    ]
    scores = score(answers, [TICKET] * 4)
    assert (scores.count, scores.valid, scores.exact) == (4, 0.5, 0.25)
    assert scores.fields == {"category": 0.75, "priority": 0.25, "order": 0.5, "reply": 0.75}


def test_a_missing_order_is_no_right_null() -> None:
    ticket = Ticket("other", "low", None, "email")
    assert score(['{"category":"other"}'], [ticket]).fields["order"] == 0
    assert score([ticket.to_json()], [ticket]).exact == 1


def test_conversations_have_system_shots_and_message_in_order() -> None:
    shot = Example("s", "shot", TICKET)
    roles = [(m["role"], m["content"]) for m in format_messages("ask", "system prompt", [shot])]
    assert roles == [
        ("system", "system prompt"), ("user", "shot"), ("assistant", TICKET.to_json()), ("user", "ask"),
    ]  # fmt: skip
    assert format_messages("ask") == [{"role": "user", "content": "ask"}]


def test_the_adapter_is_one_that_tuneserve_reads() -> None:
    adapter = open_adapter(ADAPTER_DIR)
    assert isinstance(adapter, LoraAdapter)
    assert (adapter.config.r, adapter.config.alpha) == (8, 16)
    config = json.loads((ADAPTER_DIR / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "demo"
    assert {path.name for path in ADAPTER_DIR.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert sum(path.stat().st_size for path in ADAPTER_DIR.iterdir()) < 6_000_000


def test_the_adapter_is_found_by_its_name_and_fits_the_base() -> None:
    source = resolve("demo:tickets")
    assert source.adapter_dir == ADAPTER_DIR
    adapter = open_adapter(ADAPTER_DIR)
    config = json.loads((source.model_dir / "config.json").read_text())
    merged = merge_model(open_checkpoint(source.model_dir), config, [WeightedAdapter(adapter)])
    assert merged.changed == {f"{module}.weight" for module in adapter.modules}


def test_the_results_are_those_of_the_committed_adapter_and_data(results: Any) -> None:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert results["adapter_sha256"] == digest(ADAPTER_DIR / "adapter_model.safetensors")
    assert results["data_sha256"] == digest(HELDOUT_FILE)
    assert results["training"]["train_sha256"] == digest(TRAIN_FILE)


def test_the_stored_answers_have_the_stored_scores(results: Any) -> None:
    tickets = [example.ticket for example in load_jsonl(HELDOUT_FILE)]
    for result in results["results"].values():
        scores = score(result["answers"], tickets)
        assert result["scores"] == {
            "count": scores.count, "valid": scores.valid, "fields": scores.fields, "exact": scores.exact,
        }  # fmt: skip


def test_only_the_tuned_model_can_do_the_task(results: Any) -> None:
    for name, result in results["results"].items():
        exact = result["scores"]["exact"]
        assert exact >= 0.7 if name.startswith("tuned") else exact < 0.25, name


def test_the_readme_shows_the_results(results: Any) -> None:
    rows = [line for line in (HERE / "README.md").read_text().splitlines() if line.startswith(("| base", "| tuned"))]
    assert len(rows) == len(results["results"])
    for row, (name, result) in zip(rows, results["results"].items(), strict=True):
        scores = result["scores"]
        shares = [scores["valid"], *scores["fields"].values(), scores["exact"]]
        assert [cell.strip() for cell in row.strip("|").split("|")] == [name, *(f"{share:.1%}" for share in shares)]
