#!/usr/bin/env python3
"""Sets Quorate beside etcd, NATS JetStream and ZooKeeper: the same workloads, one system after the other in each round, medians.

Every system gets three (for `recovery`: one) fresh servers on loopback for every run. A system that is not installed prints SKIPPED.
setup.sh installs them; README.md says what each workload is and how to read the figures.
"""

import argparse
import atexit
import json
import os
import pathlib
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
HOME = pathlib.Path(os.environ.get("QUORATE_PEERS", pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / "quorate-peers"))
GENERATOR = HOME / "target/release/generator"
ZOOKEEPER_JAR = pathlib.Path("/usr/share/java/zookeeper.jar")

# Seconds that servers may take to answer, and one run of a workload.
START_S, RUN_S = 60, 300
# Before a kill, before idle servers are looked at, and for how long.
CALM_S, SETTLE_S, IDLE_S = 3, 6, 12
# New clients of each kind in one run of `catchup`: etcd takes a quarter of a minute to replay what it holds to one of them.
CLIENTS = 3


class Servers:
    """Fresh servers of one system, each in a process group of its own; gone when this is closed."""

    def __init__(self, system, count, root):
        self.system, self.count = system, count
        self.root = pathlib.Path(tempfile.mkdtemp(prefix=f"{system.name}-", dir=root))
        self.processes = [None] * count
        atexit.register(self.close)
        for number in range(count):
            self.start(number)
        deadline = time.monotonic() + START_S
        while not (self.try_generator("prepare") and self.try_generator("leader")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{system.name} did not start; see {self.root}")
            time.sleep(0.3)

    def start(self, number):
        directory = self.root / f"n{number}"
        directory.mkdir(exist_ok=True)
        with open(self.root / f"n{number}.log", "ab") as log:
            command = self.system.command(number, self.count, directory)
            self.processes[number] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, number):
        """SIGKILL; the time just before it."""
        at = time.time_ns()
        self.processes[number].kill()
        self.processes[number].wait()
        return at

    def endpoints(self, first=0):
        order = [first] + [number for number in range(self.count) if number != first]
        return [self.system.endpoint(number) for number in order]

    def pids(self):
        return [process.pid for process in self.processes]

    def leader(self):
        return int(self.generator("leader"))

    def arguments(self, endpoints, *arguments):
        pids = ",".join(map(str, self.pids()))
        return [GENERATOR, self.system.kind, "--endpoints", ",".join(endpoints), "--pids", pids, *map(str, arguments)]

    def generator(self, *arguments, endpoints=None):
        command = self.arguments(endpoints or self.endpoints(), *arguments)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S).stdout

    def try_generator(self, *arguments):
        command = self.arguments(self.endpoints(), *arguments)
        quiet = subprocess.DEVNULL
        try:
            return subprocess.run(command, stdout=quiet, stderr=quiet, timeout=START_S).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def close(self):
        for process in self.processes:
            if process and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.root, ignore_errors=True)
        atexit.unregister(self.close)


class Etcd:
    name = kind = "etcd"

    def missing(self):
        return None if (HOME / "bin/etcd").exists() else "no etcd"

    def endpoint(self, number):
        return f"127.0.0.1:{2379 + 10 * number}"

    def command(self, number, count, directory):
        mesh = [f"http://127.0.0.1:{2380 + 10 * other}" for other in range(count)]
        cluster = ",".join(f"n{other}={url}" for other, url in enumerate(mesh))
        client = f"http://{self.endpoint(number)}"
        return [HOME / "bin/etcd", "--name", f"n{number}", "--data-dir", directory / "data", "--log-level", "error",
                "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", mesh[number],
                "--initial-advertise-peer-urls", mesh[number], "--initial-cluster", cluster, "--initial-cluster-state", "new"]


class Nats:
    kind = "nats"

    def __init__(self, name, settings):
        self.name, self.settings = name, settings

    def missing(self):
        return None if (HOME / "bin/nats-server").exists() else "no nats-server"

    def endpoint(self, number):
        return f"127.0.0.1:{4222 + number}"

    def command(self, number, count, directory):
        routes = ", ".join(f"nats://127.0.0.1:{6222 + other}" for other in range(count))
        cluster = f"cluster {{ name: bench, listen: 127.0.0.1:{6222 + number}, routes: [{routes}] }}" if count > 1 else ""
        config = directory / "nats.conf"
        config.write_text(
            f"server_name: n{number}\nlisten: {self.endpoint(number)}\n"
            f"jetstream {{ store_dir: {directory / 'data'}\n{self.settings} }}\n{cluster}\n"
        )
        return [HOME / "bin/nats-server", "-c", config]


class ZooKeeper:
    name = kind = "zookeeper"

    def missing(self):
        if not ZOOKEEPER_JAR.exists():
            return "no zookeeper"
        return None if shutil.which("java") else "no java"

    def endpoint(self, number):
        return f"127.0.0.1:{21810 + number}"

    def command(self, number, count, directory):
        data, config = directory / "data", directory / "zoo.cfg"
        data.mkdir(exist_ok=True)
        (data / "myid").write_text(str(number + 1))
        # The default stops at 60 connections from one address.
        lines = ["tickTime=2000", "initLimit=10", "syncLimit=5", f"dataDir={data}", f"clientPort={21810 + number}",
                 "clientPortAddress=127.0.0.1", "maxClientCnxns=0", "admin.enableServer=false", "4lw.commands.whitelist=srvr"]
        if count > 1:
            lines += [f"server.{other + 1}=127.0.0.1:{28880 + other}:{38880 + other}" for other in range(count)]
        config.write_text("\n".join(lines) + "\n")
        (directory / "log4j.properties").write_text(
            "log4j.rootLogger=WARN, C\nlog4j.appender.C=org.apache.log4j.ConsoleAppender\n"
            "log4j.appender.C.layout=org.apache.log4j.PatternLayout\n"
        )
        return ["java", "-cp", f"{directory}:{ZOOKEEPER_JAR}", "org.apache.zookeeper.server.quorum.QuorumPeerMain", config]


SYSTEMS = [Etcd(), Nats("nats", ""), Nats("nats-fsync", "sync_interval: always"), ZooKeeper()]


def last_line(text):
    return json.loads(text.strip().splitlines()[-1])


def plain(*arguments):
    """A workload that the generator measures by itself."""

    def run(servers):
        return last_line(servers.generator(*arguments, endpoints=servers.endpoints(servers.leader())))

    return run


def warmed(*arguments):
    """As `plain`, after a run that is thrown away."""

    def run(servers):
        servers.generator("commit", "--seconds", 3)
        return plain(*arguments)(servers)

    return run


def failover(trials):
    def run(servers):
        command = servers.arguments(servers.endpoints(), "failover")
        times = []
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as generator:
            for _ in range(trials):
                time.sleep(CALM_S)
                leader = servers.leader()
                print(servers.kill(leader), file=generator.stdin, flush=True)
                times.append(json.loads(generator.stdout.readline())["ms"])
                servers.start(leader)
                time.sleep(SETTLE_S)
            generator.stdin.close()
            line = json.loads(generator.stdout.readline())
        return line | {"median_ms": statistics.median(times), "worst_ms": max(times)}

    return run


def cpu_and_memory(pids):
    cpu = memory = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        memory += int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return cpu, memory


def idle(watchers):
    def run(servers):
        command = servers.arguments(servers.endpoints(servers.leader()), "watch", "--watchers", watchers)
        _, memory_alone = cpu_and_memory(servers.pids())
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as generator:
            json.loads(generator.stdout.readline())
            time.sleep(SETTLE_S)
            before, _ = cpu_and_memory(servers.pids())
            time.sleep(IDLE_S)
            after, memory = cpu_and_memory(servers.pids())
            generator.stdin.close()
        return {"cpu_percent": round((after - before) / IDLE_S * 100, 2), "server_memory_mib": round(memory / 2**20, 1),
                "server_memory_kib_per_watcher": round((memory - memory_alone) / 1024 / watchers, 1)}

    return run


def recovery(entries):
    def run(servers):
        servers.generator("fill", "--entries", entries)
        time.sleep(CALM_S)
        servers.kill(0)
        since = time.time_ns()
        servers.start(0)
        return last_line(servers.generator("recovery", "--entries", entries, "--since", since))

    return run


def catchup(entries):
    def run(servers):
        servers.generator("fill", "--entries", entries)
        time.sleep(CALM_S)
        return last_line(servers.generator("catchup", "--entries", entries, "--trials", CLIENTS))

    return run


THROUGHPUT = ["operations_per_s", "p50_us", "p99_us", "p999_us", "server_cpu_us_per_operation", "server_memory_mib"]
DELIVERIES = ["deliveries_per_s", "p50_us", "p99_us", "p999_us", "server_cpu_us_per_operation", "server_memory_kib_per_watcher"]


def workloads(entries):
    """By name: Quorate's arguments, what runs for a peer, servers, the figures that count (the first one gives the ratio)."""
    table = {}
    for connections, outstanding in [(1, 1), (16, 16), (64, 256), (64, 1024)]:
        shape = ["commit", "--connections", str(connections), "--outstanding", str(outstanding)]
        table[f"commit-{connections}-{outstanding}"] = (shape, warmed(*shape), 3, THROUGHPUT)
    for watchers in [100, 1000]:
        shape = ["fanout", "--watchers", str(watchers)]
        table[f"fanout-{watchers}-gated"] = (shape + ["--rate", "gated"], plain(*shape), 3, DELIVERIES)
        table[f"fanout-{watchers}-free"] = (
            shape + ["--rate", "free", "--outstanding", "256"], plain(*shape, "--outstanding", "256"), 3, DELIVERIES)
        table[f"fanout-{watchers}-100"] = (
            shape + ["--rate", "100"], plain(*shape, "--rate", "100"), 3, ["p50_us", "p99_us", "p999_us", *DELIVERIES[-2:]])
    for watchers in [5000]:
        shape = ["fanout", "--watchers", str(watchers), "--rate", "10"]
        table[f"fanout-{watchers}-10"] = (shape, plain(*shape), 3, ["p99_us", "p50_us", "p999_us", *DELIVERIES[-2:]])
    table["failover"] = (["failover", "--trials", "6"], failover(6), 3, ["median_ms", "worst_ms", "lost"])
    table["idle"] = (["idle", "--watchers", "1000"], idle(1000), 3,
                     ["cpu_percent", "server_memory_mib", "server_memory_kib_per_watcher"])
    table["recovery"] = (["recovery", "--entries", str(entries), "--trials", "1"], recovery(entries), 1, ["write_us", "read_us"])
    table["catchup"] = (["catchup", "--entries", "100000", "--trials", str(CLIENTS)], catchup(100_000), 3, ["state_us", "log_us"])
    return table


def quorate(binary, arguments, root):
    command = [binary, "bench", *arguments, "--json", "--dir", root]
    return last_line(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S).stdout)


def beside(system, run, count, root):
    servers = Servers(system, count, root)
    try:
        return run(servers)
    finally:
        servers.close()


def main():
    table = workloads(1_000_000)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="default: all of " + " ".join(table))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--systems", default=",".join(system.name for system in SYSTEMS))
    parser.add_argument("--entries", type=int, default=1_000_000, help="of recovery")
    parser.add_argument("--quorate", default=HERE.parent.parent / "target/release/quorate", type=pathlib.Path)
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where all servers' directories are made")
    parser.add_argument("--results", type=pathlib.Path, help="also append every run to this file, one JSON object a line")
    arguments = parser.parse_args()
    table = workloads(arguments.entries)
    unknown = set(arguments.workloads) - set(table)
    wanted = arguments.systems.split(",")
    systems = [system for system in SYSTEMS if system.name in wanted]
    unknown |= set(wanted) - {system.name for system in SYSTEMS} - {""}
    if unknown:
        parser.error("unknown: " + " ".join(sorted(unknown)))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # So that whoever ends this ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    if not arguments.quorate.exists():
        sys.exit(f"no {arguments.quorate}: cargo build --release -p cluster-server")
    for system in list(systems):
        why = system.missing() or (None if GENERATOR.exists() else "no generator; run setup.sh")
        if why:
            print(f"{system.name}: SKIPPED ({why})")
            systems.remove(system)

    for name in arguments.workloads or table:
        ours, theirs, count, figures = table[name]
        lines = {}
        for _ in range(arguments.rounds):
            runs = [("quorate", lambda: quorate(arguments.quorate, ours, arguments.dir))]
            runs += [(system.name, lambda system=system: beside(system, theirs, count, arguments.dir)) for system in systems]
            for system, run in runs:
                try:
                    line = run()
                except (subprocess.SubprocessError, RuntimeError, json.JSONDecodeError) as error:
                    print(f"{name} {system}: FAILED ({error})", file=sys.stderr)
                    continue
                lines.setdefault(system, []).append(line)
                if arguments.results:
                    with open(arguments.results, "a") as results:
                        results.write(json.dumps({"name": name, "system": system} | line) + "\n")
        tell(name, figures, lines)


def tell(name, figures, lines):
    """The medians as a table, and how many times the first figure of each peer is ours."""
    print(f"\n{name} (medians of {max(map(len, lines.values()), default=0)})")
    print("| system | " + " | ".join(figures) + f" | {figures[0]}: Quorate's is |")
    print("|---" * (len(figures) + 2) + "|")

    def median(system, figure):
        values = [line[figure] for line in lines.get(system, []) if line.get(figure) is not None]
        return statistics.median(values) if values else None

    ours = median("quorate", figures[0])
    for system in lines:
        medians = [median(system, figure) for figure in figures]
        ratio = f"{ours / medians[0]:.2f}×" if ours and medians[0] and system != "quorate" else ""
        print(f"| {system} | " + " | ".join("–" if value is None else f"{value:,.10g}" for value in medians) + f" | {ratio} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
