#!/usr/bin/env bash
# The password between apply-mysql and its database in docker-compose.yml: made once, random, readable by the owner and the containers.
set -euo pipefail
cd "$(dirname "$0")/../deploy"
[ -s secrets/downstream-password ] && exit
mkdir -p secrets
head -c 24 /dev/urandom | base64 | tr -d '/+=\n' >secrets/downstream-password
chmod 0644 secrets/downstream-password
echo "made deploy/secrets/downstream-password"
