#!/usr/bin/env bash
# Runs beside Ray on a worker node. When AWS announces that it takes this spot instance, Ray is told, and a run that
# trains here writes a checkpoint and goes on elsewhere. An on-demand node is never announced, and this waits for ever.
#
# AWS answers 404 until the notice, which comes two minutes ahead.
metadata=${SPOT_NOTICE_METADATA:-http://169.254.169.254}/latest

while sleep "${SPOT_NOTICE_PAUSE:-5}"; do
    token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token") || continue
    curl -sf -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/spot/instance-action" || continue
    ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'spot instance is taken back' \
        --deadline-remaining-seconds 110 && exit
done
