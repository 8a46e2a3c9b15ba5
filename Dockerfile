# SpineSegAI's command line with its models. For research use. Not a medical device.
#
#   docker build -t spinesegai .                               for any computer
#   docker build -t spinesegai --build-arg DEVICE=cuda .       for NVIDIA GPUs; several gigabytes larger
#
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" spinesegai segment lumbar.nii.gz --report
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" --gpus all spinesegai segment lumbar.nii.gz --device gpu
FROM python:3.12-slim

ARG DEVICE=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore MPLCONFIGDIR=/tmp/matplotlib

# First what changes seldom. torchvision is not needed; where it does not fit torch, it would break imports.
WORKDIR /opt/spinesegai
COPY constraints.txt ./
RUN case "$DEVICE" in \
      cpu) pip install -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch ;; \
      cuda) pip install -c constraints.txt torch ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac

COPY pyproject.toml README.md LICENSE.txt ./
COPY SpineSegAILib SpineSegAILib
COPY Resources Resources
RUN pip install -c constraints.txt ".[dicom]" openpyxl && spinesegai checkpoints

WORKDIR /data
ENTRYPOINT ["spinesegai"]
