#!/bin/bash
# First process of a host: what a machine has of its own, then its daemon. When it ends, all that is on the host ends.
#   SHARED=FOLDER:FOLDER host.sh NAME DAEMON ARGUMENT...
set -euo pipefail

name=$1
shift
hostname "$name"
mount -t sysfs sysfs /sys
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /tmp/ray "/run/slurm/scratch/$name" "/run/slurm/spool/$name"
mount --bind "/run/slurm/scratch/$name" /run/scratch
IFS=: read -r -a folders <<< "$SHARED"
for folder in "${folders[@]}"; do
  case $folder in
    /tmp/*)
      mkdir -p "$folder"
      mount --rbind "/run/machine-tmp/${folder#/tmp/}" "$folder"
      ;;
  esac
done
umount --lazy /run/machine-tmp

# The link of a host of this name that was killed goes a little later than its processes. (`ip -n` would mount /sys anew, and fails.)
on_the_bridge() { nsenter --net=/run/netns/bridge ip "$@"; }
on_the_bridge link delete "v-$name" 2> /dev/null || true
ip link set lo up
ip link add eth0 type veth peer name "v-$name" netns bridge
on_the_bridge link set "v-$name" master bridge up
ip address add "$(awk -v name="$name" '$2 == name { print $1 }' /etc/hosts)/24" dev eth0
ip link set eth0 up

"$@" &
wait $!
