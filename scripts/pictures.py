"""Draw the pictures of the documentation: ``python scripts/pictures.py``."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tuneserve.report import Html, element

DIRECTORY = Path(__file__).parents[1] / "docs" / "pictures"
_STYLE = """
rect { fill: #f4f6fa; stroke: #94a3b8; } .leaf rect { fill: #e6f4ee; stroke: #059669; }
text { font: 13px system-ui, sans-serif; fill: #1c1e21; } .label { font-size: 12px; fill: #4b5563; }
.first { font-weight: 600; }
path { fill: none; stroke: #64748b; stroke-width: 1.5; }
marker path { fill: #64748b; stroke: none; }
.ground { fill: #fff; stroke: none; }
"""
_LINE, _PAD = 17, 10


@dataclass(frozen=True)
class Box:
    """A box with its left upper corner at ``x`` and ``y``; the first of its ``lines`` is bold."""

    x: float
    y: float
    width: float
    lines: tuple[str, ...]
    kind: str = "box"

    @property
    def height(self) -> float:
        """As high as its lines."""
        return len(self.lines) * _LINE + 2 * _PAD - 3

    @property
    def middle(self) -> float:
        """The height of its middle."""
        return self.y + self.height / 2

    def draw(self) -> Html:
        """Return it as SVG."""
        lines = [
            element(
                "text", line, x=self.x + _PAD, y=self.y + _PAD + 10 + index * _LINE,
                class_="label" if index else "first",
            )
            for index, line in enumerate(self.lines)
        ]  # fmt: skip
        frame = element("rect", x=self.x, y=self.y, width=self.width, height=self.height, rx=6)
        return element("g", frame, *lines, class_=self.kind)


def across(start: Box, end: Box, label: str = "", bend: float | None = None) -> Html:
    """Return an arrow from the right side of a box to the left side of another, with a label above its end."""
    left, right = start.x + start.width, end.x
    turn = left + 16 if bend is None else bend
    way = f"M{left:g} {start.middle:g} H{turn:g} V{end.middle:g} H{right - 2:g}"
    said = element("text", label, x=turn + 6, y=end.middle - 5, class_="label")
    return element("g", element("path", d=way, marker_end="url(#tip)"), said)


def down(start: Box, end: Box, label: str = "") -> Html:
    """Return an arrow from the bottom of a box to the top of another one below it."""
    x = max(start.x, end.x) + min(start.width, end.width) / 2
    way = f"M{x:g} {start.y + start.height:g} V{end.y - 2:g}"
    said = element("text", label, x=x + 8, y=(start.y + start.height + end.y) / 2 + 4, class_="label")
    return element("g", element("path", d=way, marker_end="url(#tip)"), said)


def picture(width: float, height: float, title: str, *parts: Html) -> str:
    """Return an SVG file."""
    tip = element(
        "marker", element("path", d="M0 0 L8 4 L0 8 z"), id="tip", viewBox="0 0 8 8", refX=7, refY=4, markerWidth=7,
        markerHeight=7, orient="auto",
    )  # fmt: skip
    ground = element("rect", width=width, height=height, class_="ground")
    head = (element("title", title), element("style", Html(_STYLE)), element("defs", tip), ground)
    drawing = element(
        "svg", *head, *parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}", role="img"
    )
    return f"{drawing}\n"


def deciding() -> str:
    """Return the decision tree of ``planner/_tree.py``."""
    first = Box(10, 40, 160, ("How many adapters", "on one base?"))
    many = Box(250, 28, 165, ("What computes?",))
    machine = Box(10, 330, 160, ("What computes?",))
    gpu, cpu, mac = (Box(250, y, 165, ("What matters most?",)) for y in (180, 357, 505))
    leaves = {
        (many, "an NVIDIA GPU"): ("lora on vLLM", "they stay unmerged, chosen by name"),
        (many, "a processor"): ("lora on the native engine", "the same"),
        (gpu, "throughput or latency"): ("merged on vLLM", "fp8 where the GPU computes it (8.9), else 16 bits"),
        (gpu, "memory"): ("gguf:q4_k_m on llama.cpp", "or int4 on vLLM"),
        (gpu, "simplicity"): ("the adapter on the native engine", "in your own Python, nothing to export"),
        (cpu, "throughput or simplicity"): ("the adapter on the native engine", "folded in at load, nothing to export"),
        (cpu, "latency or memory"): ("gguf:q4_k_m on llama.cpp", "the fewest bytes for each token"),
        (mac, "throughput"): ("gguf:q8_0 on llama.cpp", "next to nothing is lost"),
        (mac, "latency or memory"): ("gguf:q4_k_m on llama.cpp", "4 bits keep most of the quality"),
        (mac, "simplicity"): ("ollama:q4_k_m on Ollama", "with a Modelfile that is the model's own template"),
    }
    tops = (10, 72, 134, 196, 258, 326, 388, 456, 518, 580)
    parts = [across(first, many, "several"), down(first, machine, "one, or none")]
    parts += [across(machine, box, label) for box, label in ((gpu, "a GPU"), (cpu, "a CPU"), (mac, "a Mac"))]
    for (box, label), lines, top in zip(leaves, leaves.values(), tops, strict=True):
        leaf = Box(595, top, 335, lines, "leaf")
        parts += [across(box, leaf, label), leaf.draw()]
    note = element(
        "text", "What does not fit goes on in fewer bits: int4, then GGUF's 8, 4 and 2.", x=10, y=660, class_="label"
    )
    boxes = [box.draw() for box in (first, many, machine, gpu, cpu, mac)]
    return picture(940, 676, "Which way should I deploy?", *parts, *boxes, note)


def architecture() -> str:
    """Return a request's way through the rooms, and where what it meets comes from."""
    client = Box(10, 60, 130, ("a client", "OpenAI, Anthropic", "or the page"))
    edge = Box(190, 20, 190, ("gateway/: the edge", "request id, keys, limits,", "the queue, log, metrics"))
    route = Box(190, 120, 190, ("gateway/: its route", "each API's schema becomes", "one conversation"))
    text = Box(190, 220, 190, ("text/", "the template renders:", "text becomes token ids"))
    contract = Box(440, 220, 190, ("engines/: the contract", "token ids in, token ids out,", "whatever the engine"))
    native = Box(690, 120, 210, ("native/", "schedule, run, postprocess:", "blocks, batches, sampling"))
    others = Box(690, 220, 210, ("vLLM, SGLang, Unsloth", "llama.cpp, Ollama:", "supervised, checked, restarted"))
    decoder = Box(690, 20, 210, ("model/, kernels/", "one decoder that a spec", "configures; CPU, GPU"))
    back = Box(440, 120, 190, ("text/, gateway/", "tokens become text and", "calls, in the API's form"))
    source = Box(10, 380, 160, ("sources/", "a name becomes files,", "hostile until checked"))
    merge = Box(210, 380, 180, ("adapters/, checkpoint/", "merged as a stream", "of tensors, in float32"))
    artifact = Box(440, 380, 190, ("artifacts/", "planned to the byte,", "sealed with a manifest"))
    parity = Box(440, 480, 190, ("parity/", "independent of the merge:", "is it still the model?"))
    planner = Box(690, 380, 210, ("planner/, deploy/, bench/", "what fits, how fast,", "which way, and why"))
    arrows = [
        across(client, edge), down(edge, route), down(route, text), across(text, contract),
        across(contract, others), across(contract, native), across(source, merge), across(merge, artifact),
        across(artifact, planner),
    ]  # fmt: skip
    up = [
        element("path", d=f"M795 {native.y} V{decoder.y + decoder.height + 2}", marker_end="url(#tip)"),
        element("path", d=f"M535 {contract.y} V{back.y + back.height + 2}", marker_end="url(#tip)"),
        element(
            "path",
            d=f"M{back.x} {back.middle - 12} H400 V{edge.middle} H{edge.x + edge.width + 2}",
            marker_end="url(#tip)",
        ),
        element("path", d=f"M535 {parity.y} V{artifact.y + artifact.height + 2}", marker_end="url(#tip)"),
        element(
            "path",
            d=f"M{artifact.x + 95} {artifact.y} V330 H795 V{others.y + others.height + 2}",
            marker_end="url(#tip)",
        ),
    ]
    said = [
        element("text", "A request", x=10, y=24, class_="first"),
        element("text", "A model", x=10, y=364, class_="first"),
        element("text", "a child process", x=640, y=112, class_="label"),
        element("text", "what an engine loads", x=600, y=324, class_="label"),
    ]
    boxes = [
        client,
        edge,
        route,
        text,
        contract,
        native,
        others,
        decoder,
        back,
        source,
        merge,
        artifact,
        parity,
        planner,
    ]
    drawn = [box.draw() for box in boxes]
    return picture(
        910, 560, "A request's way through the rooms, and a model's way to an engine", *arrows, *up, *said, *drawn
    )


def main() -> int:
    """Write both."""
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / "deciding.svg").write_text(deciding(), encoding="utf-8")
    (DIRECTORY / "architecture.svg").write_text(architecture(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
