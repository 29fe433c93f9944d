"""The ticket task: its labels, its prompts, its data files and how answers are scored."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TRAIN_FILE = HERE / "data" / "train.jsonl"
DEV_FILE = HERE / "data" / "dev.jsonl"
HELDOUT_FILE = HERE / "data" / "heldout.jsonl"
ADAPTER_DIR = HERE / "adapter"

CATEGORIES = ("billing", "delivery", "returns", "account", "product", "other")
PRIORITIES = ("low", "normal", "high")
REPLIES = ("email", "phone")
ORDER = re.compile(r"[A-Z]\d{5}")

SYSTEM_PROMPT = "Turn the customer's message into a ticket."


@dataclass(frozen=True)
class Ticket:
    """What the model answers. The fields stand in the order of the JSON keys."""

    category: str
    priority: str
    order: str | None
    reply: str

    def to_json(self) -> str:
        """Return one line of JSON without spaces."""
        return json.dumps(asdict(self), separators=(",", ":"))


FIELDS = tuple(field.name for field in fields(Ticket))


@dataclass(frozen=True)
class Example:
    """One customer message with the ticket that a person would write for it."""

    id: str
    message: str
    ticket: Ticket


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1 of ``count`` answers.

    ``valid`` are tickets with all keys and permitted labels only, ``fields`` the right values key by key, ``exact`` the
    answers in which all of them are right.
    """

    count: int
    valid: float
    fields: dict[str, float]
    exact: float


def load_jsonl(path: Path) -> list[Example]:
    """Read the examples in ``path``, one JSON object a line.

    Raises:
        ValueError: a line is not an example with a well-formed ticket.
    """
    examples = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        row = json.loads(line)
        ticket = parse_ticket(json.dumps(row["ticket"]))
        if ticket is None or set(row) != {"id", "message", "ticket"}:
            raise ValueError(f"{path}, line {number}, is not an example; correct it.")
        examples.append(Example(row["id"], row["message"], ticket))
    return examples


def save_jsonl(path: Path, examples: Sequence[Example]) -> None:
    """Write ``examples`` in the form that :func:`load_jsonl` reads."""
    path.write_text("".join(json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples))


def find_object(answer: str) -> dict[str, Any]:
    """Return the first JSON object in ``answer``, whatever stands around it; an empty one if there is none."""
    try:
        values, _ = json.JSONDecoder().raw_decode(answer, answer.index("{"))
    except ValueError:
        return {}
    return dict(values)


def parse_ticket(answer: str) -> Ticket | None:
    """Return the ticket in ``answer``, or None if its first JSON object has other keys or labels than a ticket."""
    values = find_object(answer)
    if set(values) != set(FIELDS):
        return None
    order = values["order"]
    allowed = (
        values["category"] in CATEGORIES,
        values["priority"] in PRIORITIES,
        order is None or (isinstance(order, str) and ORDER.fullmatch(order) is not None),
        values["reply"] in REPLIES,
    )
    return Ticket(**values) if all(allowed) else None


def format_messages(message: str, system: str | None = None, shots: Sequence[Example] = ()) -> list[dict[str, str]]:
    """Return the conversation whose answer is the ticket for ``message``; ``shots`` precede it as solved examples."""
    messages = [{"role": "system", "content": system}] if system else []
    for shot in shots:
        messages.append({"role": "user", "content": shot.message})
        messages.append({"role": "assistant", "content": shot.ticket.to_json()})
    return [*messages, {"role": "user", "content": message}]


def score(answers: Sequence[str], tickets: Sequence[Ticket]) -> Scores:
    """Compare each answer with its ticket; spaces, the order of the keys and text around the JSON do not count."""
    pairs = [(find_object(answer), asdict(ticket)) for answer, ticket in zip(answers, tickets, strict=True)]

    def share(hits: Iterable[bool]) -> float:
        return round(sum(hits) / len(pairs), 4)

    return Scores(
        count=len(pairs),
        valid=share(parse_ticket(answer) is not None for answer in answers),
        fields={
            name: share(name in found and found[name] == wanted[name] for found, wanted in pairs) for name in FIELDS
        },
        exact=share(found == wanted for found, wanted in pairs),
    )
