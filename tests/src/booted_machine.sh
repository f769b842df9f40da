# Makes the file system of a machine in a new mount namespace, and executes $5 as its first boot, in
# new PID, UTS and IPC namespaces. The root is an overlay over this machine's, discarded at the end;
# /dev starts empty. Files, packages and users of the product on this machine are not in the overlay.
# The machine has a cgroup of its own.
# $1: an empty directory. $2: the cgroup to create. $3: the directory to mount as /lab.
# $4: a directory whose files the machine has in addition, or nothing. $5: booted_machine_boot.sh.
set -e
mkdir "$2" "$2/session"
echo $$ >"$2/cgroup.procs"
exec unshare --mount --pid --uts --ipc --fork --kill-child --propagation private sh -e -c '
mount -t tmpfs machine "$1"
mkdir "$1/written" "$1/work" "$1/root"
lower=/
if [ -n "$3" ]; then
    # A layer of an overlay cannot be a directory of another layer.
    cp -a "$3" "$1/added"
    lower="$1/added:/"
fi
mount -t overlay -o "lowerdir=$lower,upperdir=$1/written,workdir=$1/work" machine "$1/root"
cd "$1/root"
mkdir -p lab
mount --bind "$2" lab
mount -t proc proc proc
mount -t tmpfs dev dev
mkdir dev/net dev/pts dev/shm
for device in null zero full random urandom tty net/tun; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# Units that this machine has enabled must not start in the lab.
rm -rf etc/systemd/system/*.wants etc/rc?.d/S*
# A container'\''s policy that packages must not start services does not apply either.
rm -f usr/sbin/policy-rc.d
# The kernel'\''s settings, modules and devices are shared with this machine.
for common in sysctl udevd udev-trigger modules-load remount-fs; do
    ln -sf /dev/null "etc/systemd/system/systemd-$common.service"
done
: >etc/machine-id
pivot_root . mnt
umount -l /mnt
# The product may be installed below, from its packages, from source or by hand. After pivot_root
# no link leads out of the overlay.
for package in mobile-agent home-relay; do
    info="var/lib/dpkg/info/$package"
    [ -e "$info.list" ] || continue
    while read -r file; do
        [ -d "$file" ] || rm -f "$file"
    done <"$info.list"
    rm -f "$info".*
done
for database in var/lib/dpkg/status var/lib/dpkg/status-old; do
    [ -e "$database" ] || continue
    awk -v RS= -v ORS="\n\n" "!/^Package: (mobile-agent|home-relay)\n/" "$database" >"$database.new"
    mv "$database.new" "$database"
done
for folder in etc opt usr/bin usr/sbin usr/lib/systemd usr/lib/sysusers.d usr/lib/tmpfiles.d usr/local \
    var/lib var/log var/cache; do
    [ ! -d "$folder" ] || find "$folder" -xdev -depth -regextype posix-extended \
        -regex ".*/(mobile(-agent|-cleanup|-slice)?|home-relay(-cleanup)?|libmobile)([.@].*)?" -exec rm -rf {} +
done
for database in passwd group shadow gshadow; do
    [ ! -e "etc/$database" ] || sed -i "/^home-relay:/d" "etc/$database"
done
exec unshare --mount --propagation private sh -e -c "$4"
' machine "$1" "$3" "$4" "$5"
