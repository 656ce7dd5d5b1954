"""The OpenAPI document as one static HTML page."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: API</title>
<link rel="icon" href="/static/favicon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/docs.css">
</head>
<body>
<main>
<p><a href="/">{title}</a> {version}</p>
<h1>API</h1>
<p>{about} The machine-readable form is <a href="/openapi.json">openapi.json</a>.</p>
{operations}
</main>
</body>
</html>
"""


def docs_page(document: dict[str, Any]) -> str:
    """HTML of an OpenAPI document; everything of it is escaped."""
    info = document["info"]
    operations = [
        _operation(method, path, one)
        for path, methods in document["paths"].items()
        for method, one in methods.items()
    ]
    return _FRAME.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        about=escape(info.get("description", "")),
        operations="\n".join(operations),
    )


def _operation(method: str, path: str, one: dict[str, Any]) -> str:
    parts = [
        f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>",
        f"<p>{escape(one['description'])}</p>",
    ]
    if parameters := one.get("parameters"):
        rows = ((p["name"], p["in"], _type(p["schema"]), p.get("description", "")) for p in parameters)
        parts.append(_table(("parameter", "where", "type", ""), rows))
    for media, content in one.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>Body: <code>{escape(media)}</code></h3>")
        parts += [_fields(schema) for schema in content["schema"].get("oneOf", [content["schema"]])]
    answers = ((code, answer["description"]) for code, answer in one["responses"].items())
    parts.append(_table(("status", "meaning"), answers))
    return f"<section>{''.join(parts)}</section>"


def _fields(schema: dict[str, Any]) -> str:
    if "properties" not in schema:
        return ""
    required = schema.get("required", ())
    rows = (
        (
            name,
            _type(field),
            "required" if name in required else _default(field),
            field.get("description", ""),
        )
        for name, field in schema["properties"].items()
    )
    return _table(("field", "type", "default", "meaning"), rows)


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    return "" if value is None else json.dumps(value)


def _type(schema: dict[str, Any]) -> str:
    """The type of a schema with its bounds, in a few words."""
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(
                dict.fromkeys(_type(one) for one in schema[several] if one.get("type") != "null")
            )
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(map(json.dumps, schema["enum"]))
    if "prefixItems" in schema:
        return f"[{', '.join(map(_type, schema['prefixItems']))}]"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return " ".join((str(schema.get("type", "any")), *_bounds(schema)))


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for name, sign in signs.items():
        if name in schema:
            yield f"{sign} {schema[name]}"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"
