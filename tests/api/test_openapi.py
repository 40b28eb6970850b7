"""The OpenAPI document says what the application does."""

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from api.app import openapi_document
from api.problems import CODES

DOCUMENT = openapi_document()
OPERATIONS = [(path, method, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()]


def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def test_it_is_openapi_31_and_says_who_may_come() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    assert DOCUMENT["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, _, operation in OPERATIONS:
        if path.startswith("/v1/"):
            schemes = [name for scheme in operation["security"] for name in scheme]
            assert schemes in ([], ["key", "token", "browser"], ["token", "browser"]), path
            assert (schemes == []) <= path.startswith("/v1/auth/"), "nothing else is for everybody"


def test_operation_ids_are_stable() -> None:
    """Clients are made from them: one that is renamed breaks those."""
    shipped = (Path(__file__).parents[1] / "golden" / "operations.txt").read_text(encoding="utf-8").split()

    assert sorted(operation["operationId"] for _, _, operation in OPERATIONS) == shipped


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=[operation["operationId"] for _, _, operation in OPERATIONS])
def test_every_example_fits_its_schema(path: str, method: str, operation: dict[str, Any]) -> None:
    checked = 0
    contents = [operation.get("requestBody", {}).get("content", {})]
    shared = DOCUMENT["components"]["responses"]
    contents += [shared.get(told.get("$ref", "").split("/")[-1], told).get("content", {}) for told in operation["responses"].values()]
    for content in contents:
        for media in content.values():
            examples = [example["value"] for example in media.get("examples", {}).values()]
            examples += [media["example"]] if "example" in media else []
            for example in examples:
                validator(media["schema"]).validate(example)
                checked += 1
    assert checked >= (3 if path.startswith("/v1/") else 0)


def test_every_reference_leads_somewhere() -> None:
    text = str(DOCUMENT)
    names = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}

    assert names - set(DOCUMENT["components"]["schemas"]) == set()


def test_codes_have_a_status_and_a_sentence() -> None:
    assert all(400 <= status < 600 and title.endswith((".", "...")) for status, title in CODES.values())
