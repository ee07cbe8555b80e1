"""Header and buffers of a saved run: identify a pair, and rebuild it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import date
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pplgen.data.table import Table
from pplgen.errors import InputError
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.inference.named_guides import named_pair
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.storage.run_folder import provenance
from pplgen.storage.user_code import COLLECTION, code_digest, import_path, qualified_name
from pplgen.story.base import Story
from pplgen.story.isolation import modules_of
from pplgen.story.pair import Pair, check_shapes

__all__ = [
    "arguments_fingerprint",
    "check_finite",
    "check_sites",
    "pair_facts",
    "restore_buffers",
    "restore_story",
    "run_header",
    "saved_buffers",
    "source_digest",
    "table_facts",
    "type_name",
    "with_prefix",
    "with_saved_guide",
]

PLAIN = (bool, int, float, str, type(None))

FORMER_SITES = ("dirichlet_process_mixture", "gaussian_mixture", "mixed_mixture")
"""Stories whose runs without a list of sites are of versions that drew other coordinates."""
FORMER_BUFFERS = {"SwitchingLDS": {"m": "centre", "s": "scale"}}
"""Buffers of stories that had another name in former versions."""


def saved_buffers(pair: Pair) -> dict[str, Tensor]:
    """Return the buffers of a story, or of a bare pair's modules, by their names in a saved run."""
    if pair.story is not None:
        of_guide = {f"guide_buffer/{name}": value for name, value in _guide_buffers(pair).items()}
        return {f"buffer/{name}": value for name, value in _persistent_buffers(pair.story).items()} | of_guide
    modules = [module for module in modules_of(pair.model, pair.guide) if not isinstance(module, StoredDraws)]
    distinct = list({id(module): module for module in modules}.values())
    return {
        f"buffer/{index}.{name}": value
        for index, module in enumerate(distinct)
        for name, value in module.named_buffers()
    }


def restore_story(story: Story, tensors: dict[str, Tensor]) -> None:
    """Restore the buffers of a story from the tensors of a saved run, also of a former version."""
    own, former = _persistent_buffers(story), FORMER_BUFFERS.get(type(story).__name__, {})
    saved = {former.get(each, each): value for each, value in with_prefix("buffer/", tensors).items()}
    derived = {each for each, _ in story.named_buffers()} - own.keys() | {"kl_weight"}
    restore_buffers(own, {each: value for each, value in saved.items() if each not in derived})


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's buffers, without those that its constructor derives from its options."""
    persistent = module.state_dict().keys()
    return {name: value for name, value in module.named_buffers() if name in persistent}


def _guide_buffers(pair: Pair) -> dict[str, Tensor]:
    """Return the buffers of a story's named guide; none of its own guide, whose buffers are the story's."""
    named = isinstance(pair.guide, nn.Module) and not isinstance(pair.guide, StoredDraws)
    return dict(pair.guide.named_buffers()) if named else {}


def with_saved_guide(pair: Pair, name: str | None, tensors: dict[str, Tensor]) -> Pair:
    """Return a story's pair with the named guide of a saved run, its buffers restored; ``None``: its own guide."""
    if name is None:
        return pair
    pair = named_pair(pair, name, initialise=False)
    restore_buffers(_guide_buffers(pair), with_prefix("guide_buffer/", tensors))
    return pair


@torch.no_grad()
def restore_buffers(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Set buffers in place from the tensors of a saved run.

    Raises
    ------
    InputError
        If names, shapes or kinds of numbers differ.
    """
    check_shapes("buffer", saved, own)
    for name, value in own.items():
        if saved[name].is_complex() or saved[name].is_floating_point() != value.is_floating_point():
            raise InputError(f"buffer {name!r} has type {saved[name].dtype}; expected {value.dtype}")
        value.copy_(saved[name])


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def check_finite(what: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors unchanged if all are floating-point and finite.

    Raises
    ------
    InputError
        If one is not.
    """
    for name, value in tensors.items():
        if not (value.is_floating_point() and value.isfinite().all()):
            raise InputError(f"{what} {name!r} does not hold finite numbers")
    return tensors


def type_name(values: Tensor) -> str:
    """Return the name of a tensor's type, such as ``"float32"``."""
    return str(values.dtype).removeprefix("torch.")


def pair_facts(pair: Pair) -> dict[str, Any]:
    """Return a pair's header fields: floating-point type, or functions and data, and the digest of its code."""
    digest = source_digest(pair)
    facts: dict[str, Any] = {} if digest is None else {"source_sha256": digest}
    if pair.story is not None:
        sites = sorted(pair.structure.shared_latent)
        return facts | {"dtype": type_name(next(pair.story.parameters())), "sites": sites}
    parts = {"model": qualified_name(pair.model), "guide": qualified_name(pair.guide)}
    return facts | {"pair": parts, "arguments_sha256": arguments_fingerprint(pair.data)}


def check_sites(pair: Pair, header: dict[str, Any]) -> None:
    """Raise ``InputError`` if draws, or the parameters of a named guide, belong to other sites than the story has now.

    Parameters of a story's own guide keep their names; those of a named guide are one vector for all sites.
    """
    if pair.story is None or not ("guide" in header or header.get("method") == "nuts"):
        return
    now = sorted(pair.structure.shared_latent)
    former = type(pair.story).__module__.removeprefix(COLLECTION) in FORMER_SITES
    saved = header.get("sites", None if former else now)
    if saved != now:
        given = "other sites" if saved is None else ", ".join(map(str, saved))
        raise InputError(f"the run, of another version, draws {given}; this one draws {', '.join(now)}: fit it again")


def source_digest(pair: Pair) -> str | None:
    """Digest of the code of a user's story, or of a bare pair's model and guide; ``None`` for pplgen's stories."""
    if pair.story is not None:
        own = type(pair.story)
        return None if own.__module__.startswith(COLLECTION) else code_digest(own)
    return code_digest(pair.model, pair.guide)


def arguments_fingerprint(data: tuple[Any, ...], *, contents: bool = True) -> str:
    """SHA-256 of a bare pair's arguments: types, shapes and values of tensors, arrays, containers and plain values.

    Without ``contents``, of anything but tensors and plain values only the type counts.
    """
    digest = hashlib.sha256()
    for value in data:
        if contents or isinstance(value, (Tensor, *PLAIN)):
            _add(digest, value, frozenset())
        else:
            digest.update(type(value).__qualname__.encode())
    return digest.hexdigest()


def _add(digest: Any, value: Any, around: frozenset[int]) -> None:
    """Add a value to a digest, with what it holds but not the objects ``around`` it."""
    if isinstance(value, Tensor) and value.layout is torch.strided:
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        whole = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
        return
    if isinstance(value, PLAIN):
        digest.update(repr(value).encode())
        return
    digest.update(type(value).__qualname__.encode())
    if id(value) not in around:
        for part in _parts(value):
            digest.update(b"\0")
            _add(digest, part, around | {id(value)})
        digest.update(b"\1")


def _parts(value: Any) -> Iterable[Any]:
    """Return what an object holds, empty for one whose type alone counts, such as a function or a module."""
    if isinstance(value, Tensor):
        entries = value.detach().to_sparse_coo().coalesce()
        return tuple(value.shape), entries.indices(), entries.values()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, (np.generic, np.dtype, torch.dtype, torch.device, complex, bytes, date, Enum)):
        return (repr(value),)
    if isinstance(value, np.ndarray):
        return value.shape, value.ravel().tolist()
    if isinstance(value, (pd.Series, pd.Index)):
        return value.name, value.array.to_numpy(), value.index if isinstance(value, pd.Series) else None
    if isinstance(value, Mapping):
        return (each for key in sorted(value, key=repr) for each in (key, value[key]))
    if isinstance(value, pd.DataFrame):
        return (each for item in value.items() for each in item)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, (list, tuple, deque, range)):
        return value
    if isinstance(value, (nn.Module, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)):
        return ()
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
    inside = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return (each for item in inside.items() for each in item)


def table_facts(table: Table) -> dict[str, Any]:
    """Name, length, fingerprint and type of training rows, and whether they had labels or weights."""
    known = [name for name in ("labels", "weights") if getattr(table, name) is not None]
    facts = {"name": table.name, "num_rows": len(table), "fingerprint": table.fingerprint}
    facts |= {} if table.label_names is None else {"label_names": list(table.label_names)}
    return {**facts, "dtype": type_name(table.values), "known": known}


def run_header(fit: FittedPair, training: dict[str, Any]) -> dict[str, Any]:
    """Return the header of a saved run; ``training`` holds the fields about the optimisation or the sampler."""
    story = fit.story
    facts = {
        **fit.origin,
        "story": fit.name if story is None else import_path(type(story)),
        "config": {} if story is None else story.config,
        "columns": list(fit.columns),
        "seed": fit.seed,
        "path": fit.path,
        **training,
    }
    if "created" not in fit.origin:
        facts |= {"data": fit.data_facts, **provenance()}
    return facts
