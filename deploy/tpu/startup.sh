#!/usr/bin/env bash
# Runs on every host of the slice when it boots: installs the package, starts the run as a service.
set -euo pipefail

attribute() {
  curl -sf -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

share=$(attribute share)
workdir=/mnt/runs/$(attribute run)
source=$(attribute source)
venv=/opt/zoo

# The hosts of a slice share a folder: an NFS server (Filestore). A bucket has no renames to build on.
command -v mount.nfs >/dev/null || apt-get install -qq nfs-common
mkdir -p /mnt/runs
mountpoint -q /mnt/runs || mount -t nfs -o hard "$share" /mnt/runs

test -x "$venv/bin/python" || python3 -m venv "$venv"
"$venv/bin/pip" install -q "kexue-zoo[data,train,plot,tpu] @ $source"

# systemd sends SIGTERM when the host is taken away, waits, and starts a run again that failed
# because another host was; not one that was told to stop (143) or was mistaken (2).
systemd-run --unit=zoo --collect \
  --property=TimeoutStopSec=25 \
  --property=Restart=on-failure --property=RestartSec=10 \
  --property=SuccessExitStatus=143 --property=RestartPreventExitStatus=2 \
  --setenv=PYTHONUNBUFFERED=1 \
  "$venv/bin/python" -m zoo.experiments.on_lstm_language_model \
  --training.batch-size 64 --training.evaluation-batch-size 64 \
  --workdir "$workdir" \
  --distributed.coordinator-address auto \
  --loop.log-every 20 \
  --loop.checkpoint-every 500
