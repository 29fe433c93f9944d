"""llm: a model in extra-openai-models.yaml: prompt, stream, conversation, tools, schema."""

import json
import os
import subprocess
import sys
from pathlib import Path

import llm
import pytest


@pytest.fixture(scope="module")
def home(real, scripted, tmp_path_factory):
    directory = tmp_path_factory.mktemp("llm")
    models = [
        {
            "model_id": model,
            "model_name": model,
            "api_base": f"{url}/v1",
            "supports_tools": True,
            "supports_schema": True,
        }
        for model, url in (("demo", real), ("tickets", real), ("tuned", scripted))
    ]
    (directory / "extra-openai-models.yaml").write_text(json.dumps(models))
    before = os.environ.get("LLM_USER_PATH")
    os.environ["LLM_USER_PATH"] = str(directory)
    yield directory
    del os.environ["LLM_USER_PATH"]
    if before is not None:
        os.environ["LLM_USER_PATH"] = before


def test_the_command_prompts(home):
    """the command: prompt and conversation"""
    command = [str(Path(sys.executable).with_name("llm")), "--key", "none"]
    first = subprocess.run(
        [*command, "-m", "tickets", "I was charged twice.", "-o", "temperature", "0"], capture_output=True, text=True
    )
    assert '"billing"' in first.stdout, first.stderr
    second = subprocess.run([*command, "-c", "And again."], capture_output=True, text=True)
    assert second.stdout.strip(), second.stderr


def test_a_response_is_streamed(home):
    """the library: stream and usage"""
    response = llm.get_model("tuned").prompt("Hi", key="none", stream=True)
    assert "".join(response) == "Hello, wörld!"
    assert response.usage().output == 15


def test_a_tool_is_called_and_its_result_used(home):
    """tools: a chain"""

    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"21 degrees in {city}"

    chain = llm.get_model("tuned").chain("The weather in Oslo?", tools=[get_weather], key="none")
    assert chain.text() == "It is 21 degrees in Oslo."


def test_output_satisfies_a_schema(home):
    """a schema"""
    schema = {
        "type": "object",
        "properties": {"even": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
        "required": ["even", "size"],
        "additionalProperties": False,
    }
    response = llm.get_model("tickets").prompt("Describe eight.", schema=schema, key="none", temperature=0)
    assert json.loads(response.text()).keys() == {"even", "size"}
