# `make demo` and `make test` each do all their own set-up, and reuse on a second run what the first one made.

# The bundled Triton's stub for Python 3.12 crashes when a model answers from a thread, and numpy 1.26, which it needs, has
# no wheels for 3.13 (docs/adr/001).
PYTHON ?= $(firstword $(foreach p,python3.11 python3,$(shell $(p) -c 'import sys; print(sys.executable)' 2>/dev/null)))
IS_SUPPORTED := 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'
RUN := .venv/bin/python
PIP := .venv/bin/pip --disable-pip-version-check install --require-hashes

# Tests that need a Kubernetes API server look here, or where setup-envtest has put one.
KUBERNETES := 1.36.3
KUBEBUILDER_ASSETS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tritonfleet/envtest-$(KUBERNETES)
export KUBEBUILDER_ASSETS
KUBERNETES_BINARIES := $(addprefix $(KUBEBUILDER_ASSETS)/,kubectl kube-apiserver kube-scheduler)
GO_BUILD = CGO_ENABLED=0 go build -mod=readonly -trimpath -o $@ -ldflags

# Tests of fetching look here for servers that speak Cloud Storage and Azure Blob.
OBJECT_STORES ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tritonfleet/object-stores
export OBJECT_STORES

.PHONY: demo serve test check format setup control-plane object-stores aiperf aiconfigurator clean

demo: .venv/local.stamp ## serve a real model over three ranks, ask it a question, show what ran where
	$(RUN) -m fleet demo

serve: .venv/local.stamp ## keep the local stack serving, until Ctrl-C
	$(RUN) -m fleet serve

test: .venv/test.stamp ## every test; those that need what this machine lacks say so and skip
	$(RUN) -m pytest

check: .venv/test.stamp ## lint, format and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

format: .venv/test.stamp
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

setup: .venv/test.stamp ## everything the other targets need

control-plane: $(KUBEBUILDER_ASSETS)/etcd $(KUBERNETES_BINARIES) ## build etcd and Kubernetes for the tests that ask them (Go)

$(KUBEBUILDER_ASSETS)/etcd:
	mkdir -p $(@D)
	cd tests/cluster/tools/etcd && $(GO_BUILD) "-s -w" go.etcd.io/etcd/server/v3

$(KUBERNETES_BINARIES): $(KUBEBUILDER_ASSETS)/%:
	mkdir -p $(@D)
	cd tests/cluster/tools/kubernetes && $(GO_BUILD) "-s -w -X k8s.io/component-base/version.gitVersion=v$(KUBERNETES) \
	  -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36" k8s.io/kubernetes/cmd/$*

object-stores: $(OBJECT_STORES)/fake-gcs-server $(OBJECT_STORES)/node_modules ## servers that fetching is tested against (Go, npm)

$(OBJECT_STORES)/fake-gcs-server:
	mkdir -p $(@D)
	cd tests/runtime/tools/fake-gcs-server && $(GO_BUILD) "-s -w" github.com/fsouza/fake-gcs-server

$(OBJECT_STORES)/node_modules:
	mkdir -p $(@D)
	cp tests/runtime/tools/azurite/package*.json $(@D)
	cd $(@D) && npm ci --ignore-scripts --no-audit --no-fund

aiperf: .venv/aiperf/bin/aiperf ## NVIDIA's load generator, for its test and for `fleet bench` (1.2 GB)

.venv/aiperf/bin/aiperf: requirements/aiperf.txt | .venv/bin/pip
	$(PYTHON) -m venv --clear .venv/aiperf
	.venv/aiperf/bin/pip --disable-pip-version-check install --require-hashes -r requirements/aiperf.txt

aiconfigurator: .venv/aiconfigurator/bin/aiconfigurator ## NVIDIA's measured kernels, for the estimates of `fleet plan` (0.7 GB)

.venv/aiconfigurator/bin/aiconfigurator: requirements/aiconfigurator.txt | .venv/bin/pip
	$(PYTHON) -m venv --clear .venv/aiconfigurator
	.venv/aiconfigurator/bin/pip --disable-pip-version-check install --require-hashes -r requirements/aiconfigurator.txt

clean: ## remove the environment, engines and logs
	rm -rf .venv .fleet

.venv/bin/pip:
	@"$(or $(PYTHON),python3)" -c $(IS_SUPPORTED) 2>/dev/null || { \
	  echo "error: the local fleet needs Python 3.11, and $(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1)"; \
	  echo "  consequence: the Triton bundled for laptops would crash, or not install; nothing was made"; \
	  echo "  fix: install Python 3.11 beside it, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; } >&2
	$(PYTHON) -m venv .venv

.venv/local.stamp: requirements/local.txt requirements/wheels.txt | .venv/bin/pip
	$(PIP) -r requirements/local.txt
	$(PIP) --no-deps -r requirements/wheels.txt
	@touch $@

.venv/test.stamp: requirements/test.txt requirements/checkov.txt requirements/moto.txt .venv/local.stamp
	$(PIP) -r requirements/test.txt
	$(PYTHON) -m venv .venv/checkov
	.venv/checkov/bin/pip --disable-pip-version-check install --require-hashes -r requirements/checkov.txt
	$(PYTHON) -m venv .venv/moto
	.venv/moto/bin/pip --disable-pip-version-check install --require-hashes -r requirements/moto.txt
	@touch $@
