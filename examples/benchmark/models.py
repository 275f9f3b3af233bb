"""What the benchmark trains: profiles with one codebook and with two, and ablations of every loss and corrected switch."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

from toc_cli.fcid.config import ModelConfig, corrected, of_codebooks, published

Tables = dict[str, Any]
"""Settings of a run, as `config.toml` holds them."""

PUBLISHED_TRAINING = {"batch_size": 64, "lr": 1e-3, "schedule": "one-cycle"}
"""What the published formulas train with here; their own settings suit other sizes."""
UNUSED = ("profile", "alignment", "readout", "cpc_anchors")
"""Choices that are no switch of a loss, or belong to a loss that the corrected profile leaves out."""


def profiles() -> dict[str, Tables]:
    """Every profile with the codebooks that it can have: the read-out is then not mistaken for the losses."""
    found: dict[str, Tables] = {}
    for profile in ("corrected", "plain", "published"):
        for count in (2, 1):
            found[f"{profile}-{count}"] = {"model": {"profile": profile, **of_codebooks(count)}}
            if profile == "published":
                found[f"{profile}-{count}"]["train"] = PUBLISHED_TRAINING
    found["uniform-1"] = {"model": {"profile": "corrected", "alignment": "uniform"}}
    return found


def ablations() -> dict[str, Tables]:
    """The corrected profile without one of its losses, or with one of its switches as published."""
    config, other = corrected(), published()
    found = {
        f"without {name}": {"model": {"weights": {name: 0.0}}}
        for name, weight in dataclasses.asdict(config.weights).items()
        if weight and name not in ("commitment", "fine_commitment")
    }
    for name in switches(ModelConfig):
        if name not in UNUSED and getattr(config, name) != getattr(other, name):
            found[f"published {name}"] = {"model": {name: getattr(other, name)}}
    for name in switches(type(config.codebook)):
        if getattr(config.codebook, name) != getattr(other.codebook, name):
            found[f"published codebook.{name}"] = {"model": {"codebook": {name: getattr(other.codebook, name)}}}
    return found


def switches(kind: type) -> list[str]:
    """The fields of a config that are one of several words."""
    return [
        name for name, hint in get_type_hints(kind).items() if get_args(hint) and isinstance(get_args(hint)[0], str)
    ]


def settings_of(name: str, width: int, epochs: int, seed: int) -> Tables:
    """The tables of a run of a model of `profiles` or `ablations`. KeyError for another name."""
    own = (profiles() | ablations())[name]
    model = own["model"]
    codebook = {**model.get("codebook", {}), "size": 128}
    train = {"epochs": epochs, "seed": seed, **own.get("train", {})}
    return {"model": {**model, "width": width, "codebook": codebook}, "train": train}
