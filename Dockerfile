# syntax=docker/dockerfile:1
FROM python:3.13-slim AS build
WORKDIR /build
# The image needs no pip. The pinned dependencies change rarely, so they have a layer of their own.
COPY requirements.txt requirements-dev.txt ./
RUN python -m venv --without-pip /app \
 && grep --invert-match --line-regexp --regexp '\.' --regexp '\./clients/python' requirements.txt > pins.txt \
 && pip --python /app/bin/python install --no-cache-dir --requirement pins.txt \
 && pip install --no-cache-dir --constraint requirements-dev.txt hatchling
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY clients/python clients/python
COPY service service
RUN python -m hatchling build --target wheel --directory dist \
 && (cd clients/python && python -m hatchling build --target wheel --directory ../../dist) \
 && pip --python /app/bin/python install --no-cache-dir --no-deps dist/*.whl

FROM python:3.13-slim
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH
# A numeric id, so that Kubernetes can verify that the user is not root (runAsNonRoot).
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-m", "service.server.probe"]
CMD ["session-relay", "serve"]
