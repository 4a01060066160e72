"""Write docs/reference.md from the OpenAPI document: `make reference`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reference.md"

Json = dict[str, Any]

# What most people look for comes first; a tag that is not named here comes last.
_ORDER = ["Files", "Uploads", "Batches", "Models", "Live requests", "Webhooks", "Services", "Recipes"]

_HEAD = """# Reference

Written by `make reference` from the OpenAPI document, which a running server has at `/api/schema/`, and as pages that
can be tried out at `/docs/`. Every route needs a key (`Authorization: Bearer sk-vb-...`) and answers errors in one
envelope, `Error` below. What the fields mean is in [API](api.md) and the pages that it names.

`?` behind a name: it may be left out. Live requests (`/v1/chat/completions` and so on) are passed to vLLM as they are:
[live](live.md).
"""


def page(document: Json) -> str:
    """Return the page of an OpenAPI document."""
    schemas: Json = document["components"]["schemas"]
    parts = [_HEAD]
    for tag, rows in _operations(document).items():
        parts += [f"## {tag}\n", "| route | does | takes | answers |\n| --- | --- | --- | --- |", *rows, ""]
    parts.append("## Objects\n")
    for name in sorted(schemas):
        parts += [*_object(name, schemas[name]), ""]
    return "\n".join(parts).rstrip() + "\n"


def _operations(document: Json) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            takes = "; ".join(_takes(operation)) or "-"
            answer = operation["responses"]["200"].get("content", {})
            kinds = [_kind(content.get("schema", {}), mime) for mime, content in answer.items()]
            row = f"| `{method.upper()} {path}` | {operation['summary']} | {takes} | {', '.join(kinds) or '-'} |"
            found.setdefault(operation["tags"][0], []).append(row)
    return dict(sorted(found.items(), key=lambda item: _ORDER.index(item[0]) if item[0] in _ORDER else len(_ORDER)))


def _takes(operation: Json) -> Iterator[str]:
    for mime, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        if "$ref" in schema:
            yield _link(schema)
        else:
            required = schema.get("required", [])
            names = [f"`{name}`" + ("" if name in required else "?") for name in schema.get("properties", {})]
            yield f"{mime}: {', '.join(names)}"
    query = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"]
    if query:
        yield "query " + ", ".join(f"`{name}`?" for name in query)
    if any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", [])):
        yield "header `Idempotency-Key`?"


def _object(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}\n"
    if about := schema.get("description"):
        yield " ".join(about.split()) + "\n"
    required = schema.get("required", [])
    if properties := schema.get("properties"):
        yield "| field | type | |\n| --- | --- | --- |"
        for field, described in properties.items():
            mark = "" if field in required else "?"
            yield f"| `{field}`{mark} | {_kind(described)} | {_rules(described)} |"


def _link(schema: Json) -> str:
    name = schema["$ref"].rsplit("/", 1)[1]
    return f"[{name}](#{name.lower()})"


def _kind(schema: Json, mime: str = "application/json") -> str:
    """Return a type in a few words."""
    if mime != "application/json":
        return mime
    if "$ref" in schema:
        return _link(schema)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join("null" if value is None else f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    kind = schema.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


_BOUNDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "maxProperties": "at most {} pairs",
}


def _rules(schema: Json) -> str:
    """Return what the description and the bounds of a field say."""
    said = [" ".join(schema["description"].split()).rstrip(".")] if schema.get("description") else []
    for each in (schema, *schema.get("anyOf", [])):
        said += [text.format(each[name]) for name, text in _BOUNDS.items() if name in each]
    return "; ".join(said).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vbatch_site.settings")
    # Nothing is asked of the database.
    os.environ.setdefault("DATABASE_URL", "postgresql:///unused")
    import django

    django.setup()
    from drf_spectacular.generators import SchemaGenerator

    PAGE.write_text(page(SchemaGenerator().get_schema(request=None, public=True)))


if __name__ == "__main__":
    main()
