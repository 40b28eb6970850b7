# One image for every process of Holdbook. To pin what it is built on, write the digest behind the tag: python:3.11-slim-bookworm@sha256:...
FROM python:3.11-slim-bookworm AS build

WORKDIR /src
COPY requirements.lock pyproject.toml ./
COPY docs/deploy/runtime_requirements.py ./
# The lock holds every extra; the image gets what serves, and nothing without its hash. What builds stays in this stage.
RUN python runtime_requirements.py requirements.lock pyproject.toml > runtime.lock \
 && python runtime_requirements.py requirements.lock pyproject.toml setuptools > build.lock \
 && python -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes --no-deps -r build.lock \
 && python -m venv --without-pip /opt/holdbook \
 && /opt/build/bin/pip --python /opt/holdbook/bin/python install --no-cache-dir --only-binary :all: --require-hashes --no-deps -r runtime.lock
COPY adapters ./adapters
COPY api ./api
COPY bench ./bench
COPY clients ./clients
COPY domain ./domain
COPY eventstore ./eventstore
COPY projections ./projections
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/holdbook/bin/python install --no-cache-dir --no-deps --no-index /wheels/holdbook-*.whl

FROM python:3.11-slim-bookworm

# A number, so that an engine that checks can see that it is not root. New volumes take the owner of the directory they cover.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin holdbook \
 && install -d -o 10001 -g 10001 -m 0700 /backup
COPY --from=build /opt/holdbook /opt/holdbook
ENV PATH=/opt/holdbook/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOLDBOOK_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Of `holdbook serve`; compose.yaml says how the other processes are asked.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/livez', timeout=4)"]
ENTRYPOINT ["holdbook"]
CMD ["serve"]
