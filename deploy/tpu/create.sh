#!/usr/bin/env bash
# Asks for a spot TPU slice that starts the run by itself; the same command again resumes it.
#
#   NAME=lm PROJECT=… ZONE=us-west4-a SHARE=10.0.0.2:/runs SOURCE=git+https://…@v1 ./create.sh
set -euo pipefail
: "${NAME:?name of the run}" "${PROJECT:?}" "${ZONE:?}"
: "${SHARE:?host:/path of an NFS share that the network of the slice reaches}"
: "${SOURCE:?what pip installs}"
accelerator=${ACCELERATOR:-v5litepod-16}
version=${VERSION:-v2-alpha-tpuv5-lite}
here=$(dirname "$0")

place=(--project "$PROJECT" --zone "$ZONE")
# A slice that was pre-empted stays as SUSPENDED until it is deleted.
if state=$(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" \
  --format='value(state.state)' 2>/dev/null); then
  case $state in
    SUSPENDED | FAILED) gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet ;;
    *) echo "$NAME is $state" && exit 0 ;;
  esac
fi
gcloud compute tpus queued-resources create "$NAME" "${place[@]}" \
  --node-id "$NAME" --accelerator-type "$accelerator" --runtime-version "$version" --spot \
  --metadata "share=$SHARE,run=$NAME,source=$SOURCE" \
  --metadata-from-file "startup-script=$here/startup.sh"
