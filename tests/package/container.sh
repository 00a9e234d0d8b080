# A Debian container with systemd as PID 1, on a throw-away layer over a cached root. Sourced by tests/package.sh;
# knows nothing of the package. Every process, mount and folder it makes is undone by container_remove.
#
# Uses: $cache (folder of the cached root), $world (folder of this run, already made), say, die, and skip for a machine on
# which no container boots, whoever's fault that is: what is tested has no part in it yet.

SUITE=bookworm
# The archive that this machine itself installs from, unless told otherwise.
MIRROR=${HOLDFAST_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | head -n 1)}
INCLUDE=systemd,systemd-sysv,dbus,iproute2,mosquitto-clients
BOOT_SECONDS=60
# For the cached root, all downloads included.
ROOT_SECONDS=600
nspawn=
leader=
mounted=no
# What is done when it does not boot.
on_no_boot=die

# The cached root, made once.
container_base() {
    [ -d "$cache/base" ] && return
    say "making a $SUITE root in $cache/base (some minutes, once)"
    rm -rf "$cache/base.new"
    mkdir -p "$cache"
    timeout "$ROOT_SECONDS" debootstrap --variant=minbase --include="$INCLUDE" "$SUITE" "$cache/base.new" "$MIRROR" >"$cache/debootstrap.log" 2>&1 ||
        skip "debootstrap cannot make a root: $(tail -n 1 "$cache/debootstrap.log")"
    rm -f "$cache"/base.new/var/cache/apt/archives/*.deb
    mv "$cache/base.new" "$cache/base"
}

# A writable layer of this run over the cached root.
container_layer() {
    mkdir -p "$world/upper" "$world/work" "$world/root"
    mount -t overlay holdfast-package-test -o "lowerdir=$cache/base,upperdir=$world/upper,workdir=$world/work" "$world/root" ||
        skip "no overlay can be mounted here"
    mounted=yes
}

# Whether a container runs on this machine at all, and one that boots: before anything of ours is in it.
container_try() {
    timeout 30 systemd-nspawn --quiet --directory="$world/root" --machine="holdfast-package-$$" --register=no --keep-unit \
        --private-network --resolv-conf=off --console=pipe --as-pid2 true </dev/null >"$world/try.log" 2>&1 ||
        skip "systemd-nspawn runs no container here: $(tail -n 1 "$world/try.log")"
    on_no_boot=skip
    container_boot
    on_no_boot=die
}

# Boots and waits until systemd has started everything.
container_boot() {
    systemd-nspawn --quiet --directory="$world/root" --machine="holdfast-package-$$" --register=no --keep-unit \
        --private-network --boot --link-journal=no --resolv-conf=off --console=pipe \
        --bind-ro="$world/story:/opt/story" </dev/null >>"$world/console.log" 2>&1 &
    nspawn=$!
    tries=$((BOOT_SECONDS * 10))
    while [ "$tries" -gt 0 ]; do
        kill -0 "$nspawn" 2>/dev/null || $on_no_boot "the container ended: $(tail -n 3 "$world/console.log")"
        leader=$(pgrep -P "$nspawn" | head -n 1) || leader=
        case $(guest systemctl is-system-running 2>/dev/null || true) in running | degraded) return ;; esac
        sleep 0.1
        tries=$((tries - 1))
    done
    $on_no_boot "the container did not boot in $BOOT_SECONDS s: $(tail -n 1 "$world/console.log")"
}

# Runs a command in the container, as root.
guest() {
    [ -n "$leader" ] || return 1
    nsenter --target "$leader" --all env -i --chdir=/ PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive "$@"
}

# Waits until nspawn is gone; a reboot, too, ends it, since it was told not to start again by itself.
container_gone() {
    wait "$nspawn" 2>/dev/null || true
    nspawn=
    leader=
}

# An orderly reboot.
container_reboot() {
    guest systemctl reboot >/dev/null 2>&1 || true
    container_gone
    container_boot
}

# As when the power fails: everything inside dies at once. (The kernel's page cache survives; this says nothing of fsync.)
container_power_cut() {
    kill -9 "$leader"
    container_gone
    container_boot
}

container_remove() {
    if [ -n "$nspawn" ]; then
        [ -z "$leader" ] || kill -9 "$leader" 2>/dev/null || true
        kill "$nspawn" 2>/dev/null || true
        container_gone
    fi
    # nspawn leaves this behind when it is killed.
    rmdir "/run/systemd/nspawn/propagate/holdfast-package-$$" 2>/dev/null || true
    if [ "$mounted" = yes ]; then
        umount "$world/root" || umount -l "$world/root"
        mounted=no
    fi
}
