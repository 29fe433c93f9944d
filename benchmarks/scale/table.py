"""Prints the table of docs/scale.md from ``simulate.jsonl``."""

import json
from pathlib import Path

ROWS = [json.loads(line) for line in Path(__file__).with_name("simulate.jsonl").read_text().splitlines()]
LAW = {1.0: "Zipf", 0.0: "all alike"}


def main() -> None:
    """Print it."""
    print("| GPUs | adapters wanted | slots | routed | wait, median | wait, p99 | loads per request | backlog |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in sorted(ROWS, key=lambda row: (-row["zipf"], row["gpus"], row["slots"], row["policy"] == "affine")):
        cells = [
            row["gpus"], LAW[row["zipf"]], row["slots"], row["policy"], f"{row['wait_p50_s']:.2f} s",
            f"{row['wait_p99_s']:.2f} s", f"{row['loads_per_request']:.3f}", f"{row['backlog_s']:.1f} s",
        ]  # fmt: skip
        print("|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()
