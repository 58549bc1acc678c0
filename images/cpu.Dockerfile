# Builds engines and serves them on CPUs, for clusters without GPUs (docs/existing.md):
#   docker build --file images/cpu.Dockerfile --tag localhost:5001/tritonfleet-cpu:1 requirements
# The program itself is not in here: pods mount runtime/ and the model repository, as they do in NVIDIA's image.

# Python 3.11 with its shared library, and glibc 2.35 or newer (docs/adr/001); of the system it takes libstdc++ and zlib.
FROM docker.io/library/python:3.11-slim-bookworm

# To bytecode here, once: pods have a read-only file system, and would compile at every start.
RUN --mount=type=bind,target=/requirements \
    pip install --no-cache-dir --root-user-action=ignore --only-binary :all: --require-hashes \
        -r /requirements/local.txt \
    && pip install --no-cache-dir --root-user-action=ignore --only-binary :all: --require-hashes --no-deps \
        -r /requirements/wheels.txt \
    # Nobody installs anything into a running pod.
    && pip uninstall --yes --root-user-action=ignore pip setuptools wheel

USER 10001:10001
