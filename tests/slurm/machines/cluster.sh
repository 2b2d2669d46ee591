#!/bin/bash
# First process of a cluster: the namespaces that its hosts are joined by. When it ends, all that is in them ends.
#   cluster.sh CONFIG_FOLDER
set -euo pipefail

config=$1
mount --make-rprivate /
# Only the network of these namespaces is in this /sys, and no cgroup.
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 cluster /run
mount -t tmpfs -o mode=755 cluster /etc/slurm
cp "$config"/*.conf /etc/slurm
mount --bind "$config/hosts" /etc/hosts
if [ -e /etc/resolv.conf ]; then mount --bind /dev/null /etc/resolv.conf; fi

# The hosts cover /tmp and bring back what they share of it.
mkdir -p /run/machine-tmp /run/scratch /run/netns /run/slurm/{state,spool,pid,log,dev,scratch}
mount --rbind /tmp /run/machine-tmp
for gpu in 0 1; do mknod "/run/slurm/dev/gpu$gpu" c 1 3; done
head -c 128 /dev/urandom > /run/slurm/munge.key
chmod 600 /run/slurm/munge.key

# A bridge without uplink; a host finds it by the name `bridge`.
ip link set lo up
ip link add bridge type bridge
ip link set bridge up
touch /run/netns/bridge
mount --bind /proc/self/ns/net /run/netns/bridge

munged --foreground --force --socket /run/slurm/munge.socket --key-file /run/slurm/munge.key \
  --pid-file /run/slurm/pid/munged --seed-file /run/slurm/munge.seed --log-file /run/slurm/log/munged.log &
# Bash reaps whatever is left to it while it waits.
wait $!
