# For a GPU: docker build -t fused_rnn . && docker run --rm --gpus all fused_rnn
# ARCHS: the GPUs to build for. No machine of this project has built or run this file.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04
ARG ARCHS="80 90a"
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-venv && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
RUN pip install torch==2.13.0 "setuptools>=77" ninja numpy
COPY . /source
RUN FUSED_RNN_CUDA=1 FUSED_RNN_CUDA_ARCHS="$ARCHS" pip install --no-build-isolation /source
CMD ["python", "-m", "fused_rnn", "info"]
