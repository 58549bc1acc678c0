"""ConfigMaps: named by content, small enough, and mounted so that pods see the very files."""

from pathlib import Path

import pytest

from components.serving.config_maps import LIMIT_BYTES, Files, repository_files, runtime_files, spec_file
from components.serving.groups import engine_folder
from model_repo.render import render
from planner.errors import PlanError
from planner.plan import ModelPlan
from tests.components.serving.stacks import (
    EXAMPLES,
    Values,
    build_of,
    container,
    every_template,
    fetch_of,
    planned,
    served,
    templates,
)
from tests.components.world import Recorded

ROOT = Path(__file__).parents[3]


def package(tmp_path: Path, **content: str) -> Path:
    for name, text in content.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_the_name_changes_with_content_and_with_names_and_with_nothing_else(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    one = runtime_files(package(folders[0], first="x = 1", second="y = 2")).name
    same = runtime_files(package(folders[1], second="y = 2", first="x = 1")).name
    edited = runtime_files(package(folders[2], first="x = 1", second="y = 3")).name
    renamed = runtime_files(package(folders[3], first="x = 1", third="y = 2")).name

    assert one == same
    assert len({one, edited, renamed}) == 3
    assert one.startswith("runtime-")
    assert len(one) == len("runtime-") + 10


def test_content_may_not_move_from_one_file_to_another_under_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    one = runtime_files(package(tmp_path / "a", x="12", y="3"))
    other = runtime_files(package(tmp_path / "b", x="1", y="23"))

    assert one.name != other.name


def test_more_than_a_config_map_holds_is_refused_with_the_file_to_blame(tmp_path: Path) -> None:
    just_fits = package(tmp_path, big="#" * (LIMIT_BYTES - 1), small="#")
    assert sum(map(len, runtime_files(just_fits).data.values())) == LIMIT_BYTES

    with pytest.raises(PlanError) as refused:
        runtime_files(package(tmp_path, small="##"))

    (problem,) = refused.value.problems
    assert problem.key == "ConfigMap runtime"
    assert "1,048,577 bytes" in problem.what
    assert "big.py" in problem.what


def test_every_example_fits() -> None:
    for stack in EXAMPLES:
        for model in planned(stack).models:
            assert repository_files(model, engine_folder(model)).data


def test_all_are_immutable_and_outlive_the_plan_that_made_them() -> None:
    recorded = served()
    maps = recorded.of("ConfigMap")

    assert {map_.inputs["metadata"]["name"].rsplit("-", 1)[0] for map_ in maps} == {
        "runtime",
        "frontend",
        "requirements",
        "llama-405b-repository",
        "engine",
    }
    for map_ in maps:
        assert map_.inputs["immutable"] is True
        assert map_.retain_on_delete, "a group that restarts during an update mounts the files of its own revision"
        assert map_.provider
        provider = recorded.resources[map_.provider]
        assert provider.inputs["upsertExistingObjects"] == "true", "going back to an earlier version finds its files"
        assert provider.secrets == {"kubeconfig"}
    others = {r.provider for r in recorded if r.type.startswith("kubernetes:")} - {map_.provider for map_ in maps}
    assert all("upsertExistingObjects" not in recorded.resources[urn].inputs for urn in others if urn)


def in_container(recorded: Recorded, template: Values, name: str) -> dict[str, str]:
    """The ConfigMaps' files by their path, as the kubelet would lay them out for a container."""
    volumes = {volume["name"]: volume["configMap"] for volume in template["spec"]["volumes"] if "configMap" in volume}
    data = {map_.inputs["metadata"]["name"]: map_.inputs["data"] for map_ in recorded.of("ConfigMap")}
    found: dict[str, str] = {}
    for mount in container(template, name)["volumeMounts"]:
        source = volumes.get(mount["name"])
        if source is None:
            continue
        whole = mount.get("subPath")
        for item in source["items"]:
            content, path = data[source["name"]][item["key"]], item["path"]
            if whole is None:
                found[f"{mount['mountPath']}/{path}"] = content
            elif path == whole:
                found[mount["mountPath"]] = content
            elif path.startswith(f"{whole}/"):
                found[mount["mountPath"] + path.removeprefix(whole)] = content
    return found


def first_model(plan_models: tuple[ModelPlan, ...]) -> ModelPlan:
    return plan_models[0]


@pytest.mark.parametrize("stack", EXAMPLES)
def test_serving_pods_see_the_runtime_and_the_whole_repository(stack: str) -> None:
    plan = planned(stack)
    recorded = served(plan)
    runtime = {f"/opt/tritonfleet/runtime/{p.name}": p.read_text() for p in (ROOT / "runtime").glob("*.py")}
    for model in plan.models:
        rendered = render(model, f"/shared/store/engines/{model.engine.id}")
        expected = {f"/opt/tritonfleet/models/{path}": content.decode() for path, content in rendered.items()}
        for template in templates(recorded, model.name).values():
            assert in_container(recorded, template, "triton") == runtime | expected


def test_fetches_see_the_runtime_and_builds_the_engine_spec_too() -> None:
    recorded = served()
    runtime = {f"/opt/tritonfleet/runtime/{p.name}": p.read_text() for p in (ROOT / "runtime").glob("*.py")}
    fetching, building = (job.inputs["spec"]["template"] for job in (fetch_of(recorded), build_of(recorded)))
    assert in_container(recorded, fetching, "fetch") == runtime
    files = in_container(recorded, building, "build")
    assert files.keys() == {*runtime, "/opt/tritonfleet/engine.json"}
    model = first_model(planned().models)
    spec = files["/opt/tritonfleet/engine.json"]
    assert spec == spec_file(model).data["engine.json"]
    assert f'"engine": "{model.engine.id}"' in spec


def test_no_folder_beside_the_models_is_visible_to_triton() -> None:
    """A ConfigMap mounted whole shows `..data`, which Triton takes for a model, and ends."""
    for stack in EXAMPLES:
        for template in every_template(served(planned(stack))):
            for mount in template["spec"]["containers"][0]["volumeMounts"]:
                assert mount["name"] != "models" or mount["mountPath"].endswith(f"/{mount['subPath']}")


def test_folders_are_those_at_the_top() -> None:
    files = Files(name="n", data={}, paths={"a": "b/1/x", "c": "b/y", "d": "a/z", "e": "file"})

    assert files.folders == ("a", "b")
