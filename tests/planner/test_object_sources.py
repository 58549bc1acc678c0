"""Weights in buckets that a stack did not make: which sources are taken, on which cloud, and what is said of others."""

from pathlib import Path
from typing import Any

import pytest
from sample_models import LOCAL
from sample_models import planned as laptop
from sample_sites import CLOUDS, Change, Values, model, plan, problems, refused, section

from planner.clouds import cloud_facts
from planner.object_sources import STORES, cloud_source, object_source, storage_account
from planner.plan import plan_values
from planner.sources import KNOWN_MODELS

CONFIG = str(KNOWN_MODELS / "smollm2-135m.json")
OWN = {"aws": "s3://models/llama", "gcp": "gs://models/llama", "azure": "az://models@account1/llama"}
ACCOUNT = (
    "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/data"
    "/providers/Microsoft.Storage/storageAccounts/account1"
)


def source(text: str, revision: str = "v1", **more: Any) -> Change:
    return model(source=text, revision=revision, config=CONFIG, **more)


def known(stack: Values) -> None:
    """Where the cloud's store has accounts, says where they are."""
    if stack["cloud"] == "azure":
        section("azure", storage_accounts=[ACCOUNT])(stack)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_cloud_reads_its_own_store(cloud: str) -> None:
    assert cloud_facts(cloud).object_store == OWN[cloud].partition("://")[0]
    (planned,) = plan(cloud, source(OWN[cloud]), known).models

    found = cloud_source(planned.config)
    assert found is not None
    assert (found.bucket, found.prefix) == ("models", "llama")
    assert planned.engine.key["model"]["source"] == OWN[cloud]
    assert any("revision v1 is a name" in warning for warning in planned.warnings)


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("kind", OWN)
def test_another_clouds_store_is_read_by_nobody_but_as_everybody(cloud: str, kind: str) -> None:
    anonymous = plan(cloud, source(OWN[kind], source_access="anonymous")).models[0]
    assert cloud_source(anonymous.config) is None
    if kind == cloud:
        return

    found = refused(cloud, source(OWN[kind]), known)["models[0].source"]
    assert f"is in {STORES[OWN[kind][:2]].title}, where pods of {cloud_facts(cloud).title} are nobody" in found.what
    assert STORES[cloud_facts(cloud).object_store].shape in found.fix
    assert "source_access: anonymous" in found.fix


@pytest.mark.parametrize("kind", OWN)
def test_an_existing_cluster_reads_what_everybody_may(kind: str) -> None:
    found = refused("existing", source(OWN[kind]))["models[0].source"]
    assert "where pods of an existing cluster are nobody" in found.what
    assert "bucket://" not in found.fix
    assert plan("existing", source(OWN[kind], source_access="anonymous")).models[0].serving


@pytest.mark.parametrize("kind", OWN)
def test_a_laptop_takes_them_all_with_its_users_credentials(kind: str) -> None:
    assert laptop(LOCAL, source=OWN[kind], revision="v1", config=CONFIG).engine.key["model"] == {
        "source": OWN[kind],
        "revision": "v1",
        "architecture": "LlamaForCausalLM",
        "family": "llama",
    }


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket",
        "s3://b.u-cket/a/b_c.d/e=1/",
        "gs://under_score.example.com/llama-3.1",
        "az://a-container@account1/x",
        "az://a-container@account1",
    ],
)
def test_sources_that_are_taken(text: str) -> None:
    assert laptop(LOCAL, source=text, revision="v1", config=CONFIG).config.source == text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("s3://", "is not s3://BUCKET/PREFIX"),
        ("s3:///llama", "is not s3://BUCKET/PREFIX"),
        ("s3://Bucket/llama", "is not s3://BUCKET/PREFIX"),
        ("s3://bucket@account/llama", "is not s3://BUCKET/PREFIX"),
        ("s3://bucket\n/llama", "is not s3://BUCKET/PREFIX"),
        ("gs://ab/llama", "is not gs://BUCKET/PREFIX"),
        ("az://models/llama", "is not az://CONTAINER@ACCOUNT/PREFIX. It names no storage account"),
        ("az://models@/llama", "is not az://CONTAINER@ACCOUNT/PREFIX"),
        ("az://models@Account/llama", "is not az://CONTAINER@ACCOUNT/PREFIX"),
        ("s3://bucket//llama", "is not a prefix"),
        ("s3://bucket/a//b", "is not a prefix"),
        ("s3://bucket/a/../b", "is not a prefix"),
        ("s3://bucket/a*", "is not a prefix"),
        ("gs://bucket/a\"' || true", "is not a prefix"),
        ("az://models@account1/${aws:username}", "is not a prefix"),
    ],
)
def test_malformed_sources_are_named(text: str, what: str) -> None:
    scheme = text.partition("://")[0]
    cloud = next(cloud for cloud, own in OWN.items() if own.startswith(f"{scheme}://"))
    found = refused(cloud, source(text))
    assert found.keys() == {"models[0].source"}
    assert what in found["models[0].source"].what
    assert f"write {STORES[scheme].shape}" in found["models[0].source"].fix


@pytest.mark.parametrize(
    ("revision", "what", "fix"),
    [
        (None, "is missing", "sha256: and the sha256 of SHA256SUMS"),
        ("latest", "latest moves", "sha256:… or etags:…"),
        ("sha256:" + "a" * 63, "is not sha256: and 64 hexadecimal digits", "sha256sum SHA256SUMS"),
        ("sha256:" + "A" * 64, "is not sha256: and 64 hexadecimal digits", "sha256sum SHA256SUMS"),
        ("etags:" + "a" * 64, "is not etags: and 32 hexadecimal digits", "that a fetch prints"),
    ],
)
def test_a_revision_says_what_lies_there(revision: str | None, what: str, fix: str) -> None:
    found = refused("aws", model(source=OWN["aws"], config=CONFIG, revision=revision))
    assert found.keys() == {"models[0].revision"}
    assert what in found["models[0].revision"].what
    assert fix in found["models[0].revision"].fix


@pytest.mark.parametrize("revision", ["sha256:" + "0a" * 32, "etags:" + "0a" * 16])
def test_a_revision_that_pins_every_object_is_not_warned_of(revision: str) -> None:
    (planned,) = plan("aws", source(OWN["aws"], revision)).models
    assert not any("is a name" in warning for warning in planned.warnings)


def test_the_models_dimensions_must_be_given() -> None:
    text = "s3://models/meta-llama/Llama-3.1-8B-Instruct"
    found = refused("aws", model(source=text, revision="v1"))["models[0].source"]
    assert "there is no config" in found.what
    assert found.fix.startswith("give `config:`"), "a copy is no slip of the original's name"


def test_everything_wrong_is_said_at_once() -> None:
    def worse(stack: Values) -> None:
        stack["models"][0] |= {"source": "s3://B/x", "revision": "sha256:1", "tensor_parallel": 0}

    assert {"models[0].source", "models[0].revision", "models[0].tensor_parallel"} <= refused("aws", worse).keys()


@pytest.mark.parametrize("text", ["hf://a/b", "bucket://llama", "pypi://a/b.gguf", "folder"])
def test_everybody_reads_object_stores_only(text: str) -> None:
    found = refused("aws", source(text, source_access="anonymous"))
    assert "would have no effect" in found["models[0].source_access"].consequence


def test_a_storage_account_must_be_known() -> None:
    missing = refused("azure", source(OWN["azure"]))["models[0].source"]
    assert "nothing says where the storage account account1 is" in missing.what
    assert "az storage account show --name account1 --query id" in missing.fix
    other = ACCOUNT.replace("account1", "account2")
    assert refused("azure", source(OWN["azure"]), section("azure", storage_accounts=[other]))
    both = section("azure", storage_accounts=[other, ACCOUNT])
    assert problems("azure", source(OWN["azure"]), both) == []
    assert storage_account([other, ACCOUNT], "account1") == ACCOUNT


@pytest.mark.parametrize("text", ["account1", ACCOUNT + "/blobServices", ACCOUNT.replace("Storage", "Compute", 1), ""])
def test_what_is_no_storage_account_is_named_by_its_place(text: str) -> None:
    found = refused("azure", section("azure", storage_accounts=[ACCOUNT, text]))
    assert "is no storage account's id" in found["azure.storage_accounts[1]"].what


def test_two_spellings_of_one_place_are_one_place() -> None:
    one, other = object_source("s3://bucket/a/b"), object_source("s3://bucket/a/b/")
    assert one == other
    assert object_source("bucket://a") is None
    assert object_source("s3") is None


def test_the_same_file_is_the_same_plan() -> None:
    values = {"cloud": "existing", "models": [LOCAL | {"source": OWN["azure"], "revision": "v1", "config": CONFIG}]}
    assert plan_values(values, base_dir=Path()) == plan_values(values, base_dir=Path())
