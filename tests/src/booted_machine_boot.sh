# Boots systemd in a machine's mount namespace as process 1. /run, /tmp and bpffs start empty. The
# machine sees the whole hierarchy of cgroups, because the programs that the agent attaches to a
# cgroup count levels from the real root.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for empty in run tmp; do mount -t tmpfs "$empty" "/$empty"; done
chmod 1777 /tmp
hostname machine
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no --log-target=console --log-level=notice
