# Lockstitch with the sandbox of code rewards:
#
#   docker build -t lockstitch .
#   docker run --rm --user "$(id -u)" -v "$PWD:/work" lockstitch \
#       stitch --task countdown --generate 40 --num_trajectories 8 --output runs/quickstart
#
# torch comes as pip's index has it, with CUDA as a rule: on a GPU run with `--gpus all`. An index of smaller CPU wheels is
# `--build-arg PIP_EXTRA_INDEX_URL=...`. Programs of models are run by bubblewrap, which needs user namespaces: docs/sandbox.md
# says what a container must allow.
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL=
RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*

COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt /src

# Any user may run it (`--user "$(id -u)"`, so that what it writes to a mounted folder is yours); 1000 has no account here.
ENV HOME=/tmp USER=lockstitch
RUN mkdir /work && chmod 1777 /work
USER 1000
WORKDIR /work
ENTRYPOINT ["lockstitch"]
CMD ["--help"]
