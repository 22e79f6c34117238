"""The room as a package: light to import, its reference page as generated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import serve
from tunesmith.errors import EnvironmentProblem
from tunesmith.telemetry import METRICS

ROOT = Path(__file__).parents[2]


def test_the_reference_page_is_what_the_code_says():
    page = (ROOT / "docs/serve/reference.md").read_text(encoding="utf-8")
    assert page == serve.reference(), (
        "write it anew: python -c 'from tunesmith.serve import reference; print(reference(), end=\"\")'"
        " > docs/serve/reference.md"
    )


def test_the_reference_names_every_path_and_every_metric_of_serving():
    page = serve.reference()
    for path in ("/healthz", "/readyz", "/metrics", "/v1/models", "/v1/chat/completions"):
        assert f"{path}`" in page
    for name in METRICS:
        assert (f"`{name}`" in page) == name.startswith("tunesmith_serve_")


def test_importing_the_room_loads_no_web_framework_and_no_model_library():
    code = "import sys, tunesmith.serve; print([m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    for heavy in ("fastapi", "uvicorn", "aiohttp", "torch", "transformers", "prometheus_client"):
        assert f"'{heavy}'" not in loaded


def test_every_public_name_exists():
    for name in serve.__all__:
        assert getattr(serve, name) is not None
    with pytest.raises(AttributeError):
        serve.nothing  # noqa: B018


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("gateway", "server"):
        monkeypatch.delitem(sys.modules, f"tunesmith.serve.{name}", raising=False)
    with pytest.raises(EnvironmentProblem, match="uvicorn") as caught:
        serve.run  # noqa: B018
    assert caught.value.fix == "pip install 'tunesmith[serve]'"


def test_the_api_description_covers_what_a_client_needs():
    from tunesmith.serve.app import openapi

    schema = openapi()
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert {"model", "messages", "stream"} <= set(
        schema["components"]["schemas"][name]["properties"]
    )
    assert "ErrorBody" in schema["components"]["schemas"]
