"""Fields of KubeRay's resources that are younger than ``schemas.json.xz``, by the API reference of KubeRay 1.6."""

from typing import Any

Schema = dict[str, Any]

AUTH_OPTIONS: Schema = {  # since 1.5.1; secretName since 1.6
    "type": "object",
    "properties": {
        "mode": {"type": "string", "enum": ["disabled", "token"]},
        "secretName": {"type": "string"},
    },
}
BACKOFF_LIMIT: Schema = {"type": "integer", "format": "int32"}  # since 1.2


def add_to(schemas: dict[str, Schema]) -> None:
    """Add them."""
    job = schemas["RayJob"]["properties"]["spec"]["properties"]
    job["backoffLimit"] = BACKOFF_LIMIT
    for spec in (schemas["RayCluster"]["properties"]["spec"], job["rayClusterSpec"]):
        spec["properties"]["authOptions"] = AUTH_OPTIONS
