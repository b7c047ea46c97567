"""The table of methods as facts: settings with defaults and meaning, parameters on a backbone."""

from __future__ import annotations

from typing import Any

from fleetune.backbone.families import ROLES
from fleetune.backbone.load import config_only
from fleetune.backbone.sites import SiteMap, empty_model, site_map
from fleetune.errors import SettingsError
from fleetune.methods.base import Method, count_parameters
from fleetune.methods.table import METHODS, method_class


def method_facts(name: str | None = None, backbone: str | None = None) -> list[dict[str, Any]]:
    """All methods, or one; with parameter counts where a backbone is named (its weights are not read)."""
    chosen = [method_class(name)] if name else list(METHODS.values())
    sites = site_map(empty_model(config_only(backbone))) if backbone else None
    return [_facts(cls, sites) for cls in chosen]


def _facts(cls: type[Method], sites: SiteMap | None) -> dict[str, Any]:
    return {
        "name": cls.name,
        "summary": cls.summary,
        "source": cls.source,
        "default_learning_rate": cls.default_learning_rate,
        "shares_backbone": cls.abilities.shares_backbone,
        "peft_format": cls.abilities.peft_format,
        "settings": [
            {"name": key, "default": str(field.default), "meaning": field.description or ""}
            for key, field in cls.model_fields.items()
        ],
        "roles": list(sites.roles if sites else ROLES) if cls.name == "bitfit" else [],
        "trainable_parameters": _count(cls, sites),
    }


def _count(cls: type[Method], sites: SiteMap | None) -> dict[str, int] | None:
    if sites is None:
        return None
    try:
        count = count_parameters(cls(), sites)
    except SettingsError:
        return None
    return {"encoder": count.encoder, "head": count.head}
