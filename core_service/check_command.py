"""`vmcore check-config FILE`: whether core would take a policy, and what it says, rule by rule.

Exit status: 0 for a policy that core takes, 1 for another one.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Any, Final

from core_service.policy import Policy, PolicyError, load
from core_service.policy.accounts import People
from core_service.policy.policy import Rule
from core_service.settings import Settings

GIB: Final = 1 << 30


def check(arguments: Namespace, settings: Settings) -> int:
    """Run the command; the exit status."""
    try:
        policy = load(arguments.file, settings)
    except PolicyError as error:
        print(f"vmcore: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(_described(policy)))
    else:
        _show(_described(policy))
    return 0


def _described(policy: Policy) -> dict[str, Any]:
    return {
        "operators": _people(policy.operators),
        "limits": {
            "ram": policy.ram,
            "capabilities": policy.capabilities,
            "sessions": policy.sessions,
        },
        "allow": [_rule(rule) for rule in policy.rules],
        "digest": policy.digest,
    }


def _people(people: People) -> dict[str, Any]:
    if people.everybody:
        return {"everybody": True}
    return {"uids": sorted(people.uids), "gids": sorted(people.gids)}


def _rule(rule: Rule) -> dict[str, Any]:
    client, session = rule.client, rule.session
    told: dict[str, Any] = {
        "for": _people(rule.people),
        "label": session.label,
        "sessions": session.sessions,
        "vcpus": session.vcpus,
        "engines": session.engines,
        "priority": session.priority,
        "cpus": sorted(session.cpus),
        "engine_memory": session.engine_memory,
        "engine_cpu": session.engine_cpu,
    }
    if not session.label:
        told |= {
            "ram": client.user_ram,
            "capabilities": client.user_capabilities,
            "client_ram": client.ram,
            "client_capabilities": client.capabilities,
            "connections": client.connections,
            "rom_paths": [str(path) for path in client.rom_paths],
            "audit": _people(rule.sees),
        }
    return told


def _show(told: dict[str, Any]) -> None:
    limits = told["limits"]
    print(f"operators  {_who(told['operators'])}")
    print(
        f"core       {_size(limits['ram'])}, {limits['capabilities']} capabilities, "
        f"{limits['sessions']} sessions"
    )
    for number, rule in enumerate(told["allow"], 1):
        label = f", sessions labelled {rule['label']}..." if rule["label"] else ""
        print(f"rule {number}     {_who(rule['for'])}{label}")
        for key, value in rule.items():
            if key not in {"for", "label"} and value not in (None, [], {"uids": [], "gids": []}):
                print(f"  {key:20} {_value(key, value)}")


def _who(people: dict[str, Any]) -> str:
    if people.get("everybody"):
        return "everybody"
    parts = [
        f"{what} {', '.join(map(str, people[key]))}"
        for what, key in (("users", "uids"), ("groups", "gids"))
        if people[key]
    ]
    return "; ".join(parts) or "nobody"


def _value(key: str, value: Any) -> str:
    if key in {"ram", "client_ram", "engine_memory"}:
        return _size(value)
    if isinstance(value, dict):
        return _who(value)
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _size(size: int) -> str:
    return f"{size / GIB:g} GiB"
