"""Shared storage as a group of nodes sees it, and the facts of a cloud."""

import pytest

from planner.cloud_config import StorageConfig
from planner.clouds import cloud_facts

AWS = cloud_facts("aws")


def lustre(gib: int, per_tib: int) -> StorageConfig:
    return StorageConfig.model_validate(
        {"shared": "lustre", "lustre_capacity_gib": gib, "lustre_throughput_mb_s_per_tib": per_tib}
    )


def test_nfs_is_limited_per_client_and_grows_with_the_group() -> None:
    one = AWS.shared_read_rate(StorageConfig(), nodes=1, network_gbps=3200)
    two = AWS.shared_read_rate(StorageConfig(), nodes=2, network_gbps=3200)
    assert one.gb_s == pytest.approx(1.572864)  # 1500 MiB/s
    assert two.gb_s == pytest.approx(2 * one.gb_s)
    assert "EFS" in two.source


def test_nfs_ends_at_what_the_file_system_gives_to_all() -> None:
    many = AWS.shared_read_rate(StorageConfig(), nodes=100, network_gbps=3200)
    assert many.gb_s == pytest.approx(10 * 2**30 / 1e9)


def test_a_small_nodes_network_is_the_limit() -> None:
    assert AWS.shared_read_rate(StorageConfig(), nodes=1, network_gbps=10).gb_s == pytest.approx(1.25)
    assert AWS.shared_read_rate(StorageConfig(), nodes=1, network_gbps=None).gb_s == pytest.approx(1.572864)


def test_one_node_reads_5_gbit_s_from_each_lustre_server() -> None:
    """4800 GiB are two servers: 1.25 GB/s for a node, though the file system gives 2.4 GB/s."""
    assert AWS.shared_read_rate(lustre(4800, 500), nodes=1, network_gbps=3200).gb_s == pytest.approx(1.25)
    assert AWS.shared_read_rate(lustre(4800, 500), nodes=2, network_gbps=3200).gb_s == pytest.approx(2.4)
    assert AWS.shared_read_rate(lustre(1200, 1000), nodes=1, network_gbps=3200).gb_s == pytest.approx(0.625)


def test_lustre_grows_with_capacity_up_to_the_nodes_100_gbit_s() -> None:
    assert AWS.shared_read_rate(lustre(24_000, 1000), nodes=1, network_gbps=3200).gb_s == pytest.approx(6.25)
    assert AWS.shared_read_rate(lustre(240_000, 1000), nodes=1, network_gbps=3200).gb_s == pytest.approx(12.5)
    assert AWS.shared_read_rate(lustre(24_000, 125), nodes=2, network_gbps=3200).gb_s == pytest.approx(3.0)


def test_aws_names_its_notice_its_rdma_and_its_reservations() -> None:
    efa = AWS.fabrics["efa"]
    assert AWS.spot_notice("1.35").seconds == 120
    assert efa.resource == "vpc.amazonaws.com/efa"
    # Without a name NCCL would fall back to TCP in silence where the plugin is missing.
    assert "NET" in efa.environment["NCCL_DEBUG_SUBSYS"]
    assert efa.hugepages_pod_mib <= efa.hugepages_mib == 10_256
    assert AWS.reservation_id.pattern.fullmatch(AWS.reservation_id.example)
    assert not AWS.reservation_id.pattern.fullmatch("cr-0123")


def test_an_unmanaged_cluster_has_no_facts() -> None:
    with pytest.raises(KeyError):
        cloud_facts("existing")
