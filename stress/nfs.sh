#!/bin/bash
# Runs a command where there is an NFS server and a client of it: in a Linux of its own that is a process of this one, as few
# kernels have both. It sees this machine's files, and has a disk of its own for temporary ones.
#
#     stress/nfs.sh .venv/bin/python -m stress.filesystems --only nfs4 nfs3
#
# Needs root and Debian's packages user-mode-linux, nfs-kernel-server, nfs-common and kmod. Its exit status is the command's.
set -u
export PATH="$PATH:/usr/sbin:/sbin"

outside() {
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    truncate -s 6G "$scratch/disk"
    mkfs.ext4 -qF "$scratch/disk"
    printf '%q ' "$@" >"$scratch/command"
    linux.uml mem="${NFS_MEMORY:-3G}" root=/dev/root rootfstype=hostfs rootflags=/ rw quiet \
        ubd0="$scratch/disk" con=null con0=null,fd:1 init="$(realpath "$0")" SCRATCH="$scratch" HERE="$PWD" </dev/null
    return "$(cat "$scratch/status" 2>/dev/null || echo 1)"
}

# As the first process of that Linux.
inside() {
    exec >/dev/console 2>&1
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t tmpfs tmpfs /run
    mount -t devtmpfs dev /dev 2>/dev/null
    mkdir -p /run/disk /run/modules/lib /dev/shm
    mount -t tmpfs tmpfs /dev/shm
    mount /dev/ubda /run/disk
    ln -s /usr/lib/uml/modules /run/modules/lib/modules
    for module in loop fuse overlay nfsd nfs nfsv3 nfsv4; do
        modprobe -d /run/modules "$module" || echo "No module $module"
    done
    ip link set lo up
    mkdir -p /run/disk/nfs /run/disk/tmp
    mount --bind /run/disk/nfs /var/lib/nfs
    mkdir -p /var/lib/nfs/rpc_pipefs /var/lib/nfs/v4recovery
    touch /var/lib/nfs/etab /var/lib/nfs/rmtab
    mount -t nfsd nfsd /proc/fs/nfsd
    rpcbind 2>/dev/null || /usr/sbin/rpcbind
    rpc.mountd
    rpc.nfsd --no-udp 4
    export TMPDIR=/run/disk/tmp HOME=/run/disk USER="${USER:-root}"
    cd "$HERE" || exit
    eval "$(cat "$SCRATCH/command")"
    echo $? >"$SCRATCH/status"
    sync
    echo o >/proc/sysrq-trigger
    sleep 60
}

if [ $$ = 1 ]; then
    inside
else
    outside "$@"
fi
