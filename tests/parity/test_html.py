"""Protects: the page of a comparison says where the two models part, and no token of a prompt is markup."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.native.conftest import write_byte_tokenizer
from tuneserve.parity import ParityReport, Place, TextCheck, Thresholds, html_report
from tuneserve.parity._places import places_of
from tuneserve.parity._probes import Probes, load_tokenizer

TOKENS = ("<|im_start|>", "<script>", "&amp;", " word")


@pytest.fixture
def report() -> ParityReport:
    places = [
        Place(prompt, index, token, 1e-4 * 10**index) for prompt in range(7) for index, token in enumerate(TOKENS)
    ]
    return ParityReport(
        method="fp8", prompts=7, positions=28, mean_kl=0.03, p99_kl=0.1, max_kl=0.1, lower_bound=False, agreement=0.97,
        ties=2, perplexity=12.0, candidate_perplexity=12.6, modules=None, config=(),
        text=(TextCheck("BOS of conversations", "template", False, "2 <BOS> instead of 1"),),
        diagnosis=("template: <b>doubled</b>",), notes=(), thresholds=Thresholds(), places=tuple(places),
    )  # fmt: skip


def test_tokens_are_shaded_by_their_divergence_and_escaped(report: ParityReport) -> None:
    page = html_report(report, "out<i>", "adapter<i>")
    shades = re.findall(r'<span title="[^"]+"(?: class="(h\d)")?>([^<]*)</span>', page)
    assert shades[: len(TOKENS)] == [
        ("", "&lt;|im_start|&gt;"), ("h1", "&lt;script&gt;"), ("h2", "&amp;amp;"), ("h3", " word"),
    ]  # fmt: skip
    assert "<script" not in page and "<i>" not in page.replace("<i ", "")
    assert page.count('class="tokens"') == 5


def test_what_is_over_its_limit_is_marked(report: ParityReport) -> None:
    page = html_report(report, "out", "adapter")
    cells = dict(re.findall(r"<tr><td>([^<]+)</td><td>[^<]*</td><td>[^<]*</td><td><span class=\"(\w+)\">", page))
    assert cells == {
        "mean KL": "bad", "p99 KL": "bad", "max KL": "good", "top-1 agreement (2 near-ties)": "bad",
        "perplexity, from 12": "bad",
    }  # fmt: skip
    assert "What broke: template: &lt;b&gt;doubled" in page and "2 &lt;BOS&gt; instead of 1" in page


def test_numbers_that_are_none_fail_and_draw(report: ParityReport) -> None:
    nan = float("nan")
    broken = replace(report, mean_kl=nan, agreement=nan, places=(Place(0, 0, "x", nan), Place(0, 1, "y", float("inf"))))
    page = html_report(broken, "out", "adapter")
    assert "<h1>Not the same model</h1>" in page and ">nan<" in page


def test_a_report_as_json_leaves_the_places_out(report: ParityReport) -> None:
    assert "places" not in report.to_dict() and report.to_dict()["passed"] is False


def test_characters_of_several_tokens_stay_whole(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path, 300)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer("aüb", add_special_tokens=False).input_ids
    probes = Probes(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), random=False)
    places = places_of(probes, zip(probes.where(), [0.0] * len(ids), strict=True), tokenizer)
    assert "".join(place.token for place in places) == "aüb" and len(places) == len(ids) > 3
