"""The DaemonSet that lets pods of RDMA nodes lock memory."""
