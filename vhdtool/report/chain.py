"""A chain: each layer, how it was found, and the verdict on its link."""

from __future__ import annotations

from typing import Final

from vhdtool.chain.chain import Chain, FoundBy, Layer, LinkVerdict
from vhdtool.report.findings import finding_lines, findings_json
from vhdtool.report.text import (
    Document,
    Paint,
    count,
    fields,
    identity_text,
    name_of,
    plain,
    size_both,
    size_text,
)

FOUND_TEXT: Final = {
    FoundBy.GIVEN: "given by you",
    FoundBy.RELATIVE_PATH: "by the relative path in its child",
    FoundBy.ABSOLUTE_PATH: "by the absolute path in its child, mapped",
    FoundBy.VOLUME_PATH: "by the volume path in its child, mapped",
    FoundBy.NAME: "by its file name",
    FoundBy.IDENTITY: "by its identity: no recorded name leads here",
}
# With the role that it is painted in.
VERDICT_TEXT: Final = {
    LinkVerdict.BASE: ("base: needs no parent", "good"),
    LinkVerdict.OK: ("parent's identity agrees", "good"),
    LinkVerdict.MISMATCH: ("PARENT IS NOT THE ONE IT WAS MADE FROM", "error"),
    LinkVerdict.MISSING: ("PARENT IS MISSING", "error"),
    LinkVerdict.LOOP: ("PARENT IS ITS OWN DESCENDANT", "error"),
}


def chain_json(chain: Chain) -> Document:
    """The document of ``chain --json``.

    ``findings`` of a layer are those of its image and of its link; those of links stand in the
    document's own ``findings`` too, with those of the chain as a whole.
    """
    return {
        "complete": chain.complete,
        "virtual_size": chain.virtual_size,
        "layers": [_layer_json(depth, layer) for depth, layer in enumerate(chain.layers)],
        "findings": findings_json(chain.findings),
    }


def _layer_json(depth: int, layer: Layer) -> Document:
    image = layer.image
    parent = image.parent
    return {
        "layer": depth,
        "path": str(layer.path),
        "format": str(image.format),
        "type": str(image.type),
        "virtual_size": image.geometry.virtual_size,
        "write_id": identity_text(image.write_id),
        "parent_write_id": identity_text(parent.identities[0]) if parent and parent.identities else None,
        "link": str(layer.link),
        "found_by": None if layer.found_by is None else str(layer.found_by),
        "findings": findings_json([*image.findings, *layer.findings]),
    }


def chain_text(chain: Chain, paint: Paint = plain) -> str:
    """The same for people: one paragraph a layer, leaf first."""
    state = "complete" if chain.complete else "INCOMPLETE"
    head = f"{count(len(chain.layers), 'layer')}, {state}, virtual disk of {size_both(chain.virtual_size)}"
    parts = [paint(head, "good" if chain.complete else "error")]
    parts.extend(_layer_text(depth, layer, paint) for depth, layer in enumerate(chain.layers))
    whole = [
        finding for finding in chain.findings if not any(finding in layer.findings for layer in chain.layers)
    ]
    if whole:
        parts.append("\n".join(finding_lines(whole, paint=paint)))
    return "\n\n".join(parts)


def _layer_text(depth: int, layer: Layer, paint: Paint) -> str:
    image = layer.image
    verdict, role = VERDICT_TEXT[layer.link]
    rows: list[tuple[str, object]] = [("Disk", _disk(layer)), ("Found", FOUND_TEXT[layer.found_by])]
    if image.write_id is not None:
        rows.append(("Identity", image.write_id))
    if image.parent is not None:
        rows.extend(("Parent identity", identity) for identity in image.parent.identities)
        if image.parent.name:
            rows.append(("Parent name", image.parent.name))
    lines = [
        f"{depth:>3}  {paint(name_of(layer.path), 'name')}",
        fields(rows, indent=5, width=15),
        f"     {'Link':<15} : {paint(verdict, role)}",
        *finding_lines([*image.findings, *layer.findings], indent=5, paint=paint),
    ]
    return "\n".join(lines)


def _disk(layer: Layer) -> str:
    image = layer.image
    return f"{image.format.upper()} {image.type}, {size_text(image.geometry.virtual_size)}"
