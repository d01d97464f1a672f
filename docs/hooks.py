"""What the site shows besides the pages of this folder: the JSON schemas as tables, and files that pages link to."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SCHEMAS = "reference/schemas.md"
OUTWARD = re.compile(
    r"\]\((?P<up>(?:\.\./)+)(?P<path>(?:data_manifests|bundles)/[^)#\s]+|[A-Z]+(?:\.\w+)?)(?P<anchor>#[^)]*)?\)"
)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Add the tables to the page of the schemas, and let links that lead out of docs/ lead to a copy in the site."""
    here = posixpath.dirname(page.file.src_uri)
    if page.file.src_uri == SCHEMAS:
        paths = [*ROOT.glob("docs/schemas/*.json"), ROOT / "data_manifests/manifest.schema.json"]
        markdown = "\n".join([markdown, "", *map(_section, sorted(paths, key=lambda path: path.name))])

    def inside(match: re.Match[str]) -> str:
        target = f"files/{match['path']}"
        if files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / match["path"])))
        return f"]({posixpath.relpath(target, here or '.')})"

    return OUTWARD.sub(inside, markdown)


def _section(path: Path) -> str:
    schema = json.loads(path.read_text(encoding="utf-8"))
    name = path.name.removesuffix(".schema.json")
    link = posixpath.relpath(path.relative_to(ROOT).as_posix(), "docs/reference")
    title = schema.get("title", name)
    lines = [f"## {name}", "", f"[{title[0].upper()}{title[1:]}]({link}). {schema.get('description', '')}", ""]
    rows = {row.partition(" | ")[0].strip("|* "): row for row in _rows(schema, schema, "")}
    for choice in schema.get("oneOf", []):
        rows |= {row.partition(" | ")[0].strip("|* "): row for row in _rows(choice, schema, "")} | rows
    if rows:
        lines += ["| field | type | |", "|---|---|---|", *rows.values(), ""]
    return "\n".join(lines)


def _rows(schema: dict[str, Any], root: dict[str, Any], prefix: str) -> list[str]:
    """Return a table row a field, those of an object inside after it, two levels deep."""
    rows = []
    for field, described in _resolved(schema, root).get("properties", {}).items():
        resolved = _resolved(described, root)
        words = str(described.get("description") or resolved.get("description", "")).replace("|", "\\|")
        name = f"{prefix}{field}"
        shown = f"**`{name}`**" if field in schema.get("required", []) else f"`{name}`"
        rows.append(f"| {shown} | {_type(resolved)} | {words} |")
        if prefix.count(".") < 1:
            inner = _resolved(resolved.get("items", {}), root) if resolved.get("type") == "array" else resolved
            rows += _rows(inner, root, f"{name}{'[]' if inner is not resolved else ''}.")
    return rows


def _resolved(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    while isinstance(schema, dict) and "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            found = found[int(part) if isinstance(found, list) else part] if part else found
        schema = found
    return schema if isinstance(schema, dict) else {}


def _type(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
