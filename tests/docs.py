"""Makes the parts of README.md and gateway.ini that are tables; `python -m tests.docs` writes them, a test compares."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

from engadi_gateway.admin.endpoints import ENDPOINTS
from engadi_gateway.admin.schemas import CORS, EXPLAIN, ROUTE, RULE, SPLIT
from engadi_gateway.errors import Reason
from engadi_gateway.model import RateLimitRule, Route, SplitTarget
from engadi_gateway.settings.options import DEFAULT_SERVICES, OPTIONS, service_env

ROOT = Path(__file__).parent.parent


def options_table() -> str:
    lines = ["| option | environment | default | | why this default |", "|---|---|---|---|---|"]
    for option in OPTIONS:
        default = f"`{option.default}`" if option.default else ""
        env = f"`{option.env}`" if option.env else ""
        words = ", ".join(f"`{word}`" for word in option.words)
        option_help = option.help.replace("|", "/") + (words and f"; one of {words}")
        lines.append(f"| `[{option.section}] {option.key}` | {env} | {default} | {option_help} | {option.why} |")
    return "\n".join(lines)


def endpoints_table() -> str:
    lines = ["| | | |", "|---|---|---|"]
    for endpoint in ENDPOINTS:
        query = "?" + "&".join(endpoint.query) if endpoint.query else ""
        public = ", public" if endpoint.is_public else ""
        lines.append(f"| {endpoint.method} | `{endpoint.path}{query}` | {endpoint.summary}{public} |")
    return "\n".join(lines)


def reasons_table() -> str:
    lines = ["| code | status | breaker | |", "|---|---|---|---|"]
    for reason in Reason:
        counts = "counts" if reason.is_failure else ""
        lines.append(f"| `{reason.code}` | {reason.status} | {counts} | {reason.title} |")
    return "\n".join(lines)


def ini_text() -> str:
    lines = [
        "; Engadi Gateway: every option, commented out at its default.",
        "; Order: --set section.key=value > ENGADI_<SECTION>_<KEY> > the name in brackets > this file > default.",
        "; A comment has a line of its own: behind a value, ; and # belong to the value.",
        "; Relative paths are relative to the working directory.",
        "; Durations: 250ms 30s 5m 1h 7d. Sizes: 64KiB 10MiB 1GiB. Booleans: true false yes no on off 1 0.",
    ]
    section = ""
    for option in OPTIONS:
        if option.section != section:
            section = option.section
            lines += ["", f"[{section}]"]
        env = f" [{option.env}]" if option.env else ""
        words = ", ".join(option.words)
        lines += [f"; {option.help}{words and f'; one of {words}'}{env}", f";{option.key} = {option.default}".rstrip()]
    lines += [
        "",
        "[services]",
        "; name = base URL; a service gets the route /api/v1/<name>/* when the database is created;",
        "; without a URL there is no such service",
    ]
    for name, url in DEFAULT_SERVICES.items():
        lines += [f"; [{service_env(name)}]", f";{name} = {url}"]
    lines += ["", "[health_paths]", "; service = path of its health check, where it is not [health] path"]
    return "\n".join([*lines, ";content = /healthz", ""])


def fields_table() -> str:
    """Of what is written over the API: whether it must be there, or what holds without it."""
    lines = ["| | field | | without it |", "|---|---|---|---|"]
    kinds = (
        ("route", ROUTE, Route),
        ("its `split`", SPLIT, SplitTarget),
        ("rule", RULE, RateLimitRule),
        ("CORS", CORS, None),
        ("explain", EXPLAIN, None),
    )
    for title, schema, kind in kinds:
        defaults = dict.fromkeys(schema.fields, MISSING)
        if kind is not None:
            defaults |= {part.name: part.default for part in fields(kind)}
        for name in schema.fields:
            without = "" if defaults[name] is MISSING else f"`{json.dumps(defaults[name])}`"
            without = "required" if name in schema.required else without
            lines.append(f"| {title} | `{name}` | {schema.notes[name]} | {without} |")
    return "\n".join(lines)


TABLES = {"fields": fields_table, "options": options_table, "endpoints": endpoints_table, "reasons": reasons_table}


def filled(readme: str) -> str:
    """The README with its tables made anew, between `<!-- name -->` and `<!-- /name -->`."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert pattern.search(readme), name
        table = make().replace("\\", "\\\\")
        readme = pattern.sub(rf"\g<1>{table}\n\g<2>", readme)
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text()))
    (ROOT / "gateway.ini").write_text(ini_text())
