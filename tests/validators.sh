#!/bin/sh
# The independent programs that slow tests ask: Debian packages, installed where they are missing and we may.
set -eu

missing=""
while read -r package program; do
    [ -e "$program" ] || command -v "$program" >/dev/null 2>&1 || missing="$missing $package"
done <<LIST
dicom3tools dciodvfy
plastimatch plastimatch
dcmtk dsrdump
orthanc Orthanc
orthanc-dicomweb /usr/share/orthanc/plugins/libOrthancDicomWeb.so
iproute2 ip
chromium chromium
slurm-wlm /usr/sbin/slurmctld
munge /usr/sbin/munged
LIST

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed, so tests that ask them are skipped:$missing" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# no service of theirs may start: tests start a server themselves, where nothing but loopback is
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
if ! { apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing; } >/dev/null 2>&1; then
    echo "could not be installed, so tests that ask them are skipped:$missing" >&2
fi
