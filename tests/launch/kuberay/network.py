"""A NetworkPolicy: its schema, by the API reference of networking.k8s.io/v1, and who may reach whom by it."""

from collections.abc import Mapping
from typing import Any

Labels = Mapping[str, str]


def _object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or []}


LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
SELECTOR = _object(matchLabels=LABELS)
PEER = _object(podSelector=SELECTOR, namespaceSelector=SELECTOR)
PORT = _object(protocol={"enum": ["TCP", "UDP", "SCTP"]}, port={"type": ["integer", "string"]}, endPort={})
RULE = {
    "type": "object",
    "properties": {"from": {"type": "array", "items": PEER}, "ports": {"type": "array", "items": PORT}},
}
SPEC = _object(
    ["podSelector"],
    podSelector=SELECTOR,
    policyTypes={"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
    ingress={"type": "array", "items": RULE},
)
SCHEMA = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "networking.k8s.io/v1"},
    kind={"const": "NetworkPolicy"},
    metadata=_object(["name"], name={"type": "string"}),
    spec=SPEC,
)


def selects(selector: dict[str, Any], labels: Labels) -> bool:
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def reaches(policy: dict[str, Any], pod: Labels, sender: Labels, port: int, same_namespace: bool = True) -> bool:
    """Tell whether this policy lets a sender reach a port of a pod."""
    if not selects(policy["spec"]["podSelector"], pod):
        return True  # it says nothing of that pod
    return any(
        any(
            selects(peer["podSelector"], sender) and (same_namespace or peer.get("namespaceSelector") == {})
            for peer in rule["from"]
        )
        and ("ports" not in rule or {"protocol": "TCP", "port": port} in rule["ports"])
        for rule in policy["spec"]["ingress"]
    )
