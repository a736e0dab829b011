# The service of an export, without JAX:
#   docker build -t htd-jax .
#   docker run --rm -p 127.0.0.1:8000:8000 -v ./models:/models:ro htd-jax --model /models/student
# Mount the folder above the export: an export that replaces another is a new folder, which a mount of the old one
# would not show.
FROM python:3.13-slim AS build
COPY pyproject.toml README.md LICENSE /src/
COPY htd_jax /src/htd_jax
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir "/src[serve]"

FROM python:3.13-slim
COPY --from=build /venv /venv
USER 10001
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["htd-jax", "serve", "--host", "0.0.0.0"]
CMD ["--model", "/models/student"]
