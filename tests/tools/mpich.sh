#!/bin/bash
# Unpacks Debian's MPICH below build/mpich, beside whatever mpicc the machine has and without touching it; needs apt-get
# and no rights. tests/multi/ds_comm_mpi_test.sh looks there too. usage: mpich.sh [FOLDER]
set -eu
cd "$(dirname "$0")/../.."
to=$(realpath -m "${1:-build/mpich}")
mkdir -p "$to/packages" "$to/bin"
cd "$to/packages"
for package in mpich libmpich12 libmpich-dev libslurm38 libucx0 libfabric1 libhwloc15 libpmix2; do
    dpkg -s "$package" >/dev/null 2>&1 || apt-get download -qq "$package"
done
for package in *.deb; do dpkg -x "$package" "$to"; done
sed "s,^\(includedir\|libdir\)=/usr,\1=$to/usr," "$to/usr/bin/mpicc.mpich" >"$to/bin/mpicc.mpich"
cat >"$to/bin/mpirun.mpich" <<RUN
#!/bin/sh
export LD_LIBRARY_PATH="$to/usr/lib/x86_64-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$to/usr/bin/mpiexec.hydra" "\$@"
RUN
chmod +x "$to"/bin/*
echo "MPICH is in $to/bin"
