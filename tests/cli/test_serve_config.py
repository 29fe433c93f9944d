"""Protects: a configuration says all that the flags can, and what it cannot say is named."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tuneserve.cli import _serve_config
from tuneserve.cli._config import ModelConfig, ServerConfig, read_config, to_config, to_toml
from tuneserve.cli._serve_config import serve_config
from tuneserve.errors import InputError


def printed(*options: str) -> str:
    command = [sys.executable, "-m", "tuneserve", "serve", *options, "--print-config"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_options_the_flags_say_what_an_empty_configuration_does(tmp_path: Path) -> None:
    config = written(tmp_path / "serve.toml", '[[model]]\nsource = "org/name"\n')
    assert read_config(written(tmp_path / "printed.toml", printed("org/name"))) == read_config(config)


def test_every_flag_is_in_the_printed_configuration(tmp_path: Path) -> None:
    options = (
        "org/name --name tuned --base org/base --engine vllm --adapter a=one --adapter b=two --engine-python python "
        "--engine-binary binary --engine-arg=--fast --tensor-parallel 2 --no-verify --host ::1 --port 1 --context 2 "
        "--max-running 3 --dtype float32 --weights int8 --cpu-step eager --cache-tokens 4 --no-prefix-cache "
        "--speculation 5 --allowed-host h --drain-timeout 6.5 --api-key-file keys --max-queue 7 --max-body-mib 8 "
        "--cors-origin * --tls-cert cert --tls-key key --log-format json --log-prompts --otlp-endpoint http://o "
        "--adapter-dir adapters --lenient"
    )
    config = read_config(written(tmp_path / "printed.toml", printed(*options.split())))
    defaults = ModelConfig(source="")
    (model,) = config.model
    for name in ModelConfig.__struct_fields__:
        assert getattr(model, name) != getattr(defaults, name), name
    server = ServerConfig(model=[])
    for name in ServerConfig.__struct_fields__:
        if name != "max_body_mib":  # 8 is its default
            assert getattr(config, name) != getattr(server, name), name
    assert model.adapters == {"a": "one", "b": "two"}
    assert config.api_key_file == Path("keys").absolute()
    assert not model.prefix_cache
    # What was read and is printed again is the same.
    assert read_config(written(tmp_path / "again.toml", to_toml(config))) == config


def test_any_text_survives_the_file(tmp_path: Path) -> None:
    nasty = "\"'\\\n\t\x00\x1f\x7f é \U0001f600 ]] # ="
    model = ModelConfig(source=nasty, name=nasty, engine_args=[nasty, ""], adapters={nasty: nasty, "": "x", "a.b": "c"})
    config = ServerConfig(model=[model, model], allowed_hosts=[nasty])
    assert read_config(written(tmp_path / "nasty.toml", to_toml(config))) == config


def test_what_no_file_can_say_is_refused() -> None:
    with pytest.raises(InputError, match="not Unicode"):
        to_toml(ServerConfig(model=[ModelConfig(source="\udcff")]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "missing required field `model`"),
        ("model = []", "length >= 1"),
        ("[[model]]", r"missing required field `source` - at `\$.model\[0\]`"),
        ('[[model]]\nsource = "demo"\nmax_runing = 3', r"unknown field `max_runing` - at `\$.model\[0\]`"),
        ('prot = 3\n[[model]]\nsource = "demo"', "unknown field `prot`"),
        ('port = "3"\n[[model]]\nsource = "demo"', r"Expected `int`, got `str` - at `\$.port`"),
        ('port = 70000\n[[model]]\nsource = "demo"', "<= 65535"),
        ('[[model]]\nsource = "demo"\nspeculation = 16', "<= 15"),
        ('api_key_file = 3\n[[model]]\nsource = "demo"', "expected a path, got 3"),
        ('[[model]]\nsource = "demo"\nname = ""', "length >= 1"),
        ('[[model]]\nsource = "demo"\ncontext = 9999999999', "<= 2147483647"),
        ('drain_timeout = nan\n[[model]]\nsource = "demo"', ">= 0"),
        ('drain_timeout = inf\n[[model]]\nsource = "demo"', "<= 86400"),
        ("[[model", "cannot be used"),
        ("a = [" * 5000, "cannot be used"),
    ],
)
def test_what_is_not_known_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=rf"^[^\n]*{said}[^\n]*[.]$"):
        read_config(written(tmp_path / "serve.toml", text))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "missing.toml")
    (tmp_path / "weights").write_bytes(b"\xff" * (2 << 20))
    with pytest.raises(InputError, match="larger than 1 MiB"):
        read_config(tmp_path / "weights")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be used"):
        read_config(tmp_path / "bytes")


def test_options_beside_a_file_are_refused_by_name(tmp_path: Path) -> None:
    config = written(tmp_path / "serve.toml", '[[model]]\nsource = "org/name"\n')
    for option in (["demo"], ["--port", "3"], ["--no-verify"]):
        result = subprocess.run(
            [sys.executable, "-m", "tuneserve", "serve", "--config", str(config), *option],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 2
        assert "is given beside --config" in result.stderr
        assert option[0] in result.stderr or "source" in result.stderr


def test_two_models_never_have_one_name(make_llama, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(_serve_config, "run_server", lambda *_args, **_options: pytest.fail("it was served"))
    source = str(make_llama())
    for models in (
        [{"source": source}, {"source": source}],
        [{"source": source, "name": "a"}, {"source": source, "name": "b", "adapters": {"a": "x"}}],
        [{"source": source, "name": "a", "adapters": {"a": "x"}}],
    ):
        with pytest.raises(InputError, match="two models would be called"):
            serve_config(to_config({"port": 0, "model": models}))
    with pytest.raises(InputError, match="the options cannot be used"):
        to_config({"port": -1, "model": [{"source": "demo"}]})
    assert msgspec.toml.decode(to_toml(to_config({"model": [{"source": source}]})))["model"][0]["source"] == source
