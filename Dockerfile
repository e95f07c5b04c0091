# qinco serve, for collections in the volume /data:
#
#   docker build -t qinco .
#   docker run -p 6333:6333 -e QINCO_API_KEY=... -v qinco:/data qinco
#
# EXTRAS=server leaves torch out: then nothing is trained, and collections need a codec.
FROM python:3.13-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.13-slim
ARG EXTRAS=server,train
COPY --from=build /wheels /wheels
# Torch's CPU build, which is a tenth of the one with CUDA
RUN wheel=$(ls /wheels/qinco-*.whl) \
    && pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "$wheel[$EXTRAS]" \
    && rm -r /wheels && useradd --system --uid 10001 qinco && install --directory --owner qinco /data
USER qinco
WORKDIR /data
VOLUME /data
EXPOSE 6333
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:6333/readyz', timeout=4)"]
ENTRYPOINT ["qinco", "serve"]
CMD ["/data", "host=0.0.0.0"]
