"""What is to be deployed: a plan, the files it needs and how it is run; checked before anything is written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneserve.deploy._keys import read_key_file
from tuneserve.deploy._parts import Part, adapter_part, base_part, model_part
from tuneserve.errors import InputError
from tuneserve.planner import Plan
from tuneserve.sources import ResolvedSource, read_config

ENGINES = ("native", "vllm")
PORT = 8000
# What leaving takes after the last answer: connections are closed, then the engine is.
CLOSING_SECONDS = 15
_MANIFEST = "tuneserve.json"
# Names of parts of it are made by adding to it, up to Kubernetes' 63 characters.
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}", re.ASCII)
_MAX_DRAIN_SECONDS = 3600
# Weights are read up to three times from storage that may be slow: for the engine, its kernels and the comparison.
_STARTING_SECONDS, _STARTING_BYTES_PER_SECOND = 900, 50_000_000


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A checked wish, of which a target makes files.

    ``name`` is a DNS label (RFC 1123) that begins with a letter. ``image`` is what a registry calls the container's
    image, ``volume`` the claim that holds the parts, each in a directory of its name, and ``model_image`` an image
    that has them below ``/models``. ``keys`` is the text of the file of API keys, ``key_file`` its path. ``nodes`` is
    what ``kubectl get nodes --output json`` printed. ``verify`` has each server compare itself with the model before it
    is ready.
    """

    plan: Plan
    name: str
    model: Part
    base: Part | None
    adapters: Mapping[str, Part]
    key_file: Path
    keys: str
    drain_seconds: int = 30
    verify: bool = True
    image: str | None = None
    volume: str | None = None
    model_image: str | None = None
    nodes: Path | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """All directories that it needs."""
        return (self.model, *((self.base,) if self.base else ()), *self.adapters.values())

    @property
    def has_models(self) -> bool:
        """Whether a volume or an image brings the parts to a cluster; else they are downloaded."""
        return self.volume is not None or self.model_image is not None

    @property
    def starting_seconds(self) -> int:
        """How long a server may take until it is ready."""
        return _STARTING_SECONDS + (self.plan.taken.weights or 0) // _STARTING_BYTES_PER_SECOND

    def refuse(self, *options: str) -> None:
        """Check that none of these was given: they are for other targets.

        Raises:
            InputError: one was.
        """
        for option in options:
            if getattr(self, option) is not None:
                raise InputError(f"--{option.replace('_', '-')} is not for this target; leave it out.")

    def serve(self, where: Mapping[str, str], *, key_file: str, port: int = PORT, host: str = "0.0.0.0") -> list[str]:  # noqa: S104
        """Return the arguments of ``tuneserve``; ``where`` says what to tell it for each part, by the part's name."""
        plan = self.plan
        arguments = ["serve", where[self.model.name], f"--name={plan.model.source.name}"]
        if self.base is not None:
            arguments += ["--base", where[self.base.name]]
        for name, part in self.adapters.items():
            arguments += ["--adapter", f"{name}={where[part.name]}"]
        arguments += ["--engine", plan.engine, "--context", str(plan.wish.context)]
        arguments += ["--max-running", str(plan.max_running)]
        if plan.taken.tensor > 1:
            arguments += ["--tensor-parallel", str(plan.taken.tensor)]
        arguments += ["--host", host, "--port", str(port), "--api-key-file", key_file]
        arguments += ["--drain-timeout", str(self.drain_seconds), "--log-format", "json"]
        return arguments if self.verify else [*arguments, "--no-verify"]


def make_deployment(
    plan: Plan,
    *,
    key_file: Path,
    name: str | None = None,
    adapters: Mapping[str, ResolvedSource] | None = None,
    drain_seconds: int = 30,
    verify: bool = True,
    image: str | None = None,
    volume: str | None = None,
    model_image: str | None = None,
    nodes: Path | None = None,
) -> Deployment:
    """Check a wish; see :class:`Deployment` for what the arguments mean.

    Raises:
        InputError: something in it cannot be; the message names the remedy.
    """
    source = plan.model.source
    _check_plan(plan)
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in source.name):
        raise InputError(f"the name {source.name[:60]!r} has control characters in it; rename the directory.")
    if not 0 <= drain_seconds <= _MAX_DRAIN_SECONDS:
        raise InputError(f"the drain timeout is outside 0 to {_MAX_DRAIN_SECONDS} seconds; choose one within.")
    if volume is not None and model_image is not None:
        raise InputError("the model comes from a volume or from an image; give one of --volume and --model-image.")
    for option, value in (("--image", image), ("--model-image", model_image)):
        if value is not None and not _IMAGE.fullmatch(value):
            raise InputError(f"{option} {value[:60]!r} is no name of an image; write it as registry/name:tag.")
    return Deployment(
        plan=plan,
        name=_checked_name(name) if name is not None else _derived_name(source.name),
        model=model_part(source),
        base=base_part(source),
        adapters={called: adapter_part(called, each) for called, each in (adapters or {}).items()},
        key_file=key_file.absolute(),
        keys=read_key_file(key_file),
        drain_seconds=drain_seconds,
        verify=verify,
        image=image,
        volume=None if volume is None else _checked_claim(volume),
        model_image=model_image,
        nodes=nodes,
    )


def _check_plan(plan: Plan) -> None:
    source, machine = plan.model.source, plan.machine
    if plan.engine not in ENGINES:
        raise InputError(
            f"the plan for {source.name} on {machine.name} takes {plan.engine}, and only {' and '.join(ENGINES)} are "
            f"deployed; choose another --objective or --hardware, or run 'tuneserve plan' for the commands by hand."
        )
    if plan.exports and _method(source) != plan.method:
        raise InputError(
            f"the plan for {source.name} on {machine.name} serves {plan.method}, which has to be made first; run "
            f"'{plan.commands.shell[0]}' and deploy that."
        )


def _method(source: ResolvedSource) -> str | None:
    """Return the method by which tuneserve made a model, None where it did not."""
    path = source.model_dir / _MANIFEST
    return str(read_config(path).get("method")) if source.adapter_dir is None and path.is_file() else None


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--name {name[:60]!r} is not up to 40 lower-case letters, digits and hyphens beginning with a letter; "
            f"call it {_derived_name(name)}."
        )
    return name


def _checked_claim(claim: str) -> str:
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?", claim, re.ASCII):
        raise InputError(
            f"--volume {claim[:60]!r} is no name of a PersistentVolumeClaim; see 'kubectl get persistentvolumeclaims'."
        )
    return claim


def _derived_name(text: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    lettered = plain if plain[:1].isalpha() else f"model-{plain}"
    return lettered[:40].strip("-")
