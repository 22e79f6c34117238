from __future__ import annotations

import subprocess
import sys

import pytest

from tunesmith import engine
from tunesmith.engine import BACKENDS, Sampling, open_backend, sampling_seeds
from tunesmith.errors import ConfigError


def test_all_wrong_sampling_values_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        Sampling(max_tokens=0, temperature=-1, top_p=0, top_k=-2, stop=("",))
    for name in ("max_tokens", "temperature", "top_p", "top_k", "stop"):
        assert name in error.value.what


def test_not_a_number_is_no_temperature():
    with pytest.raises(ConfigError, match="nan"):
        Sampling(temperature=float("nan"))


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'transformers'"):
        open_backend("transformer")


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_row_of_the_table_leads_to_a_backend_of_that_name(name):
    assert BACKENDS.load(name).name == name


def test_the_engine_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'numpy', 'aiohttp', 'xllamacpp'}"
    code = f"import sys, tunesmith.engine; sys.exit(str({heavy} & set(sys.modules) or ''))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "\n" or result.returncode == 0, result.stderr


def test_a_seed_belongs_to_the_prompt_and_not_to_its_place():
    seeds = sampling_seeds([(1, 2), (3,), (4,)], 7)
    assert sampling_seeds([(4,), (1, 2)], 7) == [seeds[2], seeds[0]]
    assert sampling_seeds([(1, 2)], 8) != seeds[:1]


def test_equal_prompts_get_different_seeds():
    assert len(set(sampling_seeds([(1,)] * 8, 0))) == 8


def test_public_names_are_sorted_and_exist():
    assert engine.__all__ == sorted(engine.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(engine, name) for name in engine.__all__)
