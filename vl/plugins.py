"""What plugs into training and evaluation, found by name when it is asked for, so that neither imports it.

Groups, which are entry-point groups of installed packages too:

    vl.sources   name -> a function of the table `data.mix` that makes a `vl.training.source.DataSource`
    vl.tasks     name -> a dictionary of `vl.evaluation.Task` by their names
    vl.recipes   name -> a package whose `*.toml` files are recipes for `vl train NAME`
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vl.errors import ConfigError

# The project's own, which are there whether or not the package is installed.
_OWN = {
    "vl.sources": {"nano": "vl.nano.source:NanoSource", "recall": "vl.recall.source:RecallSource"},
    "vl.tasks": {"nano": "vl.nano.tasks:TASKS"},
    "vl.recipes": {"nano": "vl.nano", "recall": "vl.recall"},
}


def find_plugins(group: str) -> dict[str, Any]:
    """Everything that is plugged into a group, by name, imported. Raises ConfigError if one cannot be imported."""
    return {name: load_object(path) for name, path in list_plugins(group).items()}


def find_plugin(group: str, name: str) -> Any:
    """One plug-in: a name of the group, or an import path `module:object`.

    Raises:
        ConfigError: if there is none of that name, or it cannot be imported.
    """
    known = list_plugins(group)
    if name not in known and ":" not in name:
        raise ConfigError(f"unknown name {name!r}: use {', '.join(known)} or an import path module:object")
    return load_object(known.get(name, name))


def list_plugins(group: str) -> dict[str, str]:
    """Import paths by name; nothing is imported. Raises ConfigError if two packages give one name to two things."""
    found = dict(_OWN[group])
    for entry in entry_points(group=group):
        if found.setdefault(entry.name, entry.value) != entry.value:
            raise ConfigError(
                f"{entry.name!r} of {group} is {found[entry.name]} and, in another package, {entry.value}: one of them "
                "needs another name"
            )
    return found


def load_object(path: str) -> Any:
    """What an import path `module` or `module:object` names. Raises ConfigError if it cannot be imported."""
    module, _, attribute = path.partition(":")
    try:
        found = import_module(module)
        return getattr(found, attribute) if attribute else found
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot import {path}: {error}") from error


def find_folder(package: str) -> Path:
    """Where a package lies, without importing it. Raises ConfigError if there is none."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"there is no package {package}")
    return Path(spec.submodule_search_locations[0])
