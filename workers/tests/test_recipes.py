"""What recipes allow."""

import re
from pathlib import Path
from typing import Any

import pytest

from workers import recipes
from workers.models import Service
from workers.recipes import BadRecipe, RecipeError

VLLM = recipes.load()["inference/vllm"]


def test_the_three_recipes_are_there_and_found_by_path_or_name() -> None:
    assert set(recipes.load()) == {"inference/vllm", "inference/vllm-replicas", "inference/vllm-multi-node"}
    assert recipes.find("vllm") == recipes.find("inference/vllm") == VLLM
    assert recipes.find("storage/vllm") is None


@pytest.mark.parametrize("recipe", recipes.load().values(), ids=lambda recipe: recipe.path)
def test_an_address_that_is_allowed_fits_into_a_services_row(recipe: recipes.Recipe) -> None:
    room = Service._meta.get_field("url").max_length or 0
    host = recipe.parameters["VLLM_HOST"]
    longest = next(n for n in range(300, 0, -1) if re.fullmatch(host.pattern, "a" * n))
    assert len(f"http://{'a' * longest}:65535") <= room


@pytest.mark.parametrize("recipe", recipes.load().values(), ids=lambda recipe: recipe.path)
def test_a_recipe_alone_is_a_whole_request(recipe: recipes.Recipe) -> None:
    wanted = recipe.resolve(None)
    assert wanted.text("VLLM_MODEL").startswith("Qwen/Qwen2.5-")
    assert wanted.integer("time_limit") > 0
    assert all(parameter.description for parameter in recipe.parameters.values())


def test_values_are_read_in_their_types_and_numerals_may_be_strings() -> None:
    environment = {"VLLM_MAX_MODEL_LEN": "4096", "VLLM_GPU_MEMORY_UTILIZATION": "0.5", "VLLM_PORT": 8001}
    resources = {"nodes": "1", "cpu": 4, "memory": "16G", "time_limit": 30, "gpu": None}
    wanted = VLLM.resolve({"environment": environment, "resources": resources, "account": "p200"})
    assert wanted.environment["VLLM_MAX_MODEL_LEN"] == 4096
    assert wanted.resources == {"nodes": 1, "cpu": 4, "memory": "16G", "time_limit": 30, "gpu": None}
    assert wanted.root["account"] == "p200"
    assert wanted.arguments == ("--max-model-len", "4096", "--gpu-memory-utilization", "0.5")


@pytest.mark.parametrize(
    ("config", "param", "code"),
    [
        ([], "config", "invalid_type"),
        ({"environment": 3}, "config.environment", "invalid_type"),
        ({"environment": {"VLLM_MAX_MODEL_LEN": "long"}}, "config.environment.VLLM_MAX_MODEL_LEN", "invalid_type"),
        ({"environment": {"VLLM_MAX_MODEL_LEN": 1.5}}, "config.environment.VLLM_MAX_MODEL_LEN", "invalid_type"),
        ({"environment": {"VLLM_MODEL": None}}, "config.environment.VLLM_MODEL", "invalid_type"),
        ({"environment": {"VLLM_MODEL": "--port"}}, "config.environment.VLLM_MODEL", "invalid_value"),
        ({"environment": {"VLLM_MODEL": "a\0"}}, "config.environment.VLLM_MODEL", "invalid_type"),
        ({"environment": {"LD_PRELOAD": "x"}}, "config.environment.LD_PRELOAD", "unknown_parameter"),
        ({"environment": {"VLLM_LOGGING_LEVEL": "loud"}}, "config.environment.VLLM_LOGGING_LEVEL", "invalid_value"),
        ({"resources": {"gpu": "all"}}, "config.resources.gpu", "invalid_type"),
        ({"resources": {"gpu": True}}, "config.resources.gpu", "invalid_type"),
        ({"resources": {"time_limit": 0}}, "config.resources.time_limit", "invalid_value"),
        ({"resources": {"memory": "lots"}}, "config.resources.memory", "invalid_value"),
        ({"resources": {"nodes": 10**30}}, "config.resources.nodes", "invalid_value"),
        ({"gpu": 1}, "config.gpu", "unknown_parameter"),
        ({"replicas": 2}, "config.replicas", "unknown_parameter"),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_what_is_wrong(config: Any, param: str, code: str) -> None:
    with pytest.raises(RecipeError) as refused:
        VLLM.resolve(config)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert param in str(refused.value) or code == "invalid_value"


@pytest.mark.parametrize(
    "text",
    [
        "name: [",
        "name: a\ncategory: c\ndescription: d\nversion: 1\nparameters: {X: {type: float}}",
        "name: a\ncategory: c\ndescription: d\nversion: 1\n"
        "parameters: {X: {description: d, type: integer, location: root, default: many}}",
        "name: b\ncategory: c\ndescription: d\nversion: 1\nparameters: {}",
    ],
)
def test_a_recipe_file_that_makes_no_sense_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.yaml").write_text(text)
    with pytest.raises(BadRecipe, match=r"a\.yaml"):
        recipes.load(tmp_path)
