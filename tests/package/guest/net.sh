#!/bin/sh
# The networks around the gateway, made inside the container: a LAN ("yard", where the device is) and an uplink
# ("internet", where the cloud is), each a namespace behind a veth pair. While /var/lib/story/outage exists the uplink has
# no carrier, also after a reboot; while /var/lib/story/late exists the networks come some seconds after the boot.
#   net.sh up | cut | mend
set -eu
flag=/var/lib/story/outage
late=/var/lib/story/late

pair() { # pair NAMESPACE NEAR FAR NEAR-ADDRESS FAR-ADDRESS
    ip netns add "$1"
    ip link add "$2" type veth peer name "$3" netns "$1"
    ip address add "$4/24" dev "$2"
    ip link set "$2" up
    ip -n "$1" link set lo up
    ip -n "$1" address add "$5/24" dev "$3"
    ip -n "$1" link set "$3" up
    ip -n "$1" route add default via "$4"
}

case $1 in
up)
    [ ! -e "$late" ] || sleep 4
    pair yard lan0 lan1 192.168.77.1 192.168.77.2
    pair internet wan0 wan1 10.77.0.1 10.77.0.2
    echo 1 >/proc/sys/net/ipv4/ip_forward
    [ ! -e "$flag" ] || ip -n internet link set wan1 down
    ;;
cut)
    mkdir -p "${flag%/*}"
    : >"$flag"
    ip -n internet link set wan1 down
    ;;
mend)
    rm -f "$flag"
    ip -n internet link set wan1 up
    ip -n internet route add default via 10.77.0.1
    ;;
esac
