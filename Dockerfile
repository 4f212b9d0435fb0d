# clara serve, without root: docs/deploy.md. Base weights are fetched once into the volume /data/cache.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# The index of torch's CPU builds (docs/deploy.md); without it the default build comes, with gigabytes of CUDA.
ARG TORCH_INDEX=""
RUN python -m venv /opt/clara \
    && /opt/clara/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && /opt/clara/bin/pip install --no-cache-dir -c constraints.txt '.[serve,llm,formats]'

FROM python:3.12-slim
RUN useradd --uid 10001 --user-group --create-home clara && install -d -o clara -g clara /data
COPY --from=build /opt/clara /opt/clara
ENV PATH=/opt/clara/bin:$PATH CLARA_CACHE=/data/cache CLARA_STORE=/data/store PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["clara"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
