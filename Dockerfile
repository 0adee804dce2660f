# SPDX-License-Identifier: Apache-2.0
# The sidecar and its probes. A lock with hashes has every installed package. The last stage has neither pip nor a
# compiler, runs as an unprivileged user, and writes no files. See "What is proven" in docs/install.md.
#
# By default the base images are tags. A release uses digests: the workflow resolves each tag once, passes
# PYTHON_IMAGE=name@sha256:... and BUILD_IMAGE likewise, and sets the label org.opencontainers.image.base.digest.
#
# BUILD_IMAGE has a compiler beside the same Python at the same place.
ARG BUILD_IMAGE=docker.io/library/python:3.13-trixie
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-trixie

FROM ${BUILD_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/build.lock requirements/exporter.lock requirements/
RUN python3 -m venv /build/tools \
    && /build/tools/bin/python -m pip install --require-hashes --only-binary=:all: --requirement requirements/build.lock \
    && python3 -m venv --without-pip /opt/exporter \
    && /build/tools/bin/python -m pip --python /opt/exporter/bin/python install \
        --require-hashes --only-binary=:all: --requirement requirements/exporter.lock
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY exporter/ exporter/
COPY config/alerts.yml config/exporter.yaml config/thresholds.json config/
COPY config/prometheus/rules/opentelemetry.rules.yml config/prometheus/rules/
COPY dashboards/database.json dashboards/fleet.json dashboards/overview.json dashboards/pool.json dashboards/
RUN SQLALCHEMY_POOL_EXPORTER_REQUIRE_EXTENSION=1 \
        /build/tools/bin/python -m pip wheel --no-build-isolation --no-deps --no-index --wheel-dir dist . \
    && /build/tools/bin/python -m pip --python /opt/exporter/bin/python install --no-deps --no-index dist/*.whl \
    && /build/tools/bin/python -m pip --python /opt/exporter/bin/python check

FROM ${PYTHON_IMAGE}
ARG VERSION=unreleased
ARG REVISION=unknown
ARG CREATED=unknown
ARG BASE_DIGEST=unknown
LABEL org.opencontainers.image.title="sqlalchemy-pool-exporter" \
    org.opencontainers.image.description="Shows SQLAlchemy connection pools, and what their databases say, to Prometheus" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.vendor="The sqlalchemy-pool-exporter authors" \
    org.opencontainers.image.source="https://github.com/sqlalchemy-pool-exporter/sqlalchemy-pool-exporter" \
    org.opencontainers.image.url="https://github.com/sqlalchemy-pool-exporter/sqlalchemy-pool-exporter" \
    org.opencontainers.image.documentation="https://github.com/sqlalchemy-pool-exporter/sqlalchemy-pool-exporter/tree/main/docs" \
    org.opencontainers.image.base.name="docker.io/library/python:3.13-slim-trixie" \
    org.opencontainers.image.base.digest="${BASE_DIGEST}" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}"
# The exporter does not need the tools that install software.
RUN rm -rf /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/pydoc* \
    /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip
COPY --from=build /opt/exporter /opt/exporter
ENV PATH=/opt/exporter/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /
EXPOSE 10079
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=6s --start-period=10s --retries=3 CMD ["sqlalchemy-pool-exporter", "healthcheck"]
ENTRYPOINT ["sqlalchemy-pool-exporter"]
CMD ["serve"]
