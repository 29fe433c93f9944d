"""Protects: nobody without a key gets in, keys are kept as hashes only, and their limits hold."""

import re
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.gateway.conftest import FakeEngine, chat_body, sse_events
from tuneserve.errors import InputError
from tuneserve.gateway import Limits, ServedModel, Settings, add_key, create_app
from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._keys import Key, KeyFile, read_keys
from tuneserve.gateway._limits import RateLimits

CHAT = "/v1/chat/completions"
DIGEST = "a" * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def clients(served: ServedModel, file: Path) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(served, Settings(api_keys=file)))
    return httpx.AsyncClient(transport=transport, base_url="http://testserver")


@pytest.fixture
def key(file: Path) -> str:
    return add_key(file, "alice", Limits())


@pytest.fixture
async def client(served: ServedModel, file: Path, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with clients(served, file) as client:
        yield client


@pytest.mark.anyio
async def test_every_route_but_the_open_ones_needs_a_key(
    client: httpx.AsyncClient, served: ServedModel, engine: FakeEngine
) -> None:
    routes = [(route.path, method) for route in create_app(served).routes for method in route.methods]  # type: ignore[attr-defined]
    without = {path for path, method in routes if (await client.request(method, path)).status_code != 401}
    assert {path for path in without if not path.startswith("/page/")} == {"/", "/docs", "/health", "/ready"}
    for path in (
        "/nowhere",
        "//v1/models",
        "/health/",
        "/HEALTH",
        "/page/chat.js/../../v1/models",
        "/ready%00",
        "/v1/models/",
    ):
        assert (await client.get(path)).status_code == 401, path
    response = await client.post(CHAT, json=chat_body())
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert not engine.requests
    assert (await client.get("/health")).json() == {"status": "ready"}


@pytest.mark.anyio
async def test_both_headers_carry_a_key(client: httpx.AsyncClient, key: str) -> None:
    for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key} "}, {"x-api-key": key}):
        assert (await client.post(CHAT, json=chat_body(), headers=headers)).status_code == 200
    for wrong in ("", key[:-1], key + "x", key.upper(), "ts-", "é" * 10, "x" * 20_000):
        for header in ({"Authorization": f"Bearer {wrong}".encode()}, {"x-api-key": wrong.encode()}):
            assert (await client.get("/v1/models", headers=header)).status_code == 401  # type: ignore[arg-type]
    assert (await client.get("/v1/models", headers={"Authorization": f"Basic {key}"})).status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["x/health?", "x/health#", "x:80/health?a=", "testserver/ready?"])
async def test_the_path_that_is_checked_is_the_one_that_is_answered(
    client: httpx.AsyncClient, engine: FakeEngine, host: str
) -> None:
    assert (await client.post(CHAT, json=chat_body(), headers={"Host": host})).status_code == 401
    assert (await client.get("/v1/models?/health", headers={"Host": host})).status_code == 401
    assert not engine.requests


def test_every_key_is_compared_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [add_key(file, f"k{number}", Limits()) for number in range(5)]
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    found = KeyFile(file)
    for presented in (keys[0], keys[4], "wrong"):
        compared.clear()
        found.find(presented)
        assert [(len(one), len(other)) for one, other in compared] == [(32, 32)] * 5


def test_the_file_has_hashes_and_no_keys(file: Path) -> None:
    keys = [add_key(file, name, Limits(requests_per_minute=3)) for name in ("alice", "bob.2")]
    text = file.read_text()
    assert not any(key in text for key in keys)
    assert len(set(keys)) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = KeyFile(file)
    assert [(found.find(key) or pytest.fail("not found")).name for key in keys] == ["alice", "bob.2"]
    assert read_keys(file)[1].limits == Limits(requests_per_minute=3)
    with pytest.raises(InputError, match="already"):
        add_key(file, "alice", Limits())
    with pytest.raises(InputError, match="choose a whole number"):
        add_key(file, "carol", Limits(concurrent=0))
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no keys"),
        ("secret-key", "not valid TOML"),
        ("\xff", "not valid TOML"),
        ("alice = 3", "is no table"),
        ("[alice]", "no sha256"),
        (f'[alice]\nsha256 = "{DIGEST[1:]}"', "no sha256"),
        (f'[alice]\nsha256 = "{DIGEST}"\nrequest_per_minute = 3', "has 'request_per_minute'; use admin"),
        (f'[alice]\nsha256 = "{DIGEST}"\nrequests_per_minute = -3', "choose a whole number"),
        (f'[alice]\nsha256 = "{DIGEST}"\nconcurrent = true', "choose a whole number"),
        (f'[alice]\nsha256 = "{DIGEST}"\nadmin = "yes"', "write true or false"),
        (f'["a b"]\nsha256 = "{DIGEST}"', "cannot be called"),
        (f'[a]\nsha256 = "{DIGEST}"\n[b]\nsha256 = "{DIGEST}"', "under two names"),
        ("a" * (2 << 20), "larger than"),
        ("a = " + "[" * 100_000, "not valid TOML"),
    ],
)
def test_a_file_that_is_not_understood_is_one_sentence(file: Path, text: str, said: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=said) as caught:
        read_keys(file)
    assert re.fullmatch(r"[^\n]*; [^\n]*[.]", str(caught.value))
    assert "secret-key" not in str(caught.value)


def test_a_file_that_others_may_write_is_refused(file: Path, key: str) -> None:
    file.chmod(0o606)
    with pytest.raises(InputError, match="chmod o-w"):
        read_keys(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(file.with_name("missing"))


def test_a_change_is_noticed_and_a_mistake_changes_nothing(
    file: Path, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr("tuneserve.gateway._keys.time.monotonic", lambda: now)
    found = KeyFile(file)
    other = add_key(file, "bob", Limits())
    assert found.find(other) is None, "it looked again at once"
    now = 2.0
    assert found.find(other) is not None
    file.write_text("broken")
    now = 4.0
    assert found.find(key) is not None
    assert "stay as they were" in caplog.text
    file.unlink()
    now = 6.0
    assert found.find(key) is not None
    add_key(file, "carol", Limits())
    now = 8.0
    assert found.find(key) is None, "a key that was removed still works"
    file.unlink()
    key = add_key(file, "dora", Limits())
    found.reload()
    assert found.find(key) is not None


@pytest.mark.anyio
async def test_limits_are_said_with_every_answer(served: ServedModel, engine: FakeEngine, file: Path) -> None:
    key = add_key(file, "alice", Limits(requests_per_minute=2, tokens_per_minute=1000))
    async with clients(served, file) as client:
        client.headers["x-api-key"] = key
        for left in (1, 0):
            response = await client.post(CHAT, json=chat_body())
            assert response.status_code == 200
            assert response.headers["x-ratelimit-limit-requests"] == "2"
            assert response.headers["x-ratelimit-remaining-requests"] == str(left)
        used = 2 * (len(engine.prompt) + 15)
        refused = await client.post(CHAT, json=chat_body())
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert re.fullmatch(r"(\d+m)?[\d.]+s|\d+ms", refused.headers["x-ratelimit-reset-requests"])
        assert 0 <= int(refused.headers["x-ratelimit-remaining-tokens"]) - (1000 - used) <= 20
        assert len(engine.requests) == 2
        assert (await client.get("/v1/models")).status_code == 200, "looking is not limited"
        metrics = (await client.get("/metrics")).text
        assert 'tuneserve_requests_refused_total{reason="rate_limit_exceeded"} 1.0' in metrics


@pytest.mark.anyio
async def test_requests_at_once_are_counted_until_they_are_over(served: ServedModel, file: Path) -> None:
    key = add_key(file, "alice", Limits(concurrent=1))
    async with clients(served, file) as client:
        client.headers["x-api-key"] = key
        for stream in (False, True, False):
            response = await client.post(CHAT, json=chat_body(stream=stream))
            assert response.status_code == 200
            assert "error" not in response.text
            assert not stream or sse_events(response.text)[-1] == "[DONE]"
        for broken in (b"{", b'{"model": "other"}'):
            assert (await client.post(CHAT, content=broken)).status_code in (400, 404)
        assert (await client.post(CHAT, json=chat_body())).status_code == 200


class Clock:
    """A clock that is set by hand, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def _refused(limits: RateLimits, key: Key) -> ApiError | None:
    try:
        limits.admit(key)
    except ApiError as error:
        return error
    return None


def test_a_bucket_fills_with_time_and_a_debt_is_paid_back() -> None:
    clock = Clock()
    limits, key = RateLimits(clock), Key("alice", b"", Limits(tokens_per_minute=60))
    limits.admit(key).spend(180)
    error = _refused(limits, key)
    assert error is not None
    assert error.status == 429
    assert error.headers["Retry-After"] == "121"
    assert error.headers["x-ratelimit-remaining-tokens"] == "0"
    assert error.headers["x-ratelimit-reset-tokens"] == "3m0s"
    clock.now += 120.9
    assert _refused(limits, key) is not None
    clock.now += 0.2
    allowance = limits.admit(key)
    clock.now += 10_000
    assert allowance.headers()["x-ratelimit-remaining-tokens"] == "60", "no more than a minute's worth is saved up"


def test_requests_per_minute_hold_over_time() -> None:
    clock = Clock()
    limits, key = RateLimits(clock), Key("alice", b"", Limits(requests_per_minute=30))
    admitted = 0
    for _ in range(6000):
        clock.now += 0.1
        admitted += _refused(limits, key) is None
    assert 30 + 300 - 1 <= admitted <= 30 + 300 + 1


def test_keys_do_not_pay_for_each_other_and_are_forgotten() -> None:
    limits = RateLimits(Clock())
    alice, bob = (Key(name, b"", Limits(concurrent=1)) for name in ("alice", "bob"))
    first = limits.admit(alice)
    assert _refused(limits, bob) is None
    error = _refused(limits, alice)
    assert error is not None
    assert error.code == "concurrency_limit_exceeded"
    first.finish()
    assert _refused(limits, alice) is None
    assert _refused(limits, replace(alice, limits=Limits(concurrent=2))) is None, "new limits are a new start"
    limits.keep_only(frozenset({"alice"}))
    assert len(limits) == 1


def test_a_command_makes_a_key_and_prints_it_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from tuneserve.cli import app

    result = CliRunner().invoke(app, ["keys", "add", "alice", "--file", str(file), "--tokens-per-minute", "9"])
    assert result.exit_code == 0
    found = KeyFile(file).find(result.stdout.strip())
    assert found is not None
    assert found.limits == Limits(tokens_per_minute=9)
    assert list(file.parent.iterdir()) == [file]
