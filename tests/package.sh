#!/bin/sh
# `make package-test`: the gateway's Debian package, installed in a booted container whose networks are its own, with a
# cloud beyond an uplink and a device on a LAN. From installation over enrolment, kill -9, a hung daemon, an outage with a
# reboot and a power cut in it, to upgrade, removal and purge. Needs root, debootstrap, systemd-nspawn; else skips aloud.
#
#   HOLDFAST_PROFILE=dev|release   what is built and packed (dev)
#   HOLDFAST_BUILT=FOLDER          use the programs that are there, build nothing
#   HOLDFAST_KEEP=1                leave the run's folder behind
set -eu
cd "$(dirname "$0")/.."

cache=$PWD/target/package
world=
began=$(date +%s)
say() { printf 'package: %s\n' "$*" >&2; }
die() {
    say "FAILED: $*"
    exit 1
}
skip() {
    say "SKIPPED: $*"
    [ -z "${HOLDFAST_SKIPS:-}" ] || echo "package: $*" >>"$HOLDFAST_SKIPS"
    exit 0
}

[ "$(id -u)" = 0 ] || skip "booting a container needs root"
command -v systemd-nspawn >/dev/null 2>&1 || skip "systemd-nspawn is missing; on Debian: apt-get install systemd-container"
[ -d "$cache/base" ] || command -v debootstrap >/dev/null 2>&1 || skip "debootstrap is missing; on Debian: apt-get install debootstrap"
command -v dpkg-shlibdeps >/dev/null 2>&1 || skip "dpkg-dev is missing; on Debian: apt-get install dpkg-dev"

# shellcheck source=tests/package/container.sh
. tests/package/container.sh

finish() {
    status=$?
    trap - EXIT INT TERM
    if [ "$status" != 0 ] && [ -n "$leader" ]; then
        for unit in holdfast-gateway story-cloud story-device; do
            say "the journal of $unit ends with:"
            guest journalctl --no-pager -o short-precise -n 15 -u "$unit" >&2 || true
        done
    fi
    container_remove
    case ${HOLDFAST_KEEP:-} in '') [ -z "$world" ] || rm -rf "$world" ;; *) say "kept: $world" ;; esac
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

UNIT=holdfast-gateway.service
STATE=/var/lib/holdfast-gateway
CONFIG=/etc/holdfast/gateway.toml
SITE=harbour
# More than the device can play while the story lasts.
ROWS=20000
steps=0

held() { # held WHAT: one step of the story
    steps=$((steps + 1))
    say "  $* - held"
}
now() { date +%s%3N; }
within() { # within SECONDS WHAT COMMAND...: polls; the time it took is in $took (ms)
    limit=$1 what=$2 since=$(now)
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $(($(now) - since)) -lt $((limit * 1000)) ] || die "$what: not within $limit s"
        sleep 0.05
    done
    took=$(($(now) - since))
}
property() { guest systemctl show --value -p "$1" "$UNIT"; }
active() { [ "$(property ActiveState)" = active ]; }
gateway() { guest holdfast-gateway "$@"; }
as_service() { guest runuser -u holdfast-gateway -- holdfast-gateway --config "$CONFIG" "$@"; }
cloud() { guest /opt/story/holdfast-cloud --config /opt/story/cloud.toml --state /var/lib/story/cloud "$@"; }
device() { guest ip netns exec "$1" /opt/story/holdfast-agent --config /opt/story/device.toml --state /var/lib/story/device $2; }
acknowledged() { device yard "status --json" | sed -n 's/.*"acknowledged": *\([0-9]*\).*/\1/p' | head -n 1; }
more_than() { [ "$(acknowledged)" -gt "$1" ]; }
mqtt() { # mqtt pub|sub OPTIONS...: a stock client with the certificate that the gateway issued
    tool=mosquitto_$1
    shift
    guest timeout 10 "$tool" -V 5 -h 192.168.77.1 -p 8883 -i probe --cafile /opt/probe/ca.pem --cert /opt/probe/cert.pem \
        --key /opt/probe/key.pem "$@"
}
taken() { mqtt pub -q 1 -t plant/probe -m here; }
mode() { mqtt sub -C 1 -W 5 -t "hf/v1/$SITE/gateway/health" | sed -n 's/.*"mode":"\([a-z]*\)".*/\1/p'; }
mode_is() { [ "$(mode)" = "$1" ]; }
ledger() { cloud telemetry export --device "$guid"; }
# All that enrolment left but the gateway's own certificate, which is renewed when its addresses change, and the count of
# its exchanges with the cloud.
keys() { guest sh -c "cd $STATE/keys && sha256sum *" | grep -v -e ' server.pem$' -e ' turn\.'; }
install_package() { guest dpkg -i "/opt/story/$1" >"$world/dpkg.log" 2>&1 || die "dpkg -i $1: $(tail -n 5 "$world/dpkg.log")"; }

# --- the packages and the world ---------------------------------------------------------------------
profile=${HOLDFAST_PROFILE:-dev}
if [ -z "${HOLDFAST_BUILT:-}" ]; then
    # As `make bins` does it, so that nothing is built twice.
    cargo build --locked --profile "$profile" --workspace --bins
    built=$(realpath -m "${CARGO_TARGET_DIR:-target}")
    case $profile in dev) HOLDFAST_BUILT=$built/debug ;; *) HOLDFAST_BUILT=$built/$profile ;; esac
fi
export HOLDFAST_BUILT
container_base
world=$(mktemp -d "$cache/run.XXXXXX")
mkdir "$world/story"
for revision in 1 2; do
    path=$(HOLDFAST_XZ_LEVEL=1 HOLDFAST_REVISION=$revision HOLDFAST_OUT=$world packaging/build-deb.sh gateway)
    cp "$path" "$world/story/$revision.deb"
done
cp "$HOLDFAST_BUILT/holdfast-cloud" "$HOLDFAST_BUILT/holdfast-agent" tests/package/guest/* "$world/story/"
awk -v rows=$ROWS 'BEGIN { print "row,temperature"; for (i = 1; i <= rows; i++) print i "," 15 + i % 7 }' >"$world/story/rows.csv"

exposure=$(systemd-analyze --offline=true security --no-pager --threshold=15 packaging/gateway/$UNIT) || die "exposure above 1.5"
held "the unit's exposure is $(printf '%s' "$exposure" | sed -n 's/.*exposure level for .*: \([0-9.]*\).*/\1/p'), at most 1.5 is allowed"
if command -v lintian >/dev/null 2>&1; then
    lintian --allow-root --fail-on error "$world/story/1.deb" >"$world/lintian.log" 2>&1 || die "lintian: $(cat "$world/lintian.log")"
    held "lintian has no error ($(grep -c '^W:' "$world/lintian.log" || true) warnings)"
else
    say "  lintian is not installed: not asked"
fi

container_layer
for unit in "$world"/story/*.service; do cp "$unit" "$world/root/etc/systemd/system/"; done
container_try
guest /opt/story/holdfast-cloud --version >/dev/null 2>&1 || skip "binaries built here do not run on Debian $SUITE"
guest systemctl --quiet enable --now story-net story-device
guest systemctl start story-cloud

# --- installed, not yet enrolled ---------------------------------------------------------------------
install_package 1.deb
grep -q "belongs to no site yet" "$world/dpkg.log" || die "the installation does not say what to do next"
[ "$(property UnitFileState)" = enabled ] || die "the unit is not enabled"
guest systemctl start $UNIT || die "a start before the enrolment fails"
[ "$(property ActiveState) $(property ConditionResult) $(property NRestarts)" = "inactive no 0" ] || die "before the enrolment: $(guest systemctl status $UNIT || true)"
noise=$(guest journalctl --no-pager -q -o cat -u $UNIT | grep -c . || true)
[ "$noise" -le 4 ] || die "$noise journal lines before the enrolment"
held "installed: enabled, skipped while not enrolled, $noise journal lines"
status=0
as_service run >"$world/run.log" 2>&1 || status=$?
[ "$status" = 64 ] && grep -q "not enrolled" "$world/run.log" || die "run before the enrolment: exit $status: $(cat "$world/run.log")"
held "run before the enrolment ends with 64 and: $(cut -c1-60 "$world/run.log" | head -n 1)..."

# --- enrolled ------------------------------------------------------------------------------------------
within 30 "the cloud" cloud status
cloud sites add $SITE >/dev/null
cloud gateways token --site $SITE --gateway gw1 | grep -o 'hf1\.[^ ]*' >"$world/story/token"
status=0
gateway --config "$CONFIG" enrol --cloud 10.77.0.2:8443 --token-file /opt/story/token >"$world/enrol.log" 2>&1 || status=$?
[ "$status" = 64 ] && grep -q "runuser" "$world/enrol.log" || die "enrolment as root: exit $status: $(cat "$world/enrol.log")"
[ -z "$(guest find $STATE ! -user holdfast-gateway)" ] || die "enrolment as root left files of root"
held "enrolment as the wrong user is refused and leaves nothing"
as_service enrol --cloud 10.77.0.2:8443 --token-file - <"$world/story/token" >"$world/enrol.log" 2>&1 || die "enrolment: $(cat "$world/enrol.log")"
start=$(now)
guest systemctl start $UNIT || die "the unit does not start"
took=$(($(now) - start))
active || die "not active after systemctl start"
case $(property StatusText) in serving:*) ;; *) die "no readiness: $(property StatusText)" ;; esac
held "enrolled; ready $took ms after systemctl start: $(property StatusText)"
guest systemctl enable --quiet $UNIT

case "$(property After) $(property Wants) $(property Requires)" in
*network-online.target* | *time-sync.target* | *time-set.target*) die "the start waits for what may never come in an outage: $(property After)" ;;
esac
main=$(property MainPID)
facts=$(guest sh -c "awk '/^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):/ { print \$1 \$2 }' /proc/$main/status" | tr '\n' ' ')
case $facts in
*Uid:0\ *) die "runs as root" ;;
*CapEff:0000000000000000\ CapBnd:0000000000000000\ NoNewPrivs:1\ Seccomp:2*) ;;
*) die "not confined: $facts" ;;
esac
[ -z "$(guest find $STATE -perm /077 ! -type l)" ] || die "others may read: $(guest find $STATE -perm /077)"
sockets=$(guest ss -Hltun | awk '{ print $1 ":" $5 }' | LC_ALL=C sort -u | tr '\n' ' ')
for socket in $sockets; do
    case $socket in
    tcp:0.0.0.0:8883 | tcp:0.0.0.0:8443 | tcp:0.0.0.0:8042 | tcp:127.0.0.1:9464 | udp:*:5353) ;;
    *) die "an unexpected socket: $socket" ;;
    esac
done
held "confined ($facts), state folder closed to others, sockets as documented: $sockets"

# --- a device ------------------------------------------------------------------------------------------
guid=$(device internet "init --manufacturer http://10.77.0.2:8039 --serial P-0001" | tail -n 1)
cloud vouchers assign "$guid" --site $SITE >/dev/null
guest systemctl start story-device
within 60 "the device's first acknowledgement" more_than 0
held "a device onboards through the installed gateway and is acknowledged after $took ms"
gateway clients issue probe --publish 'plant/#' --subscribe "hf/v1/$SITE/#" --out /opt/probe >/dev/null
within 30 "mode online" mode_is online
taken || die "a stock client is not served"
held "a stock MQTT client is served; mode online"

# --- killed, hung ----------------------------------------------------------------------------------------
# Milliseconds from the last end of service to the last beginning.
gap() {
    guest systemctl show $UNIT -p ActiveExitTimestampMonotonic -p ActiveEnterTimestampMonotonic --value | tr '\n' ' ' |
        awk '{ print int(($1 > $2 ? $1 - $2 : $2 - $1) / 1000) }'
}
restarts() { [ "$(property NRestarts)" -ge "$1" ] && active; }
guest systemctl kill --signal=KILL --kill-who=main $UNIT
within 20 "restart after kill -9" restarts 1
within 20 "service after kill -9" taken
held "kill -9: ready again after $(gap) ms"
guest mkdir -p /run/systemd/system/$UNIT.d
guest sh -c "printf '[Service]\nWatchdogSec=4\n' >/run/systemd/system/$UNIT.d/test.conf; systemctl daemon-reload; systemctl restart $UNIT"
within 20 "restart" taken
# One and a half of the watchdog's periods.
guest sleep 6
active && [ "$(property NRestarts)" = 0 ] || die "the watchdog bit a healthy daemon"
guest systemctl kill --signal=STOP --kill-who=main $UNIT
within 60 "restart after a hang" restarts 1
within 20 "service after a hang" taken
guest journalctl --no-pager -q -o cat -u $UNIT | grep -q "[Ww]atchdog timeout" || die "it was not the watchdog"
held "a hung daemon is restarted by the watchdog; a healthy one is left alone"
guest sh -c "rm -r /run/systemd/system/$UNIT.d; systemctl daemon-reload"

# --- outage, reboot in it, power cut in it ------------------------------------------------------------------
within 60 "mode online before the cut" mode_is online
at_cut=$(acknowledged)
guest /opt/story/net.sh cut
start=$(now)
within 20 "mode outage" mode_is outage
held "uplink cut: mode outage after $(($(now) - start)) ms"
guest systemctl restart $UNIT
within 20 "service after a restart in the outage" taken
away=$(gap)
[ "$away" -le 3000 ] || die "a restart in the outage took the gateway away for $away ms"
held "restarted in the outage: away for $away ms"
within 20 "acknowledgements in the outage" more_than $(($(acknowledged) + 50))
keys >"$world/keys.before"
# The second boot gets its networks only after the gateway has started.
for kind in reboot power_cut; do
    [ $kind = reboot ] || guest touch /var/lib/story/late
    before=$(acknowledged)
    start=$(now)
    container_$kind
    within 60 "the gateway after the $kind" active
    guest systemctl is-active --quiet story-cloud && die "the cloud runs: no outage"
    within 30 "service after the $kind" taken
    ready=$(($(now) - start))
    within 30 "mode outage after the $kind" mode_is outage
    keys >"$world/keys.after"
    cmp -s "$world/keys.before" "$world/keys.after" || die "the keys changed: $(diff "$world/keys.before" "$world/keys.after")"
    within 60 "the device after the $kind" more_than "$before"
    held "$kind in the outage: serves again with no cloud $ready ms after; keys the same; the device goes on from $before"
done

# --- the cloud again ------------------------------------------------------------------------------------------
backlog() { gateway status --json | sed -n 's/.*"backlog": *\([0-9]*\).*/\1/p' | head -n 1; }
count=$(($(acknowledged) - at_cut))
waiting=$(backlog)
[ "$waiting" -ge $((count - 100)) ] || die "the device had $count rows acknowledged in the outage, but $waiting wait for the cloud"
guest /opt/story/net.sh mend
guest systemctl start story-cloud
within 90 "mode online" mode_is online
held "uplink back: mode online after $took ms; $waiting messages had waited"
guest systemctl stop story-device
count=$(acknowledged)
all_arrived() { [ "$(ledger | grep -c .)" -ge "$count" ]; }
within 90 "all rows in the cloud" all_arrived
ledger | sed -n 's/.*"row":"\{0,1\}\([0-9]*\).*/\1/p' >"$world/ledger"
rows=$(grep -c . "$world/ledger")
[ "$rows" -lt $ROWS ] || die "the device came to the end of its $ROWS rows too early to tell"
# A row more than acknowledged may have arrived: its acknowledgement was on the way.
seq 1 "$rows" | cmp -s - "$world/ledger" || die "of $count acknowledged rows the cloud's ledger has: $(tr '\n' ' ' <"$world/ledger")"
held "the cloud has all $rows rows, each once and in order"

# --- keys sealed by a credential ------------------------------------------------------------------------------
SEAL=/etc/credstore.encrypted/holdfast-seal
sealed() { [ -z "$(guest sh -c "cd $STATE/keys && for file in *.key; do head -c 7 \$file | grep -q HFSEAL1 || echo \$file; done")" ]; }
sealed && die "the keys are sealed without a credential"
# As the guide says it; the unit asks for the credential by itself.
guest sh -c "mkdir -p /etc/credstore.encrypted
head -c 32 /dev/urandom | systemd-creds encrypt --with-key=host --name=holdfast-seal - $SEAL" \
    >"$world/creds.log" 2>&1 || die "systemd-creds: $(tail -n 3 "$world/creds.log")"
guest systemctl restart $UNIT || die "no start with the credential: $(guest journalctl --no-pager -o cat -n 5 -u $UNIT)"
sealed || die "not every key file is sealed"
within 20 "service with sealed keys" taken
gateway status --json | grep -q '"keys": *"sealed"' || die "status does not say that the keys are sealed"
guest sh -c "cat /proc/\$(systemctl show --value -p MainPID $UNIT)/environ | tr '\\0' '\\n' | grep -q ^CREDENTIALS_DIRECTORY=" || die "no credential was handed over"
held "with the credential holdfast-seal every key file is sealed, and the gateway serves"
keys >"$world/keys.before"
guest mv $SEAL /root/seal
guest systemctl restart $UNIT >/dev/null 2>&1 && die "it starts without its credential"
guest journalctl --no-pager -q -o cat -n 50 -u $UNIT | grep -q "start it by systemd with LoadCredentialEncrypted=holdfast-seal" ||
    die "without the credential it does not say what to do: $(guest journalctl --no-pager -q -o cat -n 5 -u $UNIT)"
guest mv /root/seal $SEAL
guest systemctl restart $UNIT || die "no start with the credential again"
within 20 "service with its credential again" taken
keys >"$world/keys.after"
cmp -s "$world/keys.before" "$world/keys.after" || die "the refused start changed the keys"
held "a disk without its credential: the start fails and says what to do; with it the same gateway serves"

# --- upgrade, removal, purge ------------------------------------------------------------------------------------
guest sh -c "echo '# edited by the operator' >>$CONFIG"
install_package 2.deb
within 30 "the gateway after the upgrade" active
keys >"$world/keys.after"
cmp -s "$world/keys.before" "$world/keys.after" || die "the upgrade changed the keys"
guest grep -q "edited by the operator" "$CONFIG" || die "the upgrade lost the operator's configuration"
away=$(gap)
[ "$away" -le 3000 ] || die "the upgrade took the gateway away for $away ms"
within 20 "service after the upgrade" taken
held "upgrade: keys and edited configuration stay, the broker was away for $away ms"
guest dpkg -r holdfast-gateway >/dev/null 2>&1
[ "$(property ActiveState)" = inactive ] || die "runs after its removal"
guest test -e $STATE/keys/cloud.json || die "removal took the keys"
install_package 2.deb
within 30 "the gateway after reinstallation" active
held "removal keeps keys and configuration; installed again it serves as the same gateway"
guest rm $SEAL
guest dpkg -P holdfast-gateway >/dev/null 2>&1
left=$(guest find / -xdev \( -path /opt/story -o -path /var/lib/story -o -path /proc -o -path /sys -o -path /run -o -path /root -o -path /var/log \) -prune -o -iname '*holdfast*' -print)
[ -z "$left" ] || die "purge left: $left"
held "purge leaves no file"

say "$steps steps held in $(($(date +%s) - began)) s"
