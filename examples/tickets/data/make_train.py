"""Join the parts in parts.toml into train.jsonl. The same seed gives the same file."""

import random
import re
import string
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from tickets import TRAIN_FILE, Example, Ticket, save_jsonl  # noqa: E402

SEED = 7
DEADLINES = {"billing": 8, "delivery": 16, "returns": 20, "account": 9, "product": 10, "other": 10}
SECOND_USES = 110
ORDER_SHARE = {"low": 0.15, "normal": 0.6, "high": 0.5}


@dataclass(frozen=True)
class Issue:
    """A sentence that says what is the matter, with the labels it has on its own; ``deadline`` makes it urgent."""

    category: str
    priority: str
    text: str
    deadline: str | None = None


def make_issues(parts: dict[str, Any], rng: random.Random) -> list[Issue]:
    """Return every issue once, some again, and some of those that could wait once more with a deadline."""
    texts = parts["texts"]
    plain = [
        Issue(category, priority, text)
        for category, by_priority in parts["issues"].items()
        for priority, sentences in by_priority.items()
        for text in sentences
    ]
    urgent = []
    for category, count in DEADLINES.items():
        can_wait = [issue for issue in plain if issue.category == category and issue.priority == "normal"]
        urgent += [
            Issue(category, "high", issue.text, rng.choice(texts["deadlines"])) for issue in rng.sample(can_wait, count)
        ]
    return plain + urgent + rng.sample(plain, SECOND_USES)


def make_order(rng: random.Random) -> tuple[str, str]:
    """Return an order number as the ticket has it, and as the customer writes it."""
    letter, digits = rng.choice(string.ascii_uppercase), f"{rng.randrange(100_000):05d}"
    style = rng.choices(("{0}{1}", "{0}-{1}", "{0} {1}", "{2}{1}"), (70, 10, 10, 10))[0]
    return letter + digits, style.format(letter, digits, letter.lower())


def make_message(issue: Issue, texts: dict[str, list[str]], rng: random.Random) -> tuple[str, Ticket]:
    """Return a message around ``issue``, and its ticket."""
    kind = "kind_" if issue.priority == "low" else ""
    order, written = make_order(rng) if rng.random() < ORDER_SHARE[issue.priority] else (None, "")
    inline = order is not None and "{ref}" in issue.text
    ref = rng.choice((" {0}", " #{0}", " ({0})", " no. {0}", " {0}")).format(written) if inline else ""
    body = [issue.text.format(ref=ref, item=rng.choice(texts["items"]))]
    if rng.random() < 0.4:
        body.insert(rng.choice((0, 1, 1)), rng.choice(texts[kind + "asides"]))
    if issue.deadline:
        body.insert(rng.choice((0, len(body), len(body))), issue.deadline)
    if order and not inline:
        place, at = rng.choice((("order_before", 0), ("order_after", len(body))))
        body.insert(at, rng.choice(texts[place]).format(order=written))
    if rng.random() < 0.4:
        body.append(rng.choice(texts[kind + "closings"]))
    wish = rng.random()
    if wish < 0.38:
        body.append(rng.choice(texts["call_me" if wish < 0.25 else "do_not_call"]))
    if rng.random() < 0.45:
        body.insert(0, rng.choice(texts["greetings"]))
    if rng.random() < 0.25:
        body.append(rng.choice(("", "\n", "\n\n")) + rng.choice(texts["names"]))
    message = roughen(rng.choice((" ", " ", " ", "\n")).join(body), rng)
    return message, Ticket(issue.category, issue.priority, order, "phone" if wish < 0.25 else "email")


def roughen(message: str, rng: random.Random) -> str:
    """Return ``message`` as some people type: without capitals or full stops, in capitals only, or with slips."""
    kind = rng.random()
    if kind < 0.08:
        return re.sub(r"[.,](?!\d)", "", message.lower())
    if kind < 0.11:
        return message.upper()
    if kind < 0.26:
        words = message.split(" ")
        for _ in range(rng.choice((1, 2))):
            at = rng.randrange(len(words))
            if len(words[at]) > 4 and words[at].isalpha():
                cut = rng.randrange(1, len(words[at]) - 2)
                words[at] = words[at][:cut] + words[at][cut + 1] + words[at][cut] + words[at][cut + 2 :]
        return " ".join(words)
    return message


def make_examples() -> list[Example]:
    """Return the training examples in random order."""
    rng = random.Random(SEED)
    parts = tomllib.loads((HERE / "parts.toml").read_text())
    pairs = [make_message(issue, parts["texts"], rng) for issue in make_issues(parts, rng)]
    rng.shuffle(pairs)
    unique = dict(pairs)
    return [Example(f"train-{number:03d}", *pair) for number, pair in enumerate(unique.items())]


if __name__ == "__main__":
    save_jsonl(TRAIN_FILE, make_examples())
